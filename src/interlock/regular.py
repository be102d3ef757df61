"""Reading a file that somebody named: a regular one, and no more than there is room for.

A pipe that nobody writes to would be waited for, and a device such as /dev/zero has no end.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """A regular file, to be read. Raises OSError as `open` does, and for anything else."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        told = "it is a pipe or a device; put what it gives into a file"
        raise OSError(errno.EINVAL, told, str(path))
    return file


def read_regular(path: Path, most: int | None = None) -> bytes:
    """All of a regular file. Raises OSError as above, and for more than `most` bytes."""
    with open_regular(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is longer than {most / 2**20:g} MB", str(path))
        return file.read()
