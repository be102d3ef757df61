"""The id that every answer goes out with: the client's own, else the answer's, else a new one.

    request ──X-Request-Id, if it is well formed──┐
    the application ── headers ── x-request-id? ──┴──> x-request-id, request-id

The client's own is for what it writes down; it goes back to it, and into no log here.
"""

import re
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_ANTHROPIC = b"request-id"  # the same, where its clients look for it
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """Around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _given(scope["headers"])

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                others = [each for each in headers if each[0].lower() != HEADER]
                own = next((value for name, value in headers if name.lower() == HEADER), None)
                found = given or own or new_request_id()
                message = {**message, "headers": [*others, (HEADER, found), (_ANTHROPIC, found)]}
            await send(message)

        await self._app(scope, receive, named)


def new_request_id() -> bytes:
    """Of an answer that has none."""
    return b"req-" + secrets.token_hex(12).encode()


def _given(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The client's, unless it sent several, or something else than a name."""
    found = [value for name, value in headers if name == HEADER]
    return found[0] if len(found) == 1 and _WELL_FORMED.fullmatch(found[0]) else None
