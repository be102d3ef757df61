"""One request to a service over HTTP: its whole answer, in time and not too long, or why not.

    Service.exchange ── httpx2 ──> HttpAnswer: status, content
                         │ no connection, cut, late, too long, 408, 409, 425, 429, most of 5xx
                         └──> Passing: it may go well later, when the service says (Retry-After)

How often it is sent again, and for how long, is for whoever asks to say.
"""

import asyncio
import email.utils
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, NamedTuple

from interlock.text import error_line

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


class Service:
    """Sends requests, from any thread. Close it at the end.

    They run in a loop of their own, which ends each in time whatever it waits for: a client that
    blocks has a limit for every read, and headers can come byte by byte without an end.
    """

    def __init__(self, concurrent: int, headers: dict[str, str]) -> None:
        """At most `concurrent` requests at a time. No redirect is followed: the headers, a key
        among them, go where they were sent. Raises ImportError without httpx2.
        """
        import httpx2

        limits = httpx2.Limits(max_connections=concurrent)
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, follow_redirects=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._starting = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        """Requests that are still made fail, as what may pass."""
        with self._starting:
            if self._thread.is_alive():
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
            self._loop.close()

    def exchange(
        self,
        method: str,
        url: str,
        body: dict[str, Any] | None,
        seconds: float,
        most_bytes: int,
        given_up: Callable[[], bool] = lambda: False,
    ) -> HttpAnswer:
        """Send one request and read its answer, which may take `seconds` and have `most_bytes`.

        `given_up` is asked between the pieces of an answer. Raises Passing, and httpx2.InvalidURL
        or httpx2.HTTPError for what no other time mends.
        """
        import httpx2

        late = f"no whole answer within {seconds:.3g} s"
        with self._starting:
            if self.closed:
                raise Passing(late)
            if self._thread.ident is None:
                self._thread.start()
            asked = self._whole(method, url, body, seconds, most_bytes, given_up)
            answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return answer.result()
        except (TimeoutError, CancelledError, httpx2.TimeoutException):
            raise Passing(late) from None
        except httpx2.TransportError as error:
            raise Passing(f"{type(error).__name__}: {error_line(error, 120)}") from None

    async def _whole(
        self,
        method: str,
        url: str,
        body: dict[str, Any] | None,
        seconds: float,
        most_bytes: int,
        given_up: Callable[[], bool],
    ) -> HttpAnswer:
        content = bytearray()
        async with (
            asyncio.timeout(seconds),
            self._client.stream(method, url, json=body, timeout=None) as response,
        ):
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > most_bytes:
                    raise OverlongAnswer(f"it said more than {most_bytes:,} bytes")
                if given_up():
                    raise TimeoutError
        found = HttpAnswer(response.status_code, bytes(content))
        if found.status in _TRANSIENT or (found.status >= 500 and found.status not in _FOR_GOOD):
            pause_s = _asked_for(response.headers.get("retry-after"))
            raise Passing(f"HTTP {found.status}: {found.words}", pause_s)
        return found

    async def _end(self) -> None:
        begun = asyncio.all_tasks() - {asyncio.current_task()}
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        await self._client.aclose()


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
