"""Answers one message in a fork of this process, which inherits all that was imported.

    in_fork(MODULE, message) ── fork ──> MODULE.serve(channel), as a child's (entry.py) ──> answer
                └─ no answer: this process ends as the fork did

So whoever asked sees what he would see of a child that answered by itself: the signal, the exit
code, the last words. The fork is of this process's group, and ends with it. Before the first one
nothing may have been opened or computed: neither devices nor pools of threads survive a fork.
"""

import faulthandler
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from interlock.processes import entry
from interlock.processes.channel import SocketChannel

# Elsewhere system libraries abort in a process that was forked and not started anew.
FORKS = sys.platform == "linux"


def in_fork(module: str, message: bytes) -> bytes:
    """The first message with which `module` answers; the fork is gone afterwards."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()  # which tells the fork that this process is gone
        entry.run(module, SocketChannel(theirs))
    theirs.close()
    with ours:
        link = SocketChannel(ours)
        with suppress(OSError):  # it is gone
            link.send(message)
        answer = link.receive()
    if answer is not None:
        os.kill(pid, signal.SIGKILL)  # as a child that has answered: what it still does is nothing
    _, status = os.waitpid(pid, 0)
    if answer is None:
        _end_as(status)
    return answer


def _end_as(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        faulthandler.disable()  # the fork has said where it was
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # and left its memory
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
