"""The process of a child on another machine: `python -m interlock.processes.stdio MODULE`.

    stdin ──> Channel ──> MODULE.serve(channel) ──> stdout
    what it prints ──> stderr, which the remote shell brings to the child's log

It ends as entry.py's does; so nothing is left running there when the remote shell is gone. Standard
library only.
"""

import os
import sys

from interlock.processes.channel import PipeChannel
from interlock.processes.entry import run


def main() -> None:
    (module,) = sys.argv[1:]
    channel = PipeChannel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    os.dup2(2, 1)  # what a library prints is no message
    run(module, channel)


if __name__ == "__main__":
    main()
