"""What is drawn of steps: of a line of metrics.jsonl its figures, and those of every worker.

    lines ──> DrawnStep: the figures alone ──> a column for each figure

The rest of a line, which is most of it, is passed over and becomes no object. All names are those
of records/metrics.py, so that a whole StepMetrics serves as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec

from interlock.mismatch import Mismatch
from interlock.records.coding import Count, Whole
from interlock.records.metrics import StepMetrics


class DrawnRollout(msgspec.Struct, gc=False, frozen=True):
    reward: float | None = None
    correct: float | None = None
    length: float | None = None
    truncated: float | None = None
    tokens: Count | None = None
    groups_skipped: Count | None = None
    staleness_mean: float | None = None


class DrawnMismatch(msgspec.Struct, gc=False, frozen=True):
    tokens: Count = 0
    k3: float = 0.0


class DrawnUpdate(msgspec.Struct, gc=False, frozen=True):
    loss: float | None = None
    grad_norm: float | None = None
    entropy: float | None = None
    kl: float | None = None
    clipped_share: float | None = None
    mismatch: DrawnMismatch | None = None


class DrawnSeconds(msgspec.Struct, gc=False, frozen=True):
    generate: float | None = None
    wait: float | None = None
    verify: float | None = None
    update: float | None = None
    publish: float | None = None
    step: float | None = None


class DrawnCost(msgspec.Struct, gc=False, frozen=True):
    chip_hours: float | None = None


class DrawnWorker(msgspec.Struct, gc=False, frozen=True):
    tokens: Count = 0
    seconds_generating: float = 0.0
    mismatch: dict[Count, DrawnMismatch] = {}


class DrawnStep(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    stage: Whole
    step: Whole
    accuracy: float | None = None
    held_out_reward: float | None = None
    held_out_loss: float | None = None
    rollout: DrawnRollout = DrawnRollout()
    update: DrawnUpdate = DrawnUpdate()
    seconds: DrawnSeconds = DrawnSeconds()
    workers: dict[str, DrawnWorker] = {}
    cost: DrawnCost = DrawnCost()


_RECORDS: dict[str, type[msgspec.Struct]] = {
    "": DrawnStep,
    "rollout": DrawnRollout,
    "update": DrawnUpdate,
    "seconds": DrawnSeconds,
    "cost": DrawnCost,
}


def _figures() -> Iterator[tuple[str, list[str]]]:
    """Of each part of a step, "" for the step itself, the names of the numbers in it."""
    for part, record in _RECORDS.items():
        fields = msgspec.structs.fields(record)
        names = [field.name for field in fields if field.type in _NUMBERS]
        yield part, [name for name in names if (part, name) != _OF_SPEED]


_NUMBERS = (float | None, Count | None)
_OF_SPEED = ("rollout", "tokens")  # drawn over the seconds of their step alone
_PARTS = {
    part: [(f"{part}.{name}" if part else name, attrgetter(name)) for name in names]
    for part, names in _figures()
}
# By their paths; and update.mismatch.k3, of a part that may not be there, and speed.
FIGURES = tuple(path for names in _PARTS.values() for path, _ in names)

Steps = Sequence[DrawnStep | StepMetrics]
Gaps = Mapping[int, DrawnMismatch | Mismatch]  # by staleness
Column = tuple[Sequence[float], Sequence[float]]  # places, and the figure at each


def columns(xs: Sequence[float], steps: Steps) -> Iterator[tuple[str, Column]]:
    """Every figure that some of the steps at `xs` have, by its name."""
    for part, names in _PARTS.items():
        records = list(map(attrgetter(part), steps)) if part else steps
        for path, of_it in names:
            yield from _there(path, xs, list(map(of_it, records)))
    gaps = [step.update.mismatch for step in steps]
    yield from _there("update.mismatch.k3", xs, [None if gap is None else gap.k3 for gap in gaps])
    yield from _there("speed", xs, list(map(_speed, steps)))
    yield from _of_workers(xs, steps)


def _there(
    name: str, xs: Sequence[float], column: Sequence[Any]
) -> Iterator[tuple[str, tuple[Sequence[float], Sequence[Any]]]]:
    """Without the places where there is none; nothing where there is none at all."""
    if None in column:
        kept = [(x, y) for x, y in zip(xs, column, strict=True) if y is not None]
        if not kept:
            return
        xs, column = zip(*kept, strict=True)
    yield name, (xs, column)


def _speed(step: DrawnStep | StepMetrics) -> float | None:
    """Tokens a second of the whole step, which no metric tells."""
    tokens, seconds = step.rollout.tokens, step.seconds.step
    return tokens / seconds if tokens is not None and seconds else None


def _of_workers(xs: Sequence[float], steps: Steps) -> Iterator[tuple[str, Column]]:
    """Mismatch, staleness and speed of every worker."""
    workers = [step.workers for step in steps]
    for name in dict.fromkeys(chain.from_iterable(workers)):
        its_own: list[Any] = [each.get(name) for each in workers]
        for _, (at, rows) in _there(name, xs, its_own):
            k3, ages = zip(*[_means(facts.mismatch) for facts in rows], strict=True)
            speeds = [
                facts.tokens / facts.seconds_generating if facts.seconds_generating > 0 else None
                for facts in rows
            ]
            for figure, column in (("k3", k3), ("staleness", ages), ("tokens_per_second", speeds)):
                yield from _there(f"workers/{name}/{figure}", at, column)


def _means(gaps: Gaps) -> tuple[float, float] | tuple[None, None]:
    """k3 and staleness over the tokens of all; 0 without tokens, None without mismatches."""
    if not gaps:
        return None, None
    if len(gaps) == 1:  # as a rule
        ((age, gap),) = gaps.items()
        return (gap.k3, age) if gap.tokens else (0.0, 0.0)
    tokens = sum(gap.tokens for gap in gaps.values()) or 1
    k3 = sum(gap.k3 * gap.tokens for gap in gaps.values())
    return k3 / tokens, sum(age * gap.tokens for age, gap in gaps.items()) / tokens
