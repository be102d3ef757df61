"""Another process, and the talk with it: the one way to start, ask and kill one.

    Child(module, env)    socket pair ──> python -m interlock.processes.entry module
    ask(message, …)       send, receive ──> bytes │ ChildLate, ChildEnded, ChildGarbage
    take(most)            the same without waiting; `wait` waits for any of several
    watched, write, read  the pieces, for a selector (fleet/local.py)

Nothing listens: a pair of connected sockets is made before the process is, and only that process
inherits the other end. So no stranger can connect, and no secret has to be handed over. A child is
a session of its own and is killed as a group, by the reaper too when this process is gone. A
process that opens a session of its own escapes, until then.

Every wait has a deadline, in time that the child has for itself (deadline.py), and every message a
limit: what a child may send is bounded by what it was asked for.
"""

import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from interlock.processes import logs
from interlock.processes.deadline import Deadline, ProcessDeadline
from interlock.processes.frames import FrameReader, header
from interlock.processes.reaper import reaper
from interlock.processes.spins import few_spins
from interlock.text import last_line

UNASKED_BYTES = 1 << 20  # of a message that was not asked for: a sign of life, a failure

_REAP_S = 2.0  # from SIGKILL to the end of a process that is not stuck in a driver
_DRAIN_S = 1.0
_PIECE_BYTES = 1 << 18
_LINE_CHARACTERS = 300
_LOOK_S = 1.0  # between two looks at what the children print
# What makes this process one of several; an engine would take itself for another of them.
_TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

# What a process needs to start, and to read text and the clock as we do.
_BARE = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TZ")


class ChildError(Exception):
    """The child gives no answer; the message is one line that says why. Never reaches a user."""


class ChildLate(ChildError):
    """It has not answered in time. It is left alone: whoever asked decides."""

    def __init__(self, deadline: ProcessDeadline) -> None:
        super().__init__(f"no answer within {deadline}")
        self.deadline = deadline


class ChildEnded(ChildError):
    """It is gone, and with it what was left of its group."""


class ChildGarbage(ChildError):
    """It sent what it was not asked for. It has been killed."""


