"""The process of a child: `python -m interlock.processes.entry MODULE`.

    stdin (one end of a socket pair) ──> Channel ──> MODULE.serve(channel)
    stdout, stderr ──> the child's log

It ends when `serve` does, with exit code 1 when that raises. What kills it when its parent is gone
is outside (reaper.py), for it may hang in the very first import. Standard library only: the
interpreter is that of the child's own environment.
"""

import importlib
import os
import socket
import sys
import traceback

from interlock.processes.channel import SocketChannel


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
