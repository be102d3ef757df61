"""What every page that a verb serves has in common: its document, its policy, and who may ask.

    page/*.html, *.css, *.js ──document──> one document, and the policy that lets only these run
    request ──Host──key──> the routes        (a key where others than this machine can ask)

Read-only or not, a page is asked under its own names alone (DNS rebinding), and one that writes
takes nothing that another site sent: see `guarded`.
"""

import base64
import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

COMMON_STYLE = Path(__file__).parent / "page" / "common.css"  # colours, buttons, what all have
_GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Document(NamedTuple):
    """What is sent for a page."""

    text: bytes
    policy: str

    def response(self) -> Response:
        headers = {"Content-Security-Policy": self.policy}
        return Response(self.text, media_type="text/html", headers=headers)


def document(html: Path, styles: Sequence[Path], scripts: Sequence[Path]) -> Document:
    """The page with its styles and scripts in it, in place of {{styles}} and {{scripts}}."""
    text = html.read_text(encoding="utf-8")
    parts = {
        "style": [path.read_text(encoding="utf-8") for path in styles],
        "script": [path.read_text(encoding="utf-8") for path in scripts],
    }
    for tag, contents in parts.items():
        whole = "".join(f"<{tag}>{content}</{tag}>" for content in contents)
        text = text.replace(f"{{{{{tag}s}}}}", whole)
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(map(_digest, parts['script']))}",
        f"style-src {' '.join(map(_digest, parts['style']))}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return Document(text.encode(), "; ".join(policy))


def guarded(app: Starlette, hosts: Sequence[str], key: str | None) -> None:
    """Let in who asks under one of these names, and, where there is a key, has that.

    What changes something comes as JSON, which no form of another site can send.
    """

    async def guard(request: Request, following: RequestResponseEndpoint) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0]
        if key is not None and not _holds(request.cookies.get(_cookie(key)), key):
            response = _enter(request, key)
        elif request.method != "GET" and kind != "application/json":
            response = Response("send JSON\n", 415)
        else:
            response = await following(request)
        response.headers.update(_GUARDS)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)


def _cookie(key: str) -> str:
    """Cookies know no ports: two pages of one machine have one each."""
    return f"interlock-{sha256(key.encode()).hexdigest()[:8]}"


def _holds(given: str | None, key: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), key.encode())


def _enter(request: Request, key: str) -> Response:
    """The key in the URL becomes a cookie, and leaves the address that is shown."""
    if request.url.path == "/" and _holds(request.query_params.get("key"), key):
        response: Response = RedirectResponse("/", status_code=303)
        response.set_cookie(_cookie(key), key, httponly=True, samesite="strict")
        return response
    return Response("give the key: /?key=…, as it was printed\n", 401)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
