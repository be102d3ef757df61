"""Kills what a process started, and removes its scratch, when it is gone, whatever ended it.

    parent ──"+group", "-group"──> reaper, its own process ── parent is dead ──> SIGKILL to each
           ──"+path", "-path"────>                                               rmtree of each

One per process that starts others, started before the first. It kills process groups from outside,
so it reaches a child that is stopped, hangs in its first import or holds its interpreter, and what
the child started. The kernel's own notice to a child (PR_SET_PDEATHSIG) reaches none that has not
asked for it yet, and comes when the *thread* ends that started the child. A child of which the
parent came to say nothing is known by a variable in its environment.

As a script it imports the standard library only, and nothing of site-packages.
"""

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LOOK_S = 0.5  # between two looks at the parent where the kernel gives no notice
_PIECE_BYTES = 1 << 16
_MARK = "INTERLOCK_STARTED_BY"
_NEEDED = ("LD_LIBRARY_PATH", "PYTHONHOME")  # by the interpreter; nothing that is secret
_TRIES = 50  # to remove what processes that are just dying still write into
_TRY_S = 0.1


class Reaper:
    """The parent's side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._name = secrets.token_hex(16)
        self._known: set[int | Path] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def expect(self) -> dict[str, str]:
        """To be called before a process is started. The variable that it is to be given.

        Raises OSError.
        """
        with self._lock:
            self._forget_those_of_a_parent()
            if self._process is None:
                self._start()
            return {_MARK: self._name}

    def add(self, what: int | Path) -> None:
        """Have a process group killed, or a directory removed, when this process is gone.

        Raises OSError.
        """
        with self._lock:
            self._forget_those_of_a_parent()
            self._known.add(what)
            if self._process is None or not self._tell(f"+{what}\0"):
                self._start()

    def remove(self, what: int | Path) -> None:
        """Of a group, before its leader is reaped: afterwards the number may be another's."""
        with self._lock:
            self._forget_those_of_a_parent()
            self._known.discard(what)
            self._tell(f"-{what}\0")

    def _start(self) -> None:
        if self._process is not None:  # one that does not listen would kill what it once heard of
            self._process.kill()
            self._process.wait()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), self._name],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _NEEDED if name in os.environ},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._tell("".join(f"+{what}\0" for what in self._known))

    def _tell(self, words: str) -> bool:
        """Whether it was told; it is not when somebody killed it."""
        if self._process is None:
            return False
        assert self._process.stdin is not None
        said = os.fsencode(words)
        try:
            return self._process.stdin.write(said) == len(said)
        except OSError:
            return False

    def _forget_those_of_a_parent(self) -> None:
        """After a fork without exec: the reaper inherited is the parent's."""
        if self._owner != os.getpid():
            self._begin()


def watch(parent: int, name: str) -> None:
    """The reaper's side: until the parent is dead, or wants nothing any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for all of a service; it goes last
    known: set[bytes] = set()
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
                if not known:
                    return
            said = _heard(said + piece, known)
    os.set_blocking(0, False)
    with suppress(BlockingIOError):
        while piece := os.read(0, _PIECE_BYTES):
            said = _heard(said + piece, known)
    _kill([int(what) for what in known if what.isdigit()], name)
    for what in known:
        if not what.isdigit():
            _remove(os.fsdecode(what))


def _heard(said: bytes, known: set[bytes]) -> bytes:
    """Take in all whole words; what is left over."""
    *words, rest = said.split(b"\0")
    for word in words:
        known.add(word[1:]) if word[:1] == b"+" else known.discard(word[1:])
    return rest


def _kill(groups: list[int], name: str) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for pid in _marked(f"{_MARK}={name}".encode()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _marked(mark: bytes) -> Iterator[int]:
    """The processes with this variable; none where there is no /proc."""
    for variables in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or gone
            if mark in variables.read_bytes().split(b"\0"):
                yield int(variables.parent.name)


def _remove(directory: str) -> None:
    """Follows no links (rmtree)."""
    for _ in range(_TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(_TRY_S)


def _notice_of(parent: int) -> int | None:
    """A file that is ready when the parent is dead; None where there is no such thing."""
    if sys.platform == "linux":
        with suppress(OSError):  # before Linux 5.3, or it is dead already
            return os.pidfd_open(parent)
    return None


reaper = Reaper()  # this process's

if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
