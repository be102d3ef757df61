"""A process's end of the talk with whoever started it.

    def serve(channel: Channel) -> None:          # what a module must have to be started
        while (message := channel.receive()) is not None:
            channel.send(answer(message))

Standard library only: the interpreter is that of the process's own environment.
"""

import socket
import threading
from typing import BinaryIO, Protocol

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


class PipeChannel:
    """See Channel. Two streams, as a remote shell gives them."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Of what is read."""
        return self._source.fileno()

    def receive(self) -> bytes | None:
        length = self._source.read(HEADER.size)
        if len(length) < HEADER.size:
            return None
        (size,) = HEADER.unpack(length)
        message = self._source.read(size)
        return message if len(message) == size else None

    def send(self, message: bytes) -> None:
        with self._sending:
            self._sink.write(header(message))
            self._sink.write(message)
            self._sink.flush()
