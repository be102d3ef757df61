"""What a check is, what it is given, and what it gives back.

    Check (a row of checks.py) ──run in a process of its own (probe.py)──> Evidence
                                                                             │ runner.py
                            Certificate <──verdict.py── Finding … <──────────┘

A check is a plain function of a Subject. It returns Evidence; raises UserError when it cannot be
run here (UNKNOWN); and whatever else it raises is the device's doing, a finding like a crash or a
hang of the whole process.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import torch

from interlock.chips import vendors
from interlock.chips.verdict import NEEDED
from interlock.models.catalogue import most
from interlock.records.trust import Measure, Role, Sizes


class Level(StrEnum):
    """How thorough the checks are."""

    QUICK = "quick"  # two minutes on two CPU cores, all checks together
    DEFAULT = "default"  # fifteen minutes
    SOAK = "soak"  # the default checks, and then as many minutes of soak as are asked for


# Seconds for one check: many times what a slow CPU takes, since only a hang should meet them.
DEADLINES_S = {Level.QUICK: 120.0, Level.DEFAULT: 300.0, Level.SOAK: 300.0}


class Evidence(msgspec.Struct, frozen=True):
    """What a check that ran to its end has to show; fields as in records.Finding."""

    passed: bool
    summary: str
    figures: dict[str, float | int | str] = {}
    measures: list[Measure] = []
    world_size: int = 1  # processes that took part


@dataclass(frozen=True)
class Subject:
    """The device under test, and how thorough to be."""

    device: torch.device
    level: Level = Level.DEFAULT
    minutes: float = 0.0  # of soak, at that level
    seed: int = 0
    model: Sizes | None = None  # of a model that is to be tried beside those of the catalogue

    @property
    def tried(self) -> list[Sizes]:
        """The sizes of models to try: the largest there are, and those of the one named."""
        return [most()] if self.model is None else [most(), self.model]

    def at(self, quick: int, default: int) -> int:
        """A size or a number of repeats, by level."""
        return quick if self.level is Level.QUICK else default


@dataclass(frozen=True)
class Check:
    """One row of the table. `function` is "module:function", imported in the check's process."""

    id: str
    function: str
    classes: tuple[int, ...]  # failure classes, as docs/qualify.md numbers them
    proves: str  # one sentence
    remedy: str  # what to do when it fails
    strict: bool = False  # a fallback to the host is to be an error, where the vendor has a switch
    deadline_s: Mapping[Level, float] = field(default_factory=lambda: DEADLINES_S)

    @property
    def needed(self) -> frozenset[Role]:
        """The roles that it must have passed for."""
        return NEEDED[self.id]


def judged(
    measures: Sequence[Measure],
    good: str,
    bad: str,
    figures: Mapping[str, float | int | str] | None = None,
    keep: int = 200,
) -> Evidence:
    """Evidence that passes when no measure is beyond its limit, the worst first.

    `good`, `bad`: summaries; `bad` may use {count}, {total} and {worst} (a case's name). At most
    `keep` measures are kept, the others are counted in the figures.
    """
    ranked = sorted(measures, key=excess, reverse=True)
    failed = [measure for measure in ranked if beyond(measure)]
    summary = good
    if failed:
        summary = bad.format(count=len(failed), total=len(ranked), worst=failed[0].name)
    counts = {"cases": len(ranked), "cases beyond their limit": len(failed)}
    return Evidence(not failed, summary, dict(figures or {}) | counts, ranked[:keep])


def beyond(measure: Measure) -> bool:
    """Whether it fails. What is not finite always does, even where the reference is not either."""
    return not (math.isfinite(measure.value) and measure.value <= measure.limit)


def excess(measure: Measure) -> float:
    """value / limit, by which cases are ranked; inf where there is no such number and it fails."""
    if not beyond(measure):
        return measure.value / measure.limit if measure.limit > 0 else 0.0
    ratio = measure.value / measure.limit if measure.limit > 0 else math.inf
    return ratio if ratio > 1 else math.inf


def is_missing(error: BaseException) -> bool:
    """Whether an error says that the device has no such operator, or not for this dtype."""
    return isinstance(error, NotImplementedError) or vendors.REFUSAL.search(str(error)) is not None


def short(dtype: torch.dtype) -> str:
    """ "bfloat16" of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
