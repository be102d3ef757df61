"""What other verbs write, as far as evidence is taken from it; null is what was not finite.

A file must have all of these, each of its kind. What a verb writes besides is left alone.
Certificates and runs are read by their own rooms.
"""

from typing import Literal

import msgspec

from interlock.records.coding import Time
from interlock.records.metrics import Event, StepMetrics
from interlock.records.trust import Stack, Trust
from interlock.rundir.view import Manifest

Agreement = Literal["same", "close", "different"]


class WrittenSide(msgspec.Struct, frozen=True):
    label: str
    engine: str
    device: str
    dtype: str
    stack: Stack | None = None  # None: of an older version, or of a worker that does not tell


class WrittenMismatch(msgspec.Struct, frozen=True):
    tokens: int
    k3: float | None
    max: float | None
    share_above_2: float | None


class WrittenDifference(msgspec.Struct, frozen=True):
    name: str
    sides: str
    mismatch: WrittenMismatch


class WrittenBand(msgspec.Struct, frozen=True):
    warn: float
    quarantine: float


class WrittenGreedy(msgspec.Struct, frozen=True):
    answers: int
    identical: int


class WrittenAccuracy(msgspec.Struct, frozen=True):
    share: float
    low: float
    high: float


class WrittenTask(msgspec.Struct, frozen=True):
    task: str
    problems: int
    a: WrittenAccuracy
    b: WrittenAccuracy
    p: float
    not_judged: str | None


class ParityFile(msgspec.Struct, frozen=True):
    """parity.json"""

    model: str
    a: WrittenSide
    b: WrittenSide
    band: WrittenBand
    failures: list[str]
    differences: list[WrittenDifference]
    greedy: WrittenGreedy | None
    task: WrittenTask | None
    created: Time
    interlock: str
    verdict: Agreement
    headline: str
    reasons: list[str]


class WrittenDevice(msgspec.Struct, frozen=True):
    name: str
    folder: str
    kind: str
    chip: str
    trust: Trust
    failed: list[str]
    error: str


class WrittenNode(msgspec.Struct, frozen=True):
    name: str
    error: str
    devices: list[WrittenDevice]


class WrittenLink(msgspec.Struct, frozen=True):
    a: str
    b: str
    up: float
    down: float
    latency_s: float
    error: str


class WrittenTrouble(msgspec.Struct, frozen=True):
    what: str
    name: str
    line: str


class FleetFile(msgspec.Struct, frozen=True):
    """fleet.json"""

    level: str
    interlock: str
    issued: Time
    nodes: list[WrittenNode]
    links: list[WrittenLink]
    troubles: list[WrittenTrouble]


class WrittenIdentity(msgspec.Struct, frozen=True):
    stack: Stack
    versions: dict[str, str]


class WrittenSection(msgspec.Struct, frozen=True):
    name: str
    status: Literal["done", "failed", "not run"]
    headline: str
    seconds: float
    command: str
    figures: dict[str, float | str | None]
    shortened: str
    ended: Time
    results: dict[str, str]


class PreflightFile(msgspec.Struct, frozen=True):
    """preflight.json"""

    device: str
    model: str
    identity: WrittenIdentity
    sections: list[WrittenSection]


class WrittenSpeed(msgspec.Struct, frozen=True):
    dtype: str
    kernel: str
    decode: float
    learn: float
    error: float | None


class WrittenTable(msgspec.Struct, frozen=True):
    chip: str
    threads: int
    speeds: list[WrittenSpeed]
    waited: float


class WrittenChoice(msgspec.Struct, frozen=True):
    dtype: str
    generator: str
    learner: str


class BenchFile(msgspec.Struct, frozen=True):
    """`interlock bench --json`"""

    measured: WrittenTable
    taken: WrittenChoice
    stack: Stack
    device: str
    created: Time


class WrittenSpan(msgspec.Struct, frozen=True):
    low: float | None
    middle: float | None
    high: float | None


class WrittenPrice(msgspec.Struct, frozen=True):
    low: float
    high: float
    currency: str
    source: str
    date: str


class WrittenStock(msgspec.Struct, frozen=True):
    name: str
    count: int
    duty: str
    note: str
    flops: float
    memory: float
    bandwidth: float
    source: str
    confidence: str
    assumed: list[str]


class WrittenStage(msgspec.Struct, frozen=True):
    name: str
    steps: int
    synchronous: bool
    step_s: WrittenSpan


class WrittenModel(msgspec.Struct, frozen=True):
    name: str


class PlanFile(msgspec.Struct, frozen=True):
    """`interlock plan --json`"""

    recipe: str
    model: WrittenModel
    placement: str
    chips: list[WrittenStock]
    profiled: bool
    fits: bool
    stages: list[WrittenStage]
    hours: WrittenSpan
    chip_hours: WrittenSpan
    money: WrittenSpan | None
    currency: str | None
    kwh: WrittenSpan
    prices: dict[str, WrittenPrice | None]
    verdicts: list[str]
    assumed: list[str]
    interlock: str
    created: Time


class RunFiles(msgspec.Struct, frozen=True):
    """A run directory."""

    manifest: Manifest
    status: str
    metrics: list[StepMetrics]
    events: list[Event]

    @property
    def learners(self) -> list[Stack]:
        """What it learned on, session by session, as far as that was kept."""
        return [each.learner for each in self.manifest.sessions if each.learner is not None]
