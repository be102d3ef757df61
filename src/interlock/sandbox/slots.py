"""A uid of its own for every sandbox, where we are root.

The kernel counts processes by uid and exempts root, so only a uid that nobody else uses keeps a
bomb in one sandbox from failing the start of another.
"""

import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from interlock.errors import SandboxError

_FIRST, _LAST = 61184, 65519  # what systemd too lends to services without a user of their own


class Slot:
    """A uid, lent as long as this is open; None where we are an ordinary user and keep our own.

    Two processes never hold the same: each is kept by a name that the kernel frees with its holder.
    """

    def __init__(self, reads: Iterable[Path] = ()) -> None:
        """`reads`: what must be readable; where not everybody may, the uid is that of who may."""
        self.uid: int | None = None
        self._held: socket.socket | None = None
        if os.geteuid() != 0:
            return
        self.uid = next(_owners(reads), None)
        if self.uid is not None:
            return
        self._held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        start = os.getpid()  # so that two runs seldom try the same
        for step in range(_LAST - _FIRST + 1):
            uid = _FIRST + (start + step) % (_LAST - _FIRST + 1)
            try:
                self._held.bind(f"\0interlock-sandbox-{uid}")
            except OSError:
                continue
            self.uid = uid
            return
        self.close()
        raise SandboxError("every uid for sandboxes is in use; are runs left over?")

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> "Slot":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _owners(paths: Iterable[Path]) -> Iterator[int]:
    """Whose the files and directories are, at and below `paths`, that not everybody may read."""
    for path in paths:
        for folder, _, names in os.walk(path):
            for each in (folder, *(os.path.join(folder, name) for name in names)):
                with suppress(FileNotFoundError):  # gone meanwhile
                    found = os.lstat(each)
                    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
                    if not stat.S_ISLNK(found.st_mode) and found.st_mode & needed != needed:
                        yield found.st_uid
