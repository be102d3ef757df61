"""The process of a child: `python -m interlock.processes.entry MODULE`.

    stdin (one end of a socket pair) ──> Channel ──> MODULE.serve(channel)
    stdout, stderr ──> the child's log

It ends when `serve` does, with exit code 1 when that raises. What kills it when its parent is gone
is outside (reaper.py), for it may hang in the very first import. Standard library only: the
interpreter is that of the child's own environment.
"""

import importlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from interlock.processes.channel import PipeChannel, SocketChannel

_GRACE_S = 2.0  # for `serve` to end by itself
_LOOK_MS = 500
# Its first kind is what closes when ssh's server lets go of one direction only.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP


def main() -> None:
    (module,) = sys.argv[1:]
    run(module, connect())


def run(module: str, channel: SocketChannel | PipeChannel) -> NoReturn:
    """Serve, and end the process; at the latest soon after the other side is gone."""
    threading.Thread(target=_end_with, args=[os.dup(channel.fileno())], daemon=True).start()
    code = 0
    try:
        importlib.import_module(module).serve(channel)
    except BaseException:
        code = 1
        with suppress(OSError):  # the disk is full
            traceback.print_exc()
    for stream in sys.stdout, sys.stderr:
        with suppress(OSError):
            stream.flush()
    os._exit(code)  # waits neither for threads nor for exit handlers: both have been seen to hang


def _end_with(link: int) -> None:
    """End, whatever is being imported or computed, soon after the other side is gone.

    The reaper does the same from outside; but it may not have heard of a child that is this young.
    """
    poll = select.poll()
    poll.register(link, _GONE)
    # For a moment at a time: a poll that waits keeps open what is closed meanwhile.
    while not (told := poll.poll(_LOOK_MS)):
        pass
    if told[0][1] & _GONE:
        time.sleep(_GRACE_S)
        os._exit(1)


def connect() -> SocketChannel:
    """Take the socket away from stdin."""
    try:
        link = socket.socket(fileno=os.dup(0))
    except OSError:
        raise SystemExit("this is started by interlock, not by hand") from None
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return SocketChannel(link)


if __name__ == "__main__":
    main()
