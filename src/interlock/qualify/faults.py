"""What a crash means: what a process said last, sorted by where to look first.

    last words ──classify──> Fault: what it is, what to do
    device ──recovers──> a product in a new process ──> whether the device is still of use

The words and numbers are the vendors' own (chips/vendors/codes.py).
"""

import re
from contextlib import closing
from dataclasses import dataclass

from interlock.chips import vendors
from interlock.chips.vendors import Origin
from interlock.processes.channel import Channel
from interlock.processes.child import UNASKED_BYTES, Child, ChildError, inherited
from interlock.processes.deadline import Deadline
from interlock.text import one_line


@dataclass(frozen=True)
class Fault:
    """`code` is the vendor's, or the words by which it was known."""

    code: str
    kind: Origin
    meaning: str
    advice: str


def classify(text: str) -> Fault | None:
    """The gravest fault that `text`, the words of a failed process, tells of; None: no known one.

    Digits that are only a part of another number are no code.
    """
    for pattern, kind, meaning, advice in vendors.CODES:
        exact = rf"(?<![\w.]){pattern}(?!\w|\.\d)" if pattern.isdigit() else pattern
        if found := re.search(exact, text, re.IGNORECASE):
            code = one_line(found.group(), 60)
            return Fault(code, kind, meaning, advice)
    return None


def recovers(device_name: str, seconds: float) -> bool:
    """Whether a new process computes a product on the device, and rightly, within `seconds`."""
    deadline = Deadline(seconds)
    try:
        with closing(Child(__name__, inherited())) as child:
            return child.ask(device_name.encode(), deadline.left, UNASKED_BYTES) == b"right"
    except (ChildError, OSError):
        return False


def serve(channel: Channel) -> None:
    """The new process: a product of whole numbers, which is exact in any order of summation."""
    data = channel.receive()
    if data is None:
        return
    import torch

    from interlock.chips import device

    place = device.claim(data.decode())
    row = torch.arange(64.0).remainder(7)
    expected = row @ row
    x = row.repeat(64, 1).to(place)
    right = bool(((x @ x.mT).cpu() == expected).all())
    channel.send(b"right" if right else b"wrong")
