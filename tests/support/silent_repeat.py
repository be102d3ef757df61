"""Stands for recipes/repeat.py on a device that does what $REPEAT_AS says in its turn."""

import os
import signal
import time

import msgspec

from interlock.processes.channel import Channel
from interlock.records.moves import DeviceOpened, NotRepeated, Repeated, RepeatedUpdate
from interlock.records.trust import Stack

OPENED = DeviceOpened(Stack("cpu", "a chip"), {"device": "cpu"}, ["float32"], [4], False)
LOGPROBS = [-1.0, -2.0]


def repeated(side: str, off: float = 0.0) -> Repeated:
    """All figures of one side, each `off`."""
    own = 0.0 if side == "exact" else 1e-6
    wrong = own + off
    update = RepeatedUpdate(
        4, 0.5 + wrong, 2.0 * (1 + wrong), [each - wrong for each in LOGPROBS], 1.0, True
    )
    distances = {} if side == "exact" else {"": wrong, "embed": wrong}
    moved = None if side == "exact" else wrong
    return Repeated(side, "float32", [update], distances, moved, update.logprobs, 0.1)


def serve(channel: Channel) -> None:
    assert channel.receive() is not None
    how, turn = os.environ["REPEAT_AS"].split()
    channel.send(msgspec.msgpack.encode(OPENED))
    for side in ("exact", "own", "target"):
        if side == turn:
            match how:
                case "hangs":
                    time.sleep(600)
                case "dies":
                    os.abort()
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "raises":
                    channel.send(msgspec.msgpack.encode(NotRepeated("out of memory", False)))
                    return
                case "blames":
                    channel.send(msgspec.msgpack.encode(NotRepeated("it is damaged", True)))
                    return
                case "babbles":
                    channel.send(b"\xc1")
                    return
        channel.send(msgspec.msgpack.encode(repeated(side)))
