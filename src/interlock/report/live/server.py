"""Runs the server of a page: where it listens, who may ask, and when it ends."""

import ipaddress
import secrets
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from interlock.listening import bound


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: who comes before the server is up waits. Raises ConfigError."""
    made = bound(host, port)
    made.listen()
    return made


def new_key(host: str) -> str | None:
    """None where only this machine can ask."""
    return None if _is_loopback(host) else secrets.token_urlsafe(24)


def url_of(listener: socket.socket, host: str, key: str | None) -> str:
    port = listener.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?key={key}" if key else "")


def names_of(host: str, key: str | None) -> list[str]:
    """The Hosts under which a page is asked; with a key, any."""
    return ["localhost", "127.0.0.1", "[::1]", host, f"[{host}]"] if key is None else ["*"]


def run_server(app: Starlette, listener: socket.socket, *, beside: bool = False) -> None:
    """Until a signal, or, `beside` a process that trains, until its end of our standard input is
    closed, however it ended.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
    )
    if beside:

        def end() -> None:
            server.should_exit = True

        threading.Thread(target=_at_end_of_input, args=(end,), daemon=True).start()
    server.run([listener])


def _at_end_of_input(end: Callable[[], None]) -> None:
    sys.stdin.buffer.read()
    end()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
