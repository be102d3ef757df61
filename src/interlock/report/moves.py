"""What a run's moves to other devices amount to: the sides, and what each move had proved.

    manifest.moves, metrics ──> MoveSide for each stay on a device, MoveRow for each move

A step belongs to the side that logged it last. Draws nothing and needs no plotly.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import NamedTuple

from interlock.mismatch import Mismatch
from interlock.records.metrics import StepMetrics
from interlock.records.moves import Move
from interlock.records.trust import Finding, Stack

_MEASURES = 4  # of a finding, the worst


class MoveSide(NamedTuple):
    """A stay on one device; None where nothing was logged."""

    device: str
    stack: str  # chip, driver and software
    steps: int
    first: str  # step
    last: str
    step_s: float | None  # mean
    rate: float | None  # tokens learned from per second of the updates
    k3: float | None  # mean over its tokens, of the learner against the sampler


class MoveRow(NamedTuple):
    number: int
    when: str
    what: str
    trust: str
    findings: list[Finding]  # with their worst measures alone


def sides(moves: Sequence[Move], metrics: Sequence[StepMetrics]) -> list[MoveSide]:
    """Of the learner, from its first device to that of today; [] without a move."""
    own = [move for move in moves if move.part == "learner"]
    if not own:
        return []
    ends = [*(move.time for move in own), float("inf")]
    places = [own[0].before, *(move.after for move in own)]
    found, begin = [], 0.0
    for place, end in zip(places, ends, strict=True):
        lines = [line for line in metrics if line.step and begin <= (line.time or 0.0) < end]
        found.append(_side(place.device, place.stack, lines))
        begin = end
    return found


def rows(moves: Sequence[Move]) -> list[MoveRow]:
    return [_row(number, move) for number, move in enumerate(moves, 1)]


def marks(moves: Sequence[Move]) -> list[tuple[int, int, str]]:
    """Stage, step and device of each, for the plots."""
    return [(move.stage, move.step, move.after.device) for move in moves]


def _side(device: str, stack: Stack | None, lines: Sequence[StepMetrics]) -> MoveSide:
    spent = [line.seconds.step for line in lines if line.seconds.step is not None]
    updates = [line for line in lines if line.seconds.update and line.update.tokens]
    seconds = sum(line.seconds.update or 0.0 for line in updates)
    gaps = [gap for line in lines if (gap := line.update.mismatch) is not None]
    places = [_place(line) for line in lines]
    return MoveSide(
        device,
        _described(stack),
        len(lines),
        places[0] if places else "",
        places[-1] if places else "",
        fmean(spent) if spent else None,
        sum(line.update.tokens or 0 for line in updates) / seconds if seconds else None,
        sum(gaps, Mismatch()).k3 if gaps else None,
    )


def _place(line: StepMetrics) -> str:
    return f"{line.stage}/{line.step}" if line.stage else str(line.step)


def _described(stack: Stack | None) -> str:
    if stack is None:
        return "not recorded"
    told = [stack.chip, stack.driver, stack.firmware, stack.runtime, f"torch {stack.torch}"]
    return " · ".join(filter(None, [*told, stack.plugin, stack.libraries]))


def _row(number: int, move: Move) -> MoveRow:
    what = f"{move.part}: {move.before.device} → {move.after.device}, from "
    what += f"stage {move.stage} step {move.step}"
    if move.undoes is not None:
        what += f"; takes move {move.undoes} back"
    if move.discarded:
        what += ", and what came since is put aside"
    findings = [
        Finding(each.check, each.result, each.summary, measures=each.measures[:_MEASURES])
        for each in move.findings
    ]
    when = f"{datetime.fromtimestamp(move.time, UTC):%Y-%m-%d %H:%M} UTC"
    return MoveRow(number, when, what, move.trust, findings)
