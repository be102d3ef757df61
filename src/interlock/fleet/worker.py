"""The process of a worker on this machine: `python -m interlock.fleet.worker MODULE`.

    stdin (one end of a socket pair) ──connect──> Channel ──> MODULE.serve(channel)
    stdout, stderr ──> the worker's log

The worker does not outlive its coordinator, busy or stopped; what it started does not outlive the
worker. A process that opens a session of its own escapes. Imports the standard library only: the
interpreter is that of the worker's own environment.
"""

import ctypes
import importlib
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress

HEADER = struct.Struct(">Q")  # a frame is its length in bytes, then the message
MAX_MESSAGE_BYTES = 1 << 30

_GRACE_S = 5.0  # for `serve` to return once the coordinator is gone
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    (module,) = sys.argv[1:]
    channel = connect()
    code = 0
    try:
        importlib.import_module(module).serve(channel)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # waits neither for threads nor for exit handlers: both have been seen to hang


def connect() -> "SocketChannel":
    """Take the socket away from stdin and tie this process to its coordinator."""
    try:
        link = socket.socket(fileno=os.dup(0))
    except OSError:
        raise SystemExit("a worker is started by a fleet, not by hand") from None
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    if sys.platform == "linux":
        _die_with_coordinator(link)
        _leave_guard(link)
    return SocketChannel(link)


class SocketChannel:
    """Frames over the socket. A thread reads ahead, so that the end is noticed at once."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="fleet-reader", daemon=True).start()

    def receive(self) -> bytes | None:
        message = self._messages.get()
        if message is None:
            self._messages.put(None)
        return message

    def send(self, message: bytes) -> None:
        """Raises OSError when the coordinator is gone."""
        assert len(message) <= MAX_MESSAGE_BYTES, "a message of more than 1 GiB"
        with self._sending:
            self._link.sendall(HEADER.pack(len(message)))
            self._link.sendall(message)

    def _read(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                (length,) = HEADER.unpack(self._exactly(HEADER.size))
                self._messages.put(self._exactly(length))
        self._messages.put(None)
        time.sleep(_GRACE_S)
        os.killpg(0, signal.SIGKILL)

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._link.recv_into(view)
            if count == 0:
                raise EOFError
            view = view[count:]
        return bytes(data)


def _die_with_coordinator(link: socket.socket) -> None:
    """Have the kernel kill us when the thread that started us ends: SIGKILL reaches the stopped."""
    _on_death_of_parent(signal.SIGKILL)
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    coordinator = struct.unpack("3i", credentials)[0]
    if os.getppid() != coordinator:
        raise SystemExit(
            "the coordinator is gone, or `python` is a script that starts Python without exec"
        )


def _leave_guard(link: socket.socket) -> None:
    """Fork a process that kills our group when we are dead, whoever killed us.

    It has a group of its own: what stops or kills the worker's group leaves it alone.
    """
    worker = os.getpid()
    guard = os.fork()
    if guard:
        os.setpgid(guard, guard)  # not the guard itself: it could be stopped before it does
        return
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        link.close()
        os.closerange(0, 3)
        _on_death_of_parent(signal.SIGUSR1)
        if os.getppid() == worker:
            signal.sigwait({signal.SIGUSR1})
        os.killpg(worker, signal.SIGKILL)
    finally:
        os._exit(0)


def _on_death_of_parent(number: signal.Signals) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    main()
