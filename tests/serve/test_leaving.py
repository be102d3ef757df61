"""Whoever leaves, or waits too long, costs nothing more; and how a server ends."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import KEY, Loopback, loopback, saying

TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path, lambda tokenizer: saying(tokenizer, "word " * 60)) as running:
        running.replicas.hold()
        yield running


def connected(served: Loopback, body: dict[str, Any], path: str) -> socket.socket:
    """A connection on which a request was sent."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", served.port), 20)
    connection.sendall(head.encode() + data)
    return connection


def until(connection: socket.socket, mark: bytes) -> bytes:
    found = b""
    while mark not in found:
        data = connection.recv(65536)
        assert data, found
        found += data
    return found


ASKED = [
    ("/v1/chat/completions", TALK),
    ("/v1/chat/completions", TALK | {"stream": True}),
    ("/v1/chat/completions", TALK | {"stream": True, "n": 4}),
    ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 200, "n": 2}),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 200, "stream": True}),
    ("/inference/v1/generate", {"token_ids": [1], "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), ASKED, ids=lambda v: str(v)[-40:])
def test_who_leaves_before_the_first_token_frees_the_slot(
    served: Loopback, path: str, body: dict[str, Any]
) -> None:
    connection = connected(served, body, path)
    served.replicas.wait_until(lambda: served.replicas.running > 0)
    connection.close()
    served.replicas.wait_idle()
    assert len(served.replicas.cancelled) == len(served.replicas.asked)


@pytest.mark.parametrize(("path", "body"), ASKED, ids=lambda v: str(v)[-40:])
def test_who_leaves_in_mid_answer_frees_the_slot(
    served: Loopback, path: str, body: dict[str, Any]
) -> None:
    connection = connected(served, body, path)
    served.replicas.wait_until(lambda: served.replicas.running > 0)
    served.replicas.step(3)
    if body.get("stream"):
        until(connection, b"data: ")
    connection.close()
    served.replicas.wait_idle()
    assert served.replicas.cancelled
    assert served.post("/tokenize", {"prompt": "x"}).status_code == 200


def test_many_that_leave_leave_nothing(served: Loopback) -> None:
    connections = [connected(served, *reversed(ASKED[n % 6])) for n in range(30)]
    served.replicas.wait_until(lambda: len(served.replicas.asked) >= 30)
    served.replicas.step(2)
    for connection in connections:
        connection.close()
    served.replicas.wait_idle()
    with served.client() as client:
        text = client.get("/metrics").text
    assert 'request_success_total{finished_reason="abort",model_name="tiny"}' in text


def test_the_deadline_ends_what_the_replicas_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interlock.serve.listening._GRACE_S", 0.0)
    with loopback(tmp_path, settings=["limits.deadline_s=0.2"]) as served:
        served.replicas.hold()
        answer = served.post("/v1/chat/completions", TALK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        served.replicas.wait_idle()


def test_a_reader_that_takes_nothing_is_left(tmp_path: Path) -> None:
    script = lambda tokenizer: saying(tokenizer, "x" * 100_000)  # noqa: E731
    with loopback(tmp_path, script, ["limits.stall_s=0.2"]) as served:
        served.replicas.context = 1 << 20
        body = TALK | {"stream": True, "n": 16}
        connection = connected(served, body, "/v1/chat/completions")
        served.replicas.wait_until(lambda: bool(served.replicas.asked))
        served.replicas.wait_idle()
        assert served.replicas.cancelled
        connection.close()


def test_at_the_end_streams_finish_and_new_requests_are_503(served: Loopback) -> None:
    stream = connected(served, TALK | {"stream": True}, "/v1/chat/completions")
    served.replicas.step()
    until(stream, b"data: ")
    with served.client() as client:
        assert client.get("/health").status_code == 200
        served.endpoint.closing = True
        answer = client.post("/v1/chat/completions", json=TALK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "closing")
        assert client.get("/health").status_code == 503
    served.stop()
    served.replicas.go()
    told = until(stream, b"data: [DONE]\n\n")
    assert b'"finish_reason":"stop"' in told and b'"error"' not in told
    served.thread.join(20)
    assert not served.thread.is_alive()


def test_what_runs_at_the_end_of_the_drain_is_told_so(tmp_path: Path) -> None:
    with loopback(tmp_path, settings=["drain_s=0.2"]) as served:
        served.replicas.hold()
        stream = connected(served, TALK | {"stream": True}, "/v1/chat/completions")
        served.replicas.step()
        until(stream, b"data: ")
        served.stop()
        told = until(stream, b"data: [DONE]\n\n")
        assert b'data: {"error":{"message":"the server ends"' in told
        served.thread.join(20)
        assert not served.thread.is_alive()


def test_two_signals_end_it_at_once(served: Loopback) -> None:
    stream = connected(served, TALK | {"stream": True}, "/v1/chat/completions")
    served.replicas.step()
    until(stream, b"data: ")
    for _ in range(2):
        served.loop.call_soon_threadsafe(served.server.handle_exit, signal.SIGTERM, None)
    served.thread.join(20)
    assert not served.thread.is_alive() and served.server.killed
