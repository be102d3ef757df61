"""HTTP/1.1 connections with limits that uvicorn leaves open: of heads, and of who takes nothing.

    bytes ──httptools──> head ──too long: 431, too slow: closed──> a request
    an answer ──> what the client does not take fills the buffer ──too long: aborted

A body's limits are kept where it is read (bodies.py).
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from interlock.config.serving import LimitSettings
from interlock.serve.http.refusals import Refusal
from interlock.serve.http.request_ids import new_request_id

_MOST_HEADERS = 100


def protocol_of(limits: LimitSettings) -> type[HttpToolsProtocol]:
    """The class of connections with these limits, as uvicorn takes it."""

    class Bounded(LimitedConnection):
        most_bytes = limits.header_kb << 10
        seconds = limits.header_s
        stall_s = limits.stall_s
        most = limits.connections

    return Bounded


class LimitedConnection(HttpToolsProtocol):
    """One connection of a client, with requests one after another.

    What is over a limit is answered once (send_400_response) and the connection closed; a head that
    is too slow, or an answer that is not taken, is closed without a word. Methods are called by
    uvicorn, asyncio and httptools, in their names; all in the event loop.
    """

    most_bytes: int  # of a line and its headers
    seconds: float  # for a head, from its first moment
    stall_s: float  # in which a full buffer is to be taken
    most: int  # connections

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._in_head, self._bytes, self._headers = True, 0, 0
        self._mixed = False  # not all that came last is of a head
        self._begun = False  # a head has, and has not ended
        self._refusal: Refusal | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the time of the first head; one connection too many is told 503."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.most:
            said = f"there are {self.most} connections; come again"
            self._refusal = Refusal(503, said, code="too_many_connections")
            self.send_400_response("")
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End both timers: nothing may call a connection that is no more."""
        self._end_timer()
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than it is sent: from now on it has `stall_s`."""
        super().pause_writing()
        self._end_stall()
        # To close it would wait for the buffer to be taken.
        self._stall = self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken what there was."""
        self._end_stall()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count what is of a head though the parser tells nothing of it."""
        if self._in_head and self._timer is None:
            self._begin_head()  # of the next request
        self._mixed = not self._in_head
        super().data_received(data)
        # Behind a whole request: a head that began in its chunk has as long as any other.
        if self._in_head and self._begun and self._timer is None:
            self._begin_head()
        # A header without an end is told to nobody, only kept.
        if self._in_head and not self._mixed and self.parser is not None:
            self._bytes += len(data)
            if self._bytes > self.most_bytes and not self.transport.is_closing():
                self._refuse_head()
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """A head begins, perhaps behind a whole request in the same bytes."""
        self._begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, whole."""
        super().on_header(name, value)
        self._headers += 1
        self._check_head(sum(len(key) + len(text) for key, text in self.headers))

    def on_headers_complete(self) -> None:
        """The head is in time and within its limits; the request begins."""
        self._in_head, self._mixed, self._begun = False, True, False
        self._end_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_head, self._bytes, self._headers = True, 0, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read as a request, in our words whatever the reason, and close.

        Args:
            msg: the parser's, told where no limit of ours is the reason.
        """
        refusal = self._refusal or Refusal(400, msg, code="invalid_http")
        body = refusal.body_for("")
        lines = [
            f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            f"x-request-id: {new_request_id().decode()}",
        ]
        head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _begin_head(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._too_slow)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _check_head(self, size: int) -> None:
        """What is raised here ends the parsing, and send_400_response is called."""
        if size > self.most_bytes or self._headers > _MOST_HEADERS:
            self._refuse_head()
            raise httptools.HttpParserError("the head is too long")

    def _refuse_head(self) -> None:
        said = f"line and headers are over {self.most_bytes} bytes or {_MOST_HEADERS} headers"
        self._refusal = Refusal(431, said, code="header_too_long")


_PHRASES = {
    400: "Bad Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
