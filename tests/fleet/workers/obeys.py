"""Does what it is told: each message is one line of Python, and its value is sent back."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from interlock.processes.frames import HEADER


def open_files() -> list[str]:
    """What each open file of this process is, but for the listing itself."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return sorted(found)


def child(seconds: float = 1000.0) -> int:
    return subprocess.Popen(["sleep", str(seconds)]).pid


def forked_child(session: bool = False) -> int:
    """A child that holds all that we hold, and may leave for a session of its own."""
    pid = os.fork()
    if pid == 0:
        if session:
            os.setsid()
        time.sleep(1000)
    return pid


def endless_child(channel) -> int:
    """One that has left for a session of its own, and sends messages for ever, a little later."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(0.3)
        while True:
            channel.send(b"still here")
    return pid


def hold_the_interpreter() -> None:
    """Busy in one C call for minutes: no other thread of this process runs."""
    _ = 9**9**9


def send_from_threads(channel, threads: int, each: int) -> None:
    def work(number: int) -> None:
        for index in range(each):
            channel.send(bytes([number, index]) * 100_000)

    workers = [threading.Thread(target=work, args=[number]) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def serve(channel) -> None:
    names = {**globals(), "channel": channel}
    while (line := channel.receive()) is not None:
        value = eval(line.decode(), names)
        channel.send(repr(value).encode())


__all__ = ["HEADER", "signal", "socket", "sys"]  # for the lines it is told
