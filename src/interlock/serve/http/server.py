"""Runs the application: listens, says where, drains at the first signal, ends at the second.

SIGTERM ──> no new connection, 503 for new requests ──streams end, or drain_s is over──> exit 0
        ──again──> now
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from interlock.serve.endpoint import Endpoint
from interlock.serve.http.connections import protocol_of

_LAST_WORDS_S = 5.0  # behind drain_s, for streams to say that they end here


class DrainingServer(uvicorn.Server):
    """uvicorn, with other ends."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint) -> None:
        limits = endpoint.settings.limits
        drain_s = endpoint.settings.drain_s
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_of(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # ours says more, and no query of a URL
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=int(drain_s + _LAST_WORDS_S) + 1,
            )
        )
        self._endpoint, self._drain_s = endpoint, drain_s
        self.killed = False  # a second signal came

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = self.killed = True
        self.stop()

    def stop(self) -> None:
        """Take nothing more. On the loop's thread, or in a signal handler."""
        self._endpoint.closing = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without raising them again at the end: it is a good end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and what still runs at the end of drain_s is told so."""
        reason = "the server ends"
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._endpoint.end_all, reason)
        await super().shutdown(sockets)
        timer.cancel()
