"""The process in which one check runs.

    runner ──ProbeRequest──> claim the device ──> the check's function ──ProbeReply──> runner

It is a fork of template.py, which has imported what it needs. What a check does to this process, a
crash or a hang, is for the runner to see.
"""

import importlib
import sys
import traceback

import msgspec

from interlock.chips import device, heap
from interlock.errors import UserError
from interlock.processes.channel import Channel
from interlock.qualify.check import Evidence, Level, Subject
from interlock.records.coding import from_bytes
from interlock.records.trust import Sizes, Stack
from interlock.text import described, error_line


class ProbeRequest(msgspec.Struct, frozen=True):
    """Run `function`, "module:function" of a check; "": say what the device is."""

    device: str
    level: Level
    minutes: float = 0.0
    seed: int = 0
    function: str = ""
    model: Sizes | None = None


class Known(msgspec.Struct, frozen=True, tag=True):
    """What the device is."""

    stack: Stack


class Shown(msgspec.Struct, frozen=True, tag=True):
    """The check came to its end."""

    evidence: Evidence


class NotRun(msgspec.Struct, frozen=True, tag=True):
    """It cannot be run here."""

    reason: str


class Raised(msgspec.Struct, frozen=True, tag=True):
    """What it met was neither to be expected nor the user's mistake."""

    error: str  # one line
    trace: str


ProbeReply = Known | Shown | NotRun | Raised


def decode_reply(data: bytes) -> ProbeReply:
    """Raises msgspec.MsgspecError."""
    found: ProbeReply = from_bytes(data, ProbeReply)
    return found


def serve(channel: Channel) -> None:
    """Answer the one request that comes; nothing when the runner has gone."""
    data = channel.receive()
    if data is not None:
        heap.keep_freed()  # as runs do
        device.load_plugins()
        answer = _answer(msgspec.msgpack.decode(data, type=ProbeRequest))
        channel.send(msgspec.msgpack.encode(answer))


def _answer(asked: ProbeRequest) -> ProbeReply:
    try:
        place = device.claim(asked.device)
    except UserError as error:
        # It could be opened when it was asked what it is: by now that is the device's doing.
        return Raised(error_line(error), "") if asked.function else NotRun(error_line(error))
    try:
        if not asked.function:
            return Known(device.stack(place))
        subject = Subject(place, asked.level, asked.minutes, asked.seed, asked.model)
        module, _, name = asked.function.partition(":")
        return Shown(getattr(importlib.import_module(module), name)(subject))
    except UserError as error:
        return NotRun(error_line(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Raised(described(error, 200), traceback.format_exc()[-4000:])
