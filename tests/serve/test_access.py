"""Who may ask, for which host, from which page: on every route that there is."""

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from endpoints import ADMIN, KEY, Loopback, loopback
from starlette.routing import Route

from interlock.errors import ConfigError
from interlock.serve.app import make_app
from interlock.serve.http.gate import OPEN
from interlock.serve.http.keys import Keys, load_keys


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    settings = ["hosts=['chat.example']", "origins=['https://page.example']"]
    with loopback(tmp_path_factory.mktemp("served"), settings=settings) as running:
        yield running


def flat(routes: Sequence[Any]) -> Iterator[Route]:
    """Those of included routers too."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from flat(router.routes)
        else:
            assert isinstance(route, Route), "mount nothing that this test does not see"
            yield route


def routes(served: Loopback) -> list[tuple[str, str]]:
    """Method and path of each; a parameter is "tiny"."""
    found = []
    for route in flat(make_app(served.endpoint).routes):
        for method in sorted(route.methods or ()):
            path = route.path.replace("{name:path}", "tiny").replace("{id}", "s-1")
            found.append((method, path))
    return found


WRONG = [
    {},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": f"Bearer {KEY}k"},
    {"Authorization": f"Bearer {KEY} {KEY}"},
    {"Authorization": f"Bearer {KEY.upper()}"},
    {"Authorization": "Bearer é" + KEY},
    {"Authorization": "Bearer null"},
    {"x-api-key": KEY[1:]},
    {"Cookie": f"key={KEY}"},
]


@pytest.mark.parametrize("headers", WRONG, ids=lambda h: str(h)[:50])
def test_without_its_key_no_route_answers(served: Loopback, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    with served.client(key=None) as client:
        for method, path in routes(served):
            if path in OPEN:
                continue
            answer = client.request(method, f"{path}?api_key={KEY}", headers=raw)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert KEY not in answer.text and ADMIN not in answer.text


def test_there_are_routes_to_walk(served: Loopback) -> None:
    found = {path for _, path in routes(served)}
    expected = {"/v1/chat/completions", "/v1/completions", "/metrics", "/openapi.json", "/tokenize"}
    assert expected | {"/admin/pin", "/v1/models", "/inference/v1/generate"} <= found
    assert frozenset({"/health", "/"}) == OPEN


def test_admin_routes_take_the_admin_key_alone_and_others_do_not(served: Loopback) -> None:
    admin = [(m, p) for m, p in routes(served) if p.startswith("/admin")]
    assert len(admin) >= 4
    with served.client() as client:
        assert {client.request(m, p).status_code for m, p in admin} == {401}
        assert client.get("/ADMIN/replicas").status_code == 404
        assert client.get("//admin/replicas").status_code == 404
        assert client.get("/admin").status_code == 401
    with served.client(key=ADMIN) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/admin/replicas").status_code == 200


def test_each_key_has_a_name_that_is_not_it(served: Loopback) -> None:
    ask = {"token_ids": [1], "sampling_params": {"max_tokens": 1}}
    for key, name in ((KEY, "key-1"), ("second-" * 3, "key-2")):
        with served.client(key=key) as client:
            assert client.post("/inference/v1/generate", json=ask).status_code == 200
        assert served.replicas.asked[-1].key == name
    with served.client(key=None) as client:
        answer = client.post("/inference/v1/generate", json=ask, headers={"x-api-key": KEY})
        assert answer.status_code == 200


def test_the_scheme_is_of_any_case(served: Loopback) -> None:
    with served.client(key=None) as client:
        headers = {"Authorization": f"bEARER   {KEY}"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("10.0.0.7:8000", 200),
        ("chat.example", 200),
        ("chat.example.:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("chat.example@evil.example", 403),
        ("127.1", 403),
        ("", 403),
        ("a b", 403),
    ],
)
def test_only_its_own_hosts_are_answered_for(served: Loopback, host: str, status: int) -> None:
    with served.client() as client:
        for path in ("/v1/models", "/health"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("https://page.example", 200),
        ("https://page.example.evil.example", 403),
        ("http://page.example", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
        ("file://", 403),
    ],
)
def test_pages_from_elsewhere_may_not_ask(served: Loopback, origin: str, status: int) -> None:
    with served.client() as client:
        headers = {"Origin": origin.format(port=served.port)}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.startswith("access-control")]
        preflight = client.options("/v1/models", headers=headers)
        assert preflight.status_code in (403, 405)


def raw(served: Loopback, *parts: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while data := connection.recv(65536):
            found += data
        return found


def test_two_keys_in_one_request_are_refused(served: Loopback) -> None:
    lines = [f"Authorization: Bearer {KEY}", "Authorization: Bearer x", "Connection: close"]
    head = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(lines) + "\r\n\r\n"
    assert raw(served, head.encode()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000,
        b"GET /" + b"a" * 40_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(200)),
    ],
    ids=["header", "line", "many"],
)
def test_a_head_without_end_is_431(served: Loopback, head: bytes) -> None:
    answer = raw(served, head)
    assert answer.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "header_too_long"


def test_what_is_no_http_is_400_in_our_words(served: Loopback) -> None:
    answer = raw(served, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {
        *("message", "type", "param", "code")
    }


def test_a_slow_head_is_closed_and_a_slow_body_is_408(tmp_path: Path) -> None:
    settings = ["limits.header_s=0.2", "limits.body_s=0.2"]
    with loopback(tmp_path, settings=settings) as served:
        assert raw(served, b"GET /health HTTP/1.1\r\nHost: loc") == b""
        head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += 'Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"prompt"'
        answer = raw(served, head.encode())
        assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer.lower()


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n  " + "a" * 16 + "  \n\n" + "b" * 16 + "\n")
    found = load_keys(file, "INTERLOCK_API_KEY", {"INTERLOCK_API_KEY": "c" * 16})
    assert found == ["a" * 16, "b" * 16, "c" * 16]
    keys = Keys(found)
    assert [keys.whose(key.encode()) for key in (*found, "d" * 16, "")] == [
        *("key-1", "key-2", "key-3"),
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("short\n", "key 1 of"),
        ("a b" * 8, "key 1 of"),
        ("é" * 20, "key 1 of"),
        ("a" * 16 + "\n" + "a" * 16, "twice"),
    ],
)
def test_a_bad_file_of_keys_is_told_without_them(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_keys(file, "X", {})
    assert said in str(told.value) and "a" * 16 not in str(told.value)


def test_no_file_of_keys_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys"):
        load_keys(tmp_path / "none", "X", {})


def test_a_server_behind_a_name_answers_for_it(served: Loopback) -> None:
    with httpx.Client(base_url=served.url, timeout=20) as client:
        assert client.get("/health").json() == {"status": "ready"}
