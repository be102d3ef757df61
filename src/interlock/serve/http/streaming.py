"""Answers as server-sent events, and the watch over whoever reads them.

    Hearing ──chunks──> "data: {…}\\n\\n" ──> the client, until [DONE]
       ^─── leave: the connection is closed

The status is sent with the first chunk: until something was drawn a mistake still has its own.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from interlock.serve.http.refusals import Refusal, defect
from interlock.serve.listening import ClientGone, Hearing

log = logging.getLogger("interlock.serve")
DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

encode = msgspec.json.Encoder().encode


LastWords = Callable[[Refusal], bytes]  # what a stream ends with that fails


def event(tree: Any) -> bytes:
    """One event of a stream, as OpenAI's clients read it: it has no name."""
    return b"data: " + encode(tree) + b"\n\n"


def named_event(kind: str, tree: dict[str, Any]) -> bytes:
    """One event that has a name, which its data repeat as "type"."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind} | tree) + b"\n\n"


def error_and_done(refusal: Refusal) -> bytes:
    """The last words to OpenAI's clients, but for those of the Responses API."""
    return event(refusal.tree) + DONE


@asynccontextmanager
async def watching(receive: Receive, hearing: Hearing) -> AsyncIterator[None]:
    """`hearing` is left as soon as the client is gone, whatever is waited for inside."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        hearing.leave()

    task = asyncio.create_task(until_gone())
    try:
        yield
    finally:
        task.cancel()


class EventStream(Response):
    """Sends what `chunks` yields, the first of which was waited for already.

    What `chunks` raises is told as `last_words` writes it; `over` is called with it, or with None,
    in any case once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        chunks: AsyncIterator[bytes],
        hearing: Hearing,
        over: Callable[[Exception | None], None],
        headers: dict[str, str],
        last_words: LastWords,
    ) -> None:
        super().__init__(headers=_HEADERS | headers)
        del self.headers["content-length"]
        self._first, self._chunks, self._hearing = first, chunks, hearing
        self._over, self._last_words = over, last_words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: Exception | None = None
        try:
            async with watching(receive, self._hearing):
                start: dict[str, Any] = {"type": "http.response.start", "status": 200}
                await send(start | {"headers": self.raw_headers})
                failed = await self._send_all(send)
        except ClientGone:
            pass
        finally:
            self._over(failed)

    async def _send_all(self, send: Send) -> Exception | None:
        """-> what the answer failed by. Raises ClientGone."""
        part: dict[str, Any] = {"type": "http.response.body", "more_body": True}
        await send(part | {"body": self._first})
        failed: Exception | None = None
        try:
            async for chunk in self._chunks:
                await send(part | {"body": chunk})
        except ClientGone:
            raise
        except Exception as error:
            failed = error
            refusal = error if isinstance(error, Refusal) else defect()
            if refusal is not error:
                log.exception("an answer failed in mid-stream")
            await send(part | {"body": self._last_words(refusal)})
        await send({"type": "http.response.body", "body": b""})
        return failed
