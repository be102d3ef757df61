"""Two nodes on a loopback interface of their own, which goes down once a transfer has begun.

Run in a new network namespace; prints what was found of the link as JSON.
"""

import fcntl
import queue
import socket
import struct
import sys
import threading

import msgspec

from interlock.processes.deadline import Deadline
from interlock.qualify.fleet import node
from interlock.qualify.fleet.found import LinkFound, NodeFound
from interlock.qualify.fleet.links import LinkTrial
from interlock.qualify.fleet.talk import LinkNews, LinkPlan, LinkStep, NodeReply

SET_FLAGS, UP = 0x8914, 0x1  # Linux's numbers


def loopback(flags: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, SET_FLAGS, struct.pack("16sh14x", b"lo", flags))


def main() -> None:
    loopback(UP)
    said: queue.Queue[NodeReply] = queue.Queue()

    def ask(name: str, plan: LinkPlan) -> None:
        threading.Thread(target=node._join, args=(said.put, plan), daemon=True).start()

    nodes = [NodeFound(name, "127.0.0.1") for name in ("a", "b")]
    trial = LinkTrial("a – b", nodes, ask, largest=256 << 20, seconds=float(sys.argv[1]))
    deadline = Deadline(300.0)
    while not trial.over and not deadline.over:
        match said.get(timeout=deadline.left):
            case LinkNews(_, rank, word):
                trial.hear(rank, word)
                if isinstance(word, LinkStep) and word.step.startswith("a transfer of 4 MiB"):
                    loopback(0)
    found = LinkFound("a", "b")
    trial.fill(found)
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
