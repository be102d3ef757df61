"""What a connection takes of heads and bodies, byte by byte."""

import json
import socket
from pathlib import Path

import pytest
from endpoints import KEY, NAME, loopback

LIMIT = 4 << 10  # of a head
SETTINGS = ["limits.header_kb=4"]


def ask(blanks: int, close: bool = True) -> bytes:
    """A whole request, so many blanks in its body, which are no tokens."""
    talk = {"model": NAME, "messages": [{"role": "user", "content": "a"}]}
    body = json.dumps(talk).encode() + b" " * blanks
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    )
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{'Connection: close' if close else 'X-A: b'}\r\n\r\n".encode() + body


def told(port: int, sent: bytes) -> bytes:
    """All that is answered to what is sent at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_a_body_that_comes_with_its_head_is_not_counted_as_head(tmp_path: Path) -> None:
    with loopback(tmp_path, settings=SETTINGS) as running:
        assert told(running.port, ask(3 * LIMIT)).startswith(b"HTTP/1.1 200 ")
        # Two requests of one connection, sent at once.
        both = told(running.port, ask(LIMIT, close=False) + ask(LIMIT))
        assert both.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["without an end", "whole"])
def test_a_head_over_the_limit_is_refused(tmp_path: Path, end: bytes) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"a" * LIMIT
    with loopback(tmp_path, settings=SETTINGS) as running:
        assert told(running.port, head + end).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("apart", [False, True], ids=["in one chunk", "in two"])
def test_a_head_behind_a_request_has_as_long_as_any_other(tmp_path: Path, apart: bool) -> None:
    """Not as long as a connection that asks nothing."""
    half = b"GET /health HTTP/1.1\r\nHost: 127.0"
    settings = ["limits.header_s=1", "limits.keep_alive_s=3600"]
    with (
        loopback(tmp_path, settings=settings) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection,
    ):
        connection.sendall(ask(0, close=False) + (b"" if apart else half))
        answer = connection.recv(1 << 16)
        if apart:
            connection.sendall(half)
        answer += b"".join(iter(lambda: connection.recv(1 << 16), b""))  # until it is closed
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 200 ")
