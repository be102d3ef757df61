"""A run whose learner moves to another device: what is asked of the device, what it answers, and
what the run keeps of it.

    migrate ──Repeat──> a process on the target: recipes/repeat.py
            <──DeviceOpened, then one Repeated for each side, or NotRepeated──┘
    migrate ── Move ──> manifest.json of the run
"""

from typing import Any, Literal

import msgspec

from interlock.records.coding import Time, Whole
from interlock.records.trust import Finding, Stack

# "exact": in float64 on the CPU. "own": on the CPU in the dtype that is asked about, which shows
# what rounding alone does. "target": on the device that is asked about, in that dtype.
Side = Literal["exact", "own", "target"]


class Repeat(msgspec.Struct, frozen=True):
    """Repeat the last recorded updates of a run from its newest checkpoint, and keep nothing."""

    run: str  # directory
    device: str
    settings: dict[str, Any] = {}  # of the learner, in place of the run's
    updates: int = 3  # at most
    tokens: int = 8192  # of an update, at most: of a longer one the first groups


class DeviceOpened(msgspec.Struct, frozen=True, tag=True):
    """The device is there."""

    stack: Stack
    settings: dict[str, Any]  # the learner's, with what is measured decided
    dtypes: list[str]  # that it is asked about
    steps: list[int]  # that are repeated
    recorded: bool  # they come after the checkpoint: what the run logged of them is of the same


class RepeatedUpdate(msgspec.Struct, frozen=True):
    """All updates of one step."""

    step: int
    loss: float
    grad_norm: float
    logprobs: list[float]  # of its tokens before it, nats
    weight: float  # sum of |weight| over these
    whole: bool  # as the run made it: else it was cut
    k3: float | None = None  # of the learner against what sampled them


class Repeated(msgspec.Struct, frozen=True, tag=True):
    """What one side made of it. Distances are relative: |own - exact| / |exact|; {} of "exact"."""

    side: Side
    dtype: str
    updates: list[RepeatedUpdate]
    gradients: dict[str, float]  # of the first update, by parameter; "": of all of them together
    moved: float | None  # of how far all updates moved the weights; None: not at all
    canary: list[float]  # logprobs of a text, with the checkpoint's weights
    seconds: float


class NotRepeated(msgspec.Struct, frozen=True, tag=True):
    """Why not, in one line."""

    reason: str
    users: bool  # it is the user's to mend


RepeatAnswer = DeviceOpened | Repeated | NotRepeated


class Location(msgspec.Struct, frozen=True):
    """Where a run learns, and how."""

    settings: dict[str, Any]  # the learner's, those that a move decides
    stack: Stack | None = None  # None: not known, of a run that did not keep it

    @property
    def device(self) -> str:
        return str(self.settings.get("device", "cpu"))


class Move(msgspec.Struct, frozen=True):
    """One that was made. What comes after it was computed at `after`."""

    part: Literal["learner"]
    before: Location
    after: Location
    stage: Whole  # of the checkpoint that it was made at
    step: Whole
    time: Time  # unix seconds
    findings: list[Finding]  # why it was let
    trust: str  # of the certificate; "cpu", which needs none; or "unqualified"
    undoes: Whole | None = None  # the number of the move that it takes back
    discarded: bool = False  # what was learned since that move is set aside
