"""Workers as processes on this machine, each with its own interpreter.

    start ──> socket pair ──> Popen([python, "-m", "interlock.fleet.worker", module], stdin=one end)
    poll  ──> select on: the other ends │ the processes' ends (pidfd) │ wake

Nothing listens: a pair of connected sockets is made before the process is, and only that process
inherits the other end. So no stranger can connect, and no secret has to be handed over.

A worker is a session of its own and is killed as a group. The kernel kills it when the *thread*
that started it ends (see `worker`), hence the owner thread.
"""

import errno
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.fleet.worker import HEADER, MAX_MESSAGE_BYTES
from interlock.text import last_line

_REAP_S = 2.0  # from SIGKILL to the end of a process that is not stuck in a driver
_LONGEST_WAIT_S = 3600.0  # at a time: epoll takes no more than some weeks
_PIECE_BYTES = 1 << 18
_LOG_TAIL_BYTES = 1 << 14
_LOG_LINE_CHARACTERS = 300
# What makes this process one of several; an engine would take itself for another of them.
_TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class LocalFleet:
    """See `base.Fleet`. The thread that makes it must live as long as the workers."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._workers: dict[str, _Worker] = {}
        self._events: deque[Event] = deque()
        self._alarm, self._waker = socket.socketpair()
        self._alarm.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._alarm, selectors.EVENT_READ)

    def start(self, spec: Spec) -> None:
        assert threading.get_ident() == self._owner, "workers die with the thread that starts them"
        assert spec.name not in self._workers, spec.name
        python = interpreter(spec)
        try:
            worker = _Worker(spec, python)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                raise ConfigError(f"{_wrong_python(spec)}: not an executable file") from None
            self._events.append((spec.name, Lost(f"cannot be started: {error}")))
            return
        self._workers[spec.name] = worker
        for watched in worker.watched():
            self._selector.register(watched, selectors.EVENT_READ, worker)

    def send(self, name: str, message: bytes) -> None:
        assert len(message) <= MAX_MESSAGE_BYTES, "a message of more than 1 GiB"
        worker = self._workers.get(name)
        if worker is not None:
            worker.outgoing.append(memoryview(HEADER.pack(len(message)) + message))
            self._write(worker)

    def poll(self, timeout_s: float) -> list[Event]:
        deadline = time.monotonic() + timeout_s
        woken = False
        while True:
            wait_s = 0.0 if self._events else max(0.0, deadline - time.monotonic())
            for key, mask in self._selector.select(min(wait_s, _LONGEST_WAIT_S)):
                if key.fileobj is self._alarm:
                    self._alarm.recv(_PIECE_BYTES)
                    woken = True
                elif self._workers.get(key.data.name) is key.data:  # not lost a moment ago
                    self._attend(key, mask)
            if self._events or woken or time.monotonic() >= deadline:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def wake(self) -> None:
        with suppress(OSError):  # awake already, or closed
            self._waker.send(b"\0")

    def kill(self, name: str) -> None:
        worker = self._workers.get(name)
        if worker is not None:
            self._remove(worker)
        self._events = deque(event for event in self._events if event[0] != name)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        for name in list(self._workers):
            self.kill(name)
        self._selector.close()
        self._alarm.close()
        self._waker.close()

    def _attend(self, key: selectors.SelectorKey, mask: int) -> None:
        worker: _Worker = key.data
        if mask & selectors.EVENT_WRITE:
            self._write(worker)
        if key.fileobj is worker.link and mask & selectors.EVENT_READ:
            self._read(worker)
        if key.fileobj is not worker.link or worker.ended:
            self._lose(worker)

    def _write(self, worker: "_Worker") -> None:
        worker.write()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outgoing else 0)
        if self._selector.get_key(worker.link).events != events:
            self._selector.modify(worker.link, events, worker)

    def _read(self, worker: "_Worker") -> bool:
        messages = worker.read()
        self._events.extend((worker.name, message) for message in messages or [])
        return messages is not None

    def _lose(self, worker: "_Worker") -> None:
        worker.kill()
        while not worker.ended and self._read(worker):
            pass
        self._remove(worker)
        self._events.append((worker.name, Lost(worker.epitaph())))

    def _remove(self, worker: "_Worker") -> None:
        del self._workers[worker.name]
        for watched in worker.watched():
            self._selector.unregister(watched)
        worker.end()


class _Worker:
    """One process and the bytes on their way to and from it."""

    def __init__(self, spec: Spec, python: str) -> None:
        """Raises OSError."""
        self.name = spec.name
        self.outgoing: deque[memoryview] = deque()
        self.ended = False  # the other end is closed, or of no more use
        self.fault: str | None = None  # what it did to the protocol
        self._incoming = bytearray()
        self._log = spec.log
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        self.link, theirs = socket.socketpair()
        try:
            with theirs, open(spec.log, "ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [python, "-P", "-m", "interlock.fleet.worker", spec.module],
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=log,
                    env=_environment(spec),
                    start_new_session=True,
                )
        except BaseException:
            self.link.close()
            raise
        self.link.setblocking(False)
        # A child that the worker forked may hold the other end: only the process's own end is sure.
        self._pidfd: int | None = None
        if sys.platform == "linux":
            with suppress(OSError):  # before Linux 5.3
                self._pidfd = os.pidfd_open(self._process.pid)

    def watched(self) -> list[socket.socket | int]:
        return [self.link] if self._pidfd is None else [self.link, self._pidfd]

    def write(self) -> None:
        """One write of what waits; that the worker is gone is found out by reading."""
        try:
            while self.outgoing:
                view = self.outgoing.popleft()
                sent = self.link.send(view)
                if sent < len(view):
                    self.outgoing.appendleft(view[sent:])
                    return
        except BlockingIOError:
            self.outgoing.appendleft(view)
        except OSError:
            self.outgoing.clear()

    def read(self) -> list[bytes] | None:
        """The messages that one read completes. None: there is nothing, or nothing more to come."""
        try:
            piece = self.link.recv(_PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        self.ended = not piece
        self._incoming += piece
        return list(self._frames()) if piece else None

    def _frames(self) -> Iterator[bytes]:
        while len(self._incoming) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._incoming)
            if length > MAX_MESSAGE_BYTES:
                self.fault = f"sent a frame of {length / 1e9:.1f} GB"
                self.ended = True
                return
            end = HEADER.size + length
            if len(self._incoming) < end:
                return
            with memoryview(self._incoming) as view:
                message = bytes(view[HEADER.size : end])
            del self._incoming[:end]
            yield message

    def kill(self) -> None:
        """The leader is not reaped yet, so that its number still names its group."""
        with suppress(ProcessLookupError, PermissionError):  # what macOS says of the dead
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.link.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        # One that is stuck in a driver is reaped by a later Popen.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)

    def epitaph(self) -> str:
        """How it ended, in one line."""
        code = self._process.returncode
        if self.fault is not None:
            return self.fault
        if code is None:
            return "does not die: stuck in the kernel"
        if code < 0:
            return f"signal {-code}"
        return f"exit code {code}: {last_words(self._log, self._log_start)}".removesuffix(": ")


def last_words(log: Path, start: int) -> str:
    """The last line of the log beyond byte `start` that is not empty, as plain text."""
    with suppress(OSError), open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _LOG_TAIL_BYTES))
        return last_line(file.read().decode(errors="replace"), _LOG_LINE_CHARACTERS)
    return ""


def interpreter(spec: Spec) -> str:
    """The program that runs the worker. Raises ConfigError when there is none."""
    if spec.python is None:
        return sys.executable
    path = shutil.which(os.path.expanduser(spec.python))
    if path is None:
        raise ConfigError(f"{_wrong_python(spec)}: no such program; name an interpreter")
    return path


def _wrong_python(spec: Spec) -> str:
    return f"python = {spec.python!r} of generator {spec.name!r}"


def _environment(spec: Spec) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
    return {"PYTHONFAULTHANDLER": "1", **ours, "PYTHONUNBUFFERED": "1", **spec.env}
