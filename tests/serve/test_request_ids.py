"""The id that every answer goes out with, and the form of errors where Anthropic's clients ask."""

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from endpoints import KEY, Loopback, loopback

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
MADE = re.compile(r"req-[0-9a-f]{24}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("served"), settings=["limits.body_mb=1"]) as running:
        yield running


def test_an_answer_goes_out_with_its_own_id(served: Loopback) -> None:
    answer = served.post(CHAT, TALK)
    assert answer.headers["x-request-id"] == answer.json()["id"] == answer.headers["request-id"]
    streamed = served.post(CHAT, TALK | {"stream": True})
    assert f'"id":"{streamed.headers["x-request-id"]}"' in streamed.text


def test_what_has_no_id_is_given_one_each(served: Loopback) -> None:
    with served.client() as client:
        found = [
            client.get("/health"),
            client.get("/v1/nothing"),
            client.get(CHAT),
            client.post(CHAT, json=TALK | {"n": 0}),
            client.post(CHAT, json=TALK, headers={"Authorization": "Bearer no"}),
            client.post(CHAT, json=TALK, headers={"Host": "evil.example"}),
        ]
    assert [each.status_code for each in found] == [200, 404, 405, 400, 401, 403]
    ids = [each.headers["x-request-id"] for each in found]
    assert all(map(MADE.fullmatch, ids)) and len(set(ids)) == len(ids)


def test_what_is_no_http_is_given_one(served: Loopback) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        told = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    assert told.startswith("HTTP/1.1 400 ")
    assert re.search(r"\r\nx-request-id: req-[0-9a-f]{24}\r\n", told)


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd-8448:eb21/1_c.9=", "x" * 128])
def test_a_clients_own_id_goes_back_to_it(served: Loopback, given: str) -> None:
    for body in (TALK, TALK | {"n": 0}):
        answer = served.post(CHAT, body, headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "a%0d", "é", "a,b"])
def test_an_id_that_is_none_is_not_taken_over(served: Loopback, given: str) -> None:
    answer = served.post(CHAT, TALK, headers={"X-Request-Id": given.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.headers["x-request-id"] == answer.json()["id"]


def test_of_two_ids_none_is_taken_over(served: Loopback) -> None:
    with served.client() as client:
        both = [("X-Request-Id", "a"), ("X-Request-Id", "b")]
        assert MADE.fullmatch(client.get("/health", headers=both).headers["x-request-id"])


def test_a_clients_id_is_in_no_log(served: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        served.post(CHAT, TALK, headers={"X-Request-Id": "mine-and-mine-alone"})
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("http")]
    assert ours and "mine-and-mine-alone" not in "".join(ours)


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens", f"/sessions/s-1{MESSAGES}"])
def test_whoever_refuses_a_message_does_it_in_anthropics_form(served: Loopback, path: str) -> None:
    ask = TALK | {"max_tokens": 4}
    with served.client() as client:
        found = [
            client.post(path, json=ask, headers={"Authorization": "Bearer no"}),
            client.post(path, json=ask, headers={"Host": "evil.example"}),
            client.post(f"{path}/more", json=ask),
            client.get(path),
            client.post(path, content=b"a", headers={"Content-Type": "text/plain"}),
        ]
    statuses = [404 if path.startswith("/sessions") else 415]
    assert [each.status_code for each in found] == [401, 403, 404, 405, *statuses]
    for each in found:
        assert each.json()["type"] == "error" and each.json()["error"]["message"]
    long = b'{"a": "' + b"a" * (1 << 20) + b'"}'
    if not path.startswith("/sessions"):
        with served.client() as client:
            typed = {"Content-Type": "application/json"}
            answer = client.post(path, content=long, headers=typed)
        assert (answer.status_code, answer.json()["type"]) == (413, "error")


def test_other_routes_have_openais_form(served: Loopback) -> None:
    for path in (CHAT, "/v1/messagesx", "/x/v1/messages"):
        answer = served.post(path, TALK, headers={"Authorization": "Bearer no"})
        assert list(answer.json()) == ["error"]
    assert KEY not in answer.text
