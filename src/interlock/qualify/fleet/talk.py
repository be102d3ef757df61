"""What whoever qualifies a fleet and its nodes say to each other.

    head.py ──Examine, LinkPlan──> node.py ──LinkPlan──> link.py
            <──NodeFacts, NodeAlive, CheckNews, DeviceNews, LinkNews──  <──LinkWord──

`NodeFacts` comes first and unasked. It is the one message that another Interlock must be able to
read: it tells the two apart, and nothing else is said before they are found to be the same.
"""

import msgspec

from interlock.records.trust import Certificate

CERTIFICATE_BYTES = 16 << 20  # at most: a thousand measures with long names are a fiftieth of it


class NodeFacts(msgspec.Struct, frozen=True, tag=True):
    """What a node says of itself."""

    host: str
    interlock: str
    suite: str  # the checks, as a digest of their sources
    commit: str
    torch: str
    cores: int  # that the process may use
    devices: list[str]  # as settings name them, the CPU last


class NodeAlive(msgspec.Struct, frozen=True, tag=True):
    """A sign of life."""


class Examine(msgspec.Struct, frozen=True, tag=True):
    """Qualify these devices, all at once; arguments as in `runner.qualify`."""

    devices: list[str]
    level: str
    checks: list[str]  # ids; []: all
    minutes: float
    seed: int
    fail_fast: bool


class CheckNews(msgspec.Struct, frozen=True, tag=True):
    """A check of the device with this number has ended."""

    device: int
    check: str


class DeviceNews(msgspec.Struct, frozen=True, tag=True):
    """The device with this number is done; None: it could not be tried, and `reason` says why."""

    device: int
    certificate: Certificate | None
    reason: str = ""


class LinkPlan(msgspec.Struct, frozen=True, tag=True):
    """Take part, as one of several, in collectives over the links between nodes."""

    link: str  # its name, the same for all who take part
    device: str
    rank: int
    world_size: int
    address: str  # of this node
    store: tuple[str, int] | None  # where to meet; None: rank 0, which opens the place
    largest: int  # bytes of the largest transfer
    seconds: float  # for one step, once everyone is there


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 has opened the place to meet at."""

    port: int


class LinkStep(msgspec.Struct, frozen=True, tag=True):
    """A step begins."""

    step: str


class LinkMeasured(msgspec.Struct, frozen=True, tag=True):
    """All steps are done. What only rank 0 of two measures is 0 elsewhere."""

    off: float  # how far the worst result is from what it must be
    worst: str  # the step that gave it
    latency_s: float = 0.0  # one way, the best of several
    up: float = 0.0  # bytes a second from rank 0 to rank 1
    down: float = 0.0  # and back
    sum_s: float = 0.0  # of one sum of the largest size over all who take part


class LinkBroken(msgspec.Struct, frozen=True, tag=True):
    """It did not come to its end; `reason` is one line."""

    reason: str
    hangs: bool = False


LinkWord = Listening | LinkStep | LinkMeasured | LinkBroken


class LinkNews(msgspec.Struct, frozen=True, tag=True):
    """What a process of a link said, or what became of it."""

    link: str
    rank: int
    word: LinkWord


NodeRequest = Examine | LinkPlan
NodeReply = NodeFacts | NodeAlive | CheckNews | DeviceNews | LinkNews
