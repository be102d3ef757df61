"""A process's end of the talk with whoever started it.

    def serve(channel: Channel) -> None:          # what a module must have to be started
        while (message := channel.receive()) is not None:
            channel.send(answer(message))

Standard library only: the interpreter is that of the process's own environment.
"""

import socket
import threading
from typing import Protocol

from interlock.processes.frames import HEADER, header


class Channel(Protocol):
    """Whole messages, in order. One thread receives; any may send."""

    def receive(self) -> bytes | None:
        """Wait for the next message. None: the other side is gone, and no more will come."""
        ...

    def send(self, message: bytes) -> None:
        """Hand a message over. Raises OSError when the other side is gone."""
        ...


class SocketChannel:
    """See Channel. Nothing is read ahead: what is not asked for waits at the sender."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self._link.fileno()

    def receive(self) -> bytes | None:
        length = self._exactly(HEADER.size)
        return None if length is None else self._exactly(HEADER.unpack(length)[0])

    def send(self, message: bytes) -> None:
        with self._sending:
            self._link.sendall(header(message))
            self._link.sendall(message)

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._link.recv_into(view)
            except OSError:
                return None
            if count == 0:
                return None
            view = view[count:]
        return bytes(data)
