"""Kills what a process started when that process is gone, whatever ended it.

    parent ──"+group", "-group"──> reaper, its own process ── parent is dead ──> SIGKILL to each

One per process that starts others, started with the first. It kills process groups from outside, so
it reaches a child that is stopped, hangs in its first import or holds its interpreter, and what the
child started. The kernel's own notice to a child (PR_SET_PDEATHSIG) reaches none that has not asked
for it yet, and comes when the *thread* ends that started the child.

As a script it imports the standard library only, and nothing of site-packages.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_LOOK_S = 0.5  # between two looks at the parent where the kernel gives no notice
_PIECE_BYTES = 1 << 16


class Reaper:
    """The parent's side."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, group: int) -> None:
        """Have a process group killed when this process is gone. Raises OSError."""
        with self._lock:
            self._forget_those_of_a_parent()
            self._groups.add(group)
            if self._process is None or not self._tell(f"+{group}\n"):
                self._start()

    def remove(self, group: int) -> None:
        """Before its leader is reaped: afterwards the number may be another's."""
        with self._lock:
            self._forget_those_of_a_parent()
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def _start(self) -> None:
        if self._process is not None:  # one that does not listen would kill what it once heard of
            self._process.kill()
            self._process.wait()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._tell("".join(f"+{group}\n" for group in self._groups))

    def _tell(self, words: str) -> bool:
        """Whether it was told; it is not when somebody killed it."""
        if self._process is None:
            return False
        assert self._process.stdin is not None
        try:
            return self._process.stdin.write(words.encode()) == len(words)
        except OSError:
            return False

    def _forget_those_of_a_parent(self) -> None:
        """After a fork without exec: the reaper inherited is the parent's."""
        if self._owner != os.getpid():
            self._owner, self._groups, self._process = os.getpid(), set(), None


def watch(parent: int) -> None:
    """The reaper's side: until the parent is dead, or wants nothing any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for all of a service; it goes last
    groups: set[int] = set()
    said = b""
    sources = [0]
    notice = _notice_of(parent)
    while os.getppid() == parent:
        waiting = [*sources, notice] if notice is not None else sources
        ready, _, _ = select.select(waiting, [], [], None if notice is not None else _LOOK_S)
        if notice in ready:
            break
        if 0 in ready:
            piece = os.read(0, _PIECE_BYTES)
            if not piece:
                sources.clear()
                if not groups:
                    return
            said = _heard(said + piece, groups)
    os.set_blocking(0, False)
    with suppress(BlockingIOError):
        while piece := os.read(0, _PIECE_BYTES):
            said = _heard(said + piece, groups)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _heard(said: bytes, groups: set[int]) -> bytes:
    """Take in all whole lines; what is left over."""
    *lines, rest = said.split(b"\n")
    for line in lines:
        group = int(line[1:])
        groups.add(group) if line[:1] == b"+" else groups.discard(group)
    return rest


def _notice_of(parent: int) -> int | None:
    """A file that is ready when the parent is dead; None where there is no such thing."""
    if sys.platform == "linux":
        with suppress(OSError):  # before Linux 5.3, or it is dead already
            return os.pidfd_open(parent)
    return None


if __name__ == "__main__":
    watch(int(sys.argv[1]))
