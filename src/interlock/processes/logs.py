"""What a process prints, in a file of bounded size: its last lines are what anybody reads."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_MOST_BYTES = 32 << 20
_TAIL_BYTES = 1 << 14
_CUT = b"[what was printed before is cut off]\n"


def appended(path: Path) -> BinaryIO:
    """Open a log, its owner's own, to be appended to; a symbolic link is not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "a+b")


def tail(log: BinaryIO, start: int) -> str:
    """The end of what was written to a log from byte `start` on."""
    return _end(log, start).decode(errors="replace")


def cut(log: BinaryIO) -> bool:
    """Whether the log had grown too long, and now holds its end alone."""
    if os.fstat(log.fileno()).st_size <= _MOST_BYTES:
        return False
    end = _end(log, 0)
    with suppress(OSError):  # a full disk takes the end of what was printed, and nothing else
        os.ftruncate(log.fileno(), 0)
        os.write(log.fileno(), _CUT + end)
    return True


def _end(log: BinaryIO, start: int) -> bytes:
    file = log.fileno()
    with suppress(OSError):  # pread: a child shares the file's offset
        at = max(start, os.fstat(file).st_size - _TAIL_BYTES)
        return os.pread(file, _TAIL_BYTES, at)
    return b""
