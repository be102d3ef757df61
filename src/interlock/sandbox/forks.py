"""Every answer in a fork of its own, so that what one does to its process meets no other.

    apart(work) ── fork ──> bare: changes no file, starts nothing, signals none ── work() ──> bytes
         └── deadline, end ──> SIGKILL

For a process that is in a sandbox already and has loaded what it needs: a fork takes a millisecond,
loading again would take seconds. The fork shares nothing with it that can be written to.
"""

import os
import resource
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from interlock.processes.deadline import ProcessDeadline
from interlock.sandbox import seccomp

_PIECE_BYTES = 1 << 16


class NoAnswer(Exception):
    """The fork gave no answer; the message is one line that says why. Never reaches a user."""


class AnswerLate(NoAnswer):
    """Not in time."""

    def __init__(self, deadline: ProcessDeadline) -> None:
        super().__init__(f"no answer within {deadline}")
        self.deadline = deadline


def apart(work: Callable[[], bytes], timeout_s: float, most: int) -> bytes:
    """What `work` returns, at most `most` bytes, computed in a fork.

    `timeout_s` is of the fork's own time where the sandbox has a /proc, else of all time.
    What was computed there may have been tampered with by whoever wrote what `work` looks at.
    Raises NoAnswer, and OSError when no fork can be made, which is nobody's fault.
    """
    seccomp.hide_memory()  # the fork is another process of the same user
    told, tell = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(told)
        os.close(tell)
        raise
    if child == 0:
        _work(work, tell, int(timeout_s) + 1)
    os.close(tell)
    try:
        answer = _heard(told, ProcessDeadline(timeout_s, [child]), most)
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not answer:
        raise NoAnswer(f"signal {-code}" if code < 0 else f"exit code {code}")
    return answer


def _work(work: Callable[[], bytes], tell: int, cpu_s: int) -> NoReturn:
    try:
        seccomp.die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(nowhere, file)
        os.closerange(3, tell)
        os.closerange(tell + 1, 1 << 16)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        seccomp.install(seccomp.program(alone=True, bare=True))
        data = memoryview(work())
        while data:
            data = data[os.write(tell, data) :]
    finally:
        os._exit(1)  # an answer that came whole is one, however it ended


def _heard(told: int, deadline: ProcessDeadline, most: int) -> bytes:
    """All that is written until the other side is closed."""
    found = b""
    while True:
        while not select.select([told], [], [], deadline.left)[0]:
            if deadline.over:
                raise AnswerLate(deadline)
        piece = os.read(told, _PIECE_BYTES)
        found += piece
        if len(found) > most:
            raise NoAnswer(f"said more than {most:,} bytes")
        if not piece:
            return found
