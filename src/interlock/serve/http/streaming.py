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


def event(tree: Any) -> bytes:
    return b"data: " + encode(tree) + b"\n\n"


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

    What `chunks` raises is told in one frame; `over` is called with it, or with None, in any case
    once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        chunks: AsyncIterator[bytes],
        hearing: Hearing,
        over: Callable[[Exception | None], None],
        headers: dict[str, str],
    ) -> None:
        super().__init__(headers=_HEADERS | headers)
        del self.headers["content-length"]
        self._first, self._chunks, self._hearing = first, chunks, hearing
        self._over = over

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
            await send(part | {"body": event(refusal.tree) + DONE})
        await send({"type": "http.response.body", "body": b""})
        return failed
