"""What every request passes before anything of it is read: for us, from whom, with which key.

    request ──Host──Origin──key──draining──> the routes
                └──────┴─────┴──────┴──────> a Refusal

Nothing is open but what `OPEN` names, so a new route cannot forget its key.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from interlock.serve.http.keys import Keys
from interlock.serve.http.refusals import Refusal

# The page is a shell that holds nothing; its key comes in the fragment, which no server sees.
OPEN = frozenset({"/health", "/"})
ADMIN = "/admin"
_ASKER = "interlock.asker"  # in a scope: the name of the key


def asker(scope: Scope) -> str:
    """The name of the key that a request came with."""
    return str(scope.get(_ASKER, ""))


class Gate:
    """Around the whole application. `closing` is set once nothing more is taken."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        admin: Keys,
        hosts: Sequence[str],
        origins: Sequence[str],
    ) -> None:
        self._app, self._keys, self._admin = app, keys, admin
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Refusal as refusal:
            await answer_refusal(refusal, scope["path"], send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        host = _only(headers, b"host")
        if host is None or not self._for_us(_name(host)):
            raise Refusal(
                403, "this server does not answer for that Host; list it in hosts", code="host"
            )
        origin = _only(headers, b"origin")
        if origin is not None and not self._may_ask(origin, host):
            raise Refusal(
                403, "a page of that Origin may not ask; list it in origins", code="origin"
            )
        path: str = scope["path"]
        if path in OPEN:
            return
        keys = self._admin if path == ADMIN or path.startswith(f"{ADMIN}/") else self._keys
        name = keys.whose(_key(headers))
        if name is None:
            admin = keys is self._admin
            remedy = "start with --admin-keys FILE" if admin and not len(keys) else _REMEDY
            said = f"{'the admin' if admin else 'an API'} key is missing or wrong; {remedy}"
            told = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, said, code="invalid_api_key", headers=told)
        scope[_ASKER] = name

    def _for_us(self, name: str) -> bool:
        """An address is never another site's name, which is what rebinding needs."""
        return name in self._hosts or _is_address(name)

    def _may_ask(self, origin: str, host: str) -> bool:
        parts = urlsplit(origin)
        ours = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        return ours or origin.lower().rstrip("/") in self._origins


_REMEDY = "send it as Authorization: Bearer KEY"


async def answer_refusal(refusal: Refusal, path: str, send: Send) -> None:
    """The whole response, as ASGI messages."""
    body = refusal.body_for(path)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in refusal.headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
    await send(start | {"headers": raw})
    await send({"type": "http.response.body", "body": body})


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """A header that may stand there once. Raises Refusal when it does so twice."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise Refusal(400, f"the header {name.decode()} stands there twice", code="header")
    return found[0].decode("latin-1") if found else None


def _key(headers: list[tuple[bytes, bytes]]) -> bytes:
    """What was given as a key; b"" when nothing was, which is nobody's."""
    given = _only(headers, b"authorization")
    if given is None:
        return (_only(headers, b"x-api-key") or "").encode("latin-1")
    found = re.fullmatch(r"bearer +(\S+)", given, re.IGNORECASE)
    return found[1].encode("latin-1") if found else b""


def _name(host: str) -> str:
    """Without a port: "[::1]:8000" is "::1"."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]/@\s]+))(?::\d{1,5})?", host)
    return "" if found is None else (found[1] or found[2]).lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
