"""One request to a service over HTTP: its whole answer, in time and not too long, or why not.

    exchange ── httpx2 ──> HttpAnswer: status, content
                 │ no connection, cut, late, too long, 408, 409, 425, 429, most of 5xx
                 └──> Passing: it may go well later, when the service says (Retry-After)

How often it is sent again, and for how long, is for whoever asks to say.
"""

import email.utils
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from interlock.processes.deadline import Deadline
from interlock.text import error_line

if TYPE_CHECKING:
    import httpx2

_TRANSIENT = frozenset({408, 409, 425, 429})
_FOR_GOOD = frozenset({501, 505})  # of the 5xx
_WORDS = 4096  # bytes of what a service says of a failure


class Passing(Exception):
    """A failure after which the same request may succeed; `pause_s`: what the service asked for."""

    def __init__(self, why: str, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


class OverlongAnswer(Passing):
    """More came than was allowed."""


class HttpAnswer(NamedTuple):
    """The whole answer of a service."""

    status: int
    content: bytes

    @property
    def words(self) -> str:
        """What it says of a failure: OpenAI's message, or whatever text there is."""
        text = self.content[:_WORDS].decode("utf-8", "replace")
        with suppress(ValueError, LookupError, TypeError):
            told = json.loads(text)
            text = str(told["error"]["message"] if "error" in told else told["message"])
        return text or "no word"


def exchange(
    client: "httpx2.Client",
    method: str,
    url: str,
    body: dict[str, Any] | None,
    seconds: float,
    most_bytes: int,
    given_up: Callable[[], bool] = lambda: False,
) -> HttpAnswer:
    """Send one request and read its answer, which may take `seconds` and have `most_bytes`.

    `given_up` is asked between the pieces of an answer. Raises Passing, and httpx2.InvalidURL or
    httpx2.HTTPError for what no other time mends.
    """
    import httpx2

    deadline, content = Deadline(seconds), bytearray()
    late = f"no whole answer within {seconds:.3g} s"
    try:
        with client.stream(method, url, json=body, timeout=seconds) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > most_bytes:
                    raise OverlongAnswer(f"it said more than {most_bytes:,} bytes")
                if deadline.over or given_up():
                    raise Passing(late)
    except httpx2.TimeoutException:
        raise Passing(late) from None
    except httpx2.TransportError as error:
        raise Passing(f"{type(error).__name__}: {error_line(error, 120)}") from None
    found = HttpAnswer(response.status_code, bytes(content))
    if found.status in _TRANSIENT or (found.status >= 500 and found.status not in _FOR_GOOD):
        pause_s = _asked_for(response.headers.get("retry-after"))
        raise Passing(f"HTTP {found.status}: {found.words}", pause_s)
    return found


def _asked_for(retry_after: str | None) -> float | None:
    """Seconds, of a number of them or of a date (RFC 9110, 10.2.3); None: neither is there."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", retry_after):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
