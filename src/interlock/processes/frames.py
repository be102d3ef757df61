"""Messages on a stream of bytes: a frame is the message's length in 8 bytes, then the message.

Whoever reads says how long a message may be, and a longer one is refused by its header: what is
held in memory is bounded by what was asked for, not by what somebody sends.
"""

import struct

HEADER = struct.Struct(">Q")
MAX_MESSAGE_BYTES = 1 << 30  # however much was asked for


def header(message: bytes) -> bytes:
    """What goes before a message in its frame."""
    assert len(message) <= MAX_MESSAGE_BYTES, "a message of more than 1 GiB"
    return HEADER.pack(len(message))


def too_long(length: int, limit: int) -> str:
    """What to say of a message that is."""
    return f"sent a message of {length:,} bytes, where {limit:,} are the most"


class FrameReader:
    """Makes messages of pieces of a stream as they come.

    `limit` is the longest message in bytes. It may be changed at any time, and counts for frames
    that begin to be read from then on. `fault` says what is wrong with the stream, once something
    is; nothing is read after that.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.fault: str | None = None
        self._held = bytearray()
        self._length: int | None = None  # of the message that is on its way

    def feed(self, piece: bytes) -> list[bytes]:
        """The messages that `piece` completes, in order."""
        self._held += piece
        found: list[bytes] = []
        while self.fault is None and (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> bytes | None:
        if self._length is None:
            if len(self._held) < HEADER.size:
                return None
            (length,) = HEADER.unpack_from(self._held)
            limit = min(self.limit, MAX_MESSAGE_BYTES)
            if length > limit:
                self.fault = too_long(length, limit)
                self._held.clear()
                return None
            del self._held[: HEADER.size]
            self._length = length
        if len(self._held) < self._length:
            return None
        with memoryview(self._held) as view:
            message = bytes(view[: self._length])
        del self._held[: self._length]
        self._length = None
        return message
