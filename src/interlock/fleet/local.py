"""Workers as processes, each with its own interpreter: many children, one selector.

On this machine, or on those that a remote shell reaches (`Spec.reach`).

start ──> Child (processes/child.py)
poll  ──> select on: the children's sockets │ their ends (pidfd) │ wake
"""

import errno
import os
import selectors
import shutil
import socket
import sys
from collections import deque
from contextlib import suppress

from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.processes.child import Child, inherited
from interlock.processes.deadline import Deadline
from interlock.text import error_line

_LONGEST_WAIT_S = 3600.0  # at a time: epoll takes no more than some weeks
_WAKES_BYTES = 1 << 16


class LocalFleet:
    """See `base.Fleet`."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._events: deque[Event] = deque()
        self._alarm, self._waker = socket.socketpair()
        self._alarm.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._alarm, selectors.EVENT_READ)

    def start(self, spec: Spec) -> None:
        assert spec.name not in self._children, spec.name
        python = interpreter(spec)
        try:
            child = Child(
                spec.module, inherited(spec.env), python=python, log=spec.log, reach=spec.reach
            )
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                raise ConfigError(f"{_wrong_python(spec)}: not an executable file") from None
            self._events.append((spec.name, Lost(f"cannot be started: {error_line(error)}")))
            return
        self._children[spec.name] = child
        for watched in child.watched():
            self._selector.register(watched, selectors.EVENT_READ, spec.name)

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        child = self._children.get(name)
        if child is not None:
            if reply_bytes is not None:
                child.limit = reply_bytes
            child.send(message)
            self._watch_writing(child)

    def poll(self, timeout_s: float) -> list[Event]:
        deadline = Deadline(timeout_s)
        woken = False
        while True:
            for child in self._children.values():
                child.bound_log()
            wait_s = 0.0 if self._events else min(deadline.left, _LONGEST_WAIT_S)
            for key, mask in self._selector.select(wait_s):
                if key.fileobj is self._alarm:
                    self._alarm.recv(_WAKES_BYTES)
                    woken = True
                elif key.data in self._children:  # not lost a moment ago
                    self._attend(key, mask)
            if self._events or woken or deadline.over:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def pid(self, name: str) -> int | None:
        child = self._children.get(name)
        return None if child is None else child.pid

    def wake(self) -> None:
        with suppress(OSError):  # awake already, or closed
            self._waker.send(b"\0")

    def kill(self, name: str) -> None:
        if name in self._children:
            self._remove(name)
        self._events = deque(event for event in self._events if event[0] != name)

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
        for name in list(self._children):
            self.kill(name)
        self._selector.close()
        self._alarm.close()
        self._waker.close()

    def _attend(self, key: selectors.SelectorKey, mask: int) -> None:
        name: str = key.data
        child = self._children[name]
        link = child.watched()[0]
        if mask & selectors.EVENT_WRITE:
            child.write()
            self._watch_writing(child)
        if key.fileobj is link and mask & selectors.EVENT_READ:
            self._events += ((name, message) for message in child.read() or ())
        if key.fileobj is not link or child.ended:
            self._events += ((name, message) for message in child.drain())
            self._events.append((name, Lost(self._remove(name))))

    def _watch_writing(self, child: Child) -> None:
        """Be told that the socket takes more, while there is more."""
        link = child.watched()[0]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.pending else 0)
        key = self._selector.get_key(link)
        if key.events != events:
            self._selector.modify(link, events, key.data)

    def _remove(self, name: str) -> str:
        """Kill it. How it ended."""
        child = self._children.pop(name)
        for watched in child.watched():
            self._selector.unregister(watched)
        return child.close()


def interpreter(spec: Spec) -> str:
    """The program that runs the worker. Raises ConfigError when there is none."""
    if spec.reach:
        return spec.python or "python3"
    if spec.python is None:
        return sys.executable
    path = shutil.which(os.path.expanduser(spec.python))
    if path is None:
        raise ConfigError(f"{_wrong_python(spec)}: no such program; name an interpreter")
    return path


def _wrong_python(spec: Spec) -> str:
    return f"python = {spec.python!r} of generator {spec.name!r}"
