"""What is found of a fleet: fleet.json, and what the page shows."""

from enum import StrEnum

import msgspec

from interlock.qualify.fleet.talk import NodeFacts
from interlock.records.trust import Trust


class DeviceFound(msgspec.Struct):
    """One device of a node."""

    name: str
    folder: str = ""  # of its certificate and report, in the folder of results
    kind: str = ""
    chip: str = ""
    trust: Trust = Trust.UNKNOWN
    failed: list[str] = []  # what the checks that failed said
    seconds: float = 0.0
    speeds: dict[str, float] = {}  # by what they are of, with the unit; more is better
    done: bool = False
    error: str = ""  # why there is no certificate
    note: str = ""


class NodeFound(msgspec.Struct):
    """One node."""

    name: str
    address: str
    facts: NodeFacts | None = None
    error: str = ""  # why it takes no further part
    devices: list[DeviceFound] = []


class LinkFound(msgspec.Struct):
    """What two nodes can send each other."""

    a: str
    b: str
    device: str = ""  # of each, between which
    up: float = 0.0  # bytes a second from a to b
    down: float = 0.0
    latency_s: float = 0.0  # one way
    off: float = 0.0  # of the worst sum
    worst: str = ""
    error: str = ""  # why it was not measured
    hangs: bool = False
    first: str = ""  # what was wrong the first time, if it was tried twice

    @property
    def name(self) -> str:
        return f"{self.a} – {self.b}"

    def keep_best(self, again: "LinkFound", first: str) -> None:
        """Of a second trial the better figures. A wrong sum stays one; what fails again, failed.

        `first`: what was wrong the first time.
        """
        self.first = first
        if again.error:
            repeated = again.error == first
            self.error = first if repeated else f"{first}; tried again: {again.error}"
            self.hangs = self.hangs or again.hangs
            return
        self.latency_s = min(again.latency_s, again.latency_s if self.error else self.latency_s)
        self.error, self.hangs = "", False
        self.up, self.down = max(self.up, again.up), max(self.down, again.down)
        if again.off > self.off:
            self.off, self.worst = again.off, again.worst


class TogetherFound(msgspec.Struct):
    """Sums over all nodes at once."""

    nodes: int
    seconds: float = 0.0  # of one of 4 MiB
    off: float = 0.0
    worst: str = ""
    error: str = ""


class What(StrEnum):
    """What something is wrong with."""

    NODE = "node"
    DEVICE = "device"
    LINK = "link"
    FLEET = "fleet"


class Trouble(msgspec.Struct, frozen=True):
    """Something to be mended."""

    what: What
    name: str
    line: str


class FleetFound(msgspec.Struct):
    """All of it."""

    fleet: str  # as it was given
    level: str
    checks: list[str]  # []: all
    interlock: str
    issued: float  # seconds since 1970
    seconds: float = 0.0
    nodes: list[NodeFound] = []
    links: list[LinkFound] = []
    tried: str = ""  # which pairs were
    together: TogetherFound | None = None
    troubles: list[Trouble] = []

    @property
    def devices(self) -> list[DeviceFound]:
        return [device for node in self.nodes for device in node.devices]

    @property
    def fit(self) -> bool:
        """Whether everything may be used, at least to generate, and nothing is to be mended."""
        trusted = all(each.trust in (Trust.TRAIN, Trust.GENERATE) for each in self.devices)
        return trusted and bool(self.devices) and not self.troubles