class Child:
    """One process and the bytes on their way to and from it. For one thread at a time."""

    def __init__(
        self,
        module: str,
        env: Mapping[str, str],
        *,
        python: str = sys.executable,
        log: Path | None = None,
        before: Sequence[str] = (),
        inherited: Sequence[int] = (),
        reach: Sequence[str] = (),
    ) -> None:
        """Start `module`, whose `serve(channel)` does the work; do not wait for it.

        `before` is a command that runs the command which follows it, with the files `inherited`.
        `reach` is one that runs it on another machine (ssh HOST), where `python` is; it carries
        standard input and output. A shell there may read the words of `python` and `module`.
        `env` is its whole environment (see `inherited`); `log` is appended what it prints, None:
        that is kept in a nameless file, for its last words. Raises OSError.
        """
        self.ended = False  # its end of the socket is closed, or of no more use
        self._outgoing: deque[memoryview] = deque()
        self._incoming = FrameReader(UNASKED_BYTES)
        self._inbox: deque[bytes] = deque()  # of `take`
        self._received = 0  # bytes
        self._epitaph: str | None = None
        self._last_words = ""
        self._log: BinaryIO
        if log is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        else:
            self._log = logs.appended(log)
        self._log_start = os.fstat(self._log.fileno()).st_size
        try:
            entry = f"interlock.processes.{'stdio' if reach else 'entry'}"
            command = [*reach, *before, python, "-P", "-m", entry, module]
            self._start(command, env, inherited, speaks=bool(reach))
        except BaseException:
            self._log.close()
            raise

    def _start(
        self, command: list[str], env: Mapping[str, str], inherited: Sequence[int], speaks: bool
    ) -> None:
        """`speaks`: its messages come on standard output, not on what its input is."""
        self._link, theirs = socket.socketpair()
        try:
            with theirs:
                # What may be on its way when the child is dead.
                self._held_bytes = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno() if speaks else self._log,
                    stderr=self._log,
                    env={**env, **reaper.expect()},
                    pass_fds=inherited,
                    start_new_session=True,
                )
            self._pidfd: int | None = None
            try:
                reaper.add(self.pid)
            except BaseException:
                self.kill()
                self._process.wait(_REAP_S)
                raise
        except BaseException:
            self._link.close()
            raise
        self._link.setblocking(False)
        # What the child forked may hold the other end: only the process's own end is sure.
        if sys.platform == "linux":
            with suppress(OSError):  # before Linux 5.3
                self._pidfd = os.pidfd_open(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def limit(self) -> int:
        """Bytes of the longest message that it may send from now on."""
        return self._incoming.limit

    @limit.setter
    def limit(self, most: int) -> None:
        self._incoming.limit = most

    def ask(self, message: bytes, timeout_s: float, most: int) -> bytes:
        """Send a message and wait for the next one, of at most `most` bytes.

        `timeout_s` is of time that it has for itself (ProcessDeadline). Raises ChildLate,
        ChildEnded and ChildGarbage, also when it had said something unasked.
        """
        self._inbox += self.read() or ()
        if self._inbox:
            self.close()
            raise ChildGarbage("said something before it was asked")
        self.send(message)
        return self.receive(timeout_s, most)

    def receive(self, timeout_s: float, most: int) -> bytes:
        """Wait for the next message; as `ask`."""
        deadline = ProcessDeadline(timeout_s, [self.pid])
        while (message := self.take(most)) is None:
            if deadline.over:
                raise ChildLate(deadline)
            wait([self], deadline)
        return message

    def take(self, most: int) -> bytes | None:
        """The next message if it is here, without waiting; else as `ask`."""
        self.limit = most
        self.write()
        if not self._inbox:
            self._inbox += self.drain() if self._is_dead() else self.read() or ()
        if self._inbox:
            return self._inbox.popleft()
        if self._incoming.fault is not None:
            raise ChildGarbage(self.close())
        if self.ended:
            raise ChildEnded(self.close())
        return None

    def send(self, message: bytes) -> None:
        """Queue a message, and write what the socket takes."""
        self._outgoing += memoryview(header(message)), memoryview(message)
        self.write()

    @property
    def pending(self) -> bool:
        """Whether there is more to be written than the socket took."""
        return bool(self._outgoing)

    @property
    def was_killed(self) -> bool:
        """By SIGKILL: from outside, or by a machine without memory, and by no fault of its own."""
        return self._process.returncode == -signal.SIGKILL

    def watched(self) -> list[socket.socket | int]:
        """The files to be selected on, the link first. Ready to be read: see `read`, `ended`."""
        return [self._link] if self._pidfd is None else [self._link, self._pidfd]

    def write(self) -> None:
        """Write what waits; that the child is gone is found out by reading."""
        try:
            while self._outgoing:
                view = self._outgoing.popleft()
                sent = self._link.send(view)
                if sent < len(view):
                    self._outgoing.appendleft(view[sent:])
                    return
        except BlockingIOError:
            self._outgoing.appendleft(view)
        except OSError:
            self._outgoing.clear()

    def read(self) -> list[bytes] | None:
        """The messages that one read completes. None: there is nothing, or nothing more to come."""
        if self.ended:
            return None
        try:
            piece = self._link.recv(_PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        self._received += len(piece)
        messages = self._incoming.feed(piece)
        self.ended = not piece or self._incoming.fault is not None
        return messages if piece else None

    def drain(self) -> list[bytes]:
        """The last messages of a child that is dead; its group is killed.

        A process that it started may have escaped with the socket, and write into it for ever: no
        more is read than the socket could hold, and for no longer than a moment.
        """
        self.kill()
        deadline, most = Deadline(_DRAIN_S), self._received + self._held_bytes
        found: list[bytes] = []
        while self._received < most and not deadline.over:
            messages = self.read()
            if messages is None:
                break
            found += messages
        self.ended = True
        return found

    def kill(self) -> None:
        """SIGKILL to its group, whose number is its own until it is reaped."""
        if self._epitaph is None:
            with suppress(ProcessLookupError, PermissionError):  # what macOS says of the dead
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> str:
        """Kill and reap it. How it ended, in one line; the same again when it is closed already."""
        if self._epitaph is None:
            self.kill()
            self.ended = True
            self._link.close()
            if self._pidfd is not None:
                os.close(self._pidfd)
            reaper.remove(self.pid)
            # One that is stuck in a driver is reaped by a later Popen.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_S)
            self._last_words = self.last_words()
            self._log.close()
            self._epitaph = self._ending()
        return self._epitaph

    def last_words(self) -> str:
        """The end of what it printed since it was started, some pages at most."""
        if self._log.closed:
            return self._last_words
        return logs.tail(self._log, self._log_start)

    def forget_words(self) -> None:
        """What it has printed until now is none of its last words."""
        self._log_start = os.fstat(self._log.fileno()).st_size

    def bound_log(self) -> None:
        """Cut off all but the end of what it printed, once that is long. To be called often."""
        if not self._log.closed and logs.cut(self._log):
            self._log_start = 0

    def _ending(self) -> str:
        code = self._process.returncode
        if self._incoming.fault is not None:
            return self._incoming.fault
        if code is None:
            return "does not die: stuck in the kernel"
        if code < 0:
            return f"signal {-code}"
        words = last_line(self.last_words(), _LINE_CHARACTERS)
        return f"exit code {code}: {words}".removesuffix(": ")

    def _is_dead(self) -> bool:
        """Whether the process itself is, as far as can be told without reaping it."""
        if self._epitaph is not None:
            return True
        if self._pidfd is None:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))


def wait(children: Iterable[Child], deadline: Deadline) -> None:
    """Until one has sent something, takes more of what it is sent or has ended; briefly at most."""
    poll = select.poll()
    for child in children:
        child.bound_log()
        for watched in child.watched():
            poll.register(watched, select.POLLIN)
        if child.pending:
            poll.register(child.watched()[0], select.POLLIN | select.POLLOUT)
    poll.poll(math.ceil(min(deadline.left, _LOOK_S) * 1000))


def inherited(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment variables for a child, and `more`.

    Without those that make it one of several, with a traceback when a signal kills it, and with
    threads that spin little, also where our own were not told to.
    """
    ours = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
    return {
        **few_spins(),
        "PYTHONFAULTHANDLER": "1",
        **ours,
        "PYTHONUNBUFFERED": "1",
        **(more or {}),
    }


def bare() -> dict[str, str]:
    """Environment variables for a child that is to know none of our secrets, and to find us."""
    kept = {name: os.environ[name] for name in _BARE if name in os.environ}
    package = str(Path(__file__).parents[2])
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [package, kept.get("PYTHONPATH")]))}
