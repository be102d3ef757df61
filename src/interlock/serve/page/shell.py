"""The chat page: one document with its style and scripts in it, and the headers that guard it.

    page.html ── page.css, *.js in order ──> document, and the Content-Security-Policy for it

It loads nothing and asks nobody but the server that it came from. Only what stands in it runs:
the policy names the digests of its style and of its script. It holds no secret, so it needs no key;
the visitor's comes in the URL's fragment, which is not sent.
"""

import base64
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent
_SCRIPTS = ("basics.js", "model.js", "conversation.js")


class ChatPage(NamedTuple):
    """What is sent for it."""

    document: bytes
    headers: dict[str, str]


@cache
def chat_page() -> ChatPage:
    """Read once."""
    style, script = _read("page.css"), "".join(map(_read, _SCRIPTS))
    document = _read("page.html").replace("{{style}}", style).replace("{{script}}", script)
    policy = [
        "default-src 'none'",
        f"script-src {_digest(script)}",
        f"style-src {_digest(style)}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return ChatPage(document.encode(), headers)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
