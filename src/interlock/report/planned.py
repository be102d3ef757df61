"""The section on a plan and what happened: hours, chips, money, energy, memory, a step by part.

plan.json ── PlannedRun ──┐
cost.json, step metrics ──┴─> rows: planned with its range, happened, one over the other
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from interlock.records.cost import RunCost
from interlock.records.metrics import StepMetrics
from interlock.records.planned import PlannedRange, PlannedRun, PlannedStage
from interlock.report.cost import figure
from interlock.report.summary import Metrics
from interlock.rundir import RunView

_Seconds = Callable[[StepMetrics], float | None]

# A step's parts: what of a plan's parts they add up, and where a step's line has them.
_PARTS: tuple[tuple[str, tuple[str, ...], _Seconds], ...] = (
    ("generation", ("generation",), lambda m: m.seconds.generate),
    ("verification", ("verification",), lambda m: m.seconds.verify),
    ("update", ("scoring", "update"), lambda m: m.seconds.update),
    ("publication", ("publication",), lambda m: m.seconds.publish),
)


class PlannedRow(NamedTuple):
    """One figure, ready to be shown."""

    what: str
    planned: str
    between: str
    happened: str
    factor: str  # happened over planned


class PlannedTable(NamedTuple):
    placement: str
    rows: list[PlannedRow]
    note: str


def planned_table(run: RunView, metrics: Metrics) -> PlannedTable | None:
    """None for a run without a plan."""
    plan = run.plan()
    if plan is None:
        return None
    whole = run.status == "finished"
    cost = run.cost()
    rows = [*_wholes(plan, cost), *_memory(plan, cost), *_steps(plan, metrics)]
    note = "" if whole else "The run has not come to its end: what it used is not yet all."
    return PlannedTable(plan.placement, rows, note)


def _wholes(plan: PlannedRun, cost: RunCost) -> Iterator[PlannedRow]:
    yield _row("hours", plan.hours, cost.hours)
    yield _row("chip-hours", plan.chip_hours, cost.chip_hours)
    if plan.money is not None and plan.currency is not None:
        used = cost.money().get(plan.currency)
        known = used is not None and not cost.unpriced() and len(cost.money()) == 1
        yield _row(plan.currency, plan.money, used.middle if used and known else None)
    yield _row("kWh", plan.kwh, cost.kwh if cost.energy_whole else None)


def _memory(plan: PlannedRun, cost: RunCost) -> Iterator[PlannedRow]:
    """Of each stage the most that one process had of its chip. What samples first and then learns
    is two stages of a plan's, and one of what happened.
    """
    planned: dict[tuple[int, str], float] = {}
    for stage in plan.stages:
        for role, size in stage.memory_bytes.items():
            if stage.place is not None and size:
                key = stage.place, role
                planned[key] = max(planned.get(key, 0.0), size)
    for (place, role), size in planned.items():
        own = [use for use in cost.rows() if (use.stage, use.role) == (place, role)]
        happened = max((use.chip_bytes for use in own), default=0.0) / 1e9
        same = PlannedRange(*[size / 1e9] * 3)
        yield _row(f"stage {place}: GB of memory, {role}", same, happened or None)


def _steps(plan: PlannedRun, metrics: Metrics) -> Iterator[PlannedRow]:
    """Of each stage of the plan that has steps; the first of them warms up."""
    places = [stage.place for stage in plan.stages]
    for stage in plan.stages:
        lines = [line for line in metrics if line.stage == stage.place and line.step > 0]
        usual = lines[1:] if len(lines) > 2 else lines
        if not usual or places.count(stage.place) > 1:
            continue
        yield _row(f"{stage.name}: s a step", stage.step_s, _median(usual, _step_seconds))
        for name, parts, seconds in _PARTS:
            planned = _sum(stage, parts)
            happened = _median(usual, seconds)
            if planned and happened is not None:
                same = PlannedRange(planned, planned, planned)
                yield _row(f"{stage.name}: s of {name}", same, happened)


def _step_seconds(line: StepMetrics) -> float | None:
    return line.seconds.step


def _sum(stage: PlannedStage, parts: Sequence[str]) -> float:
    return sum(stage.seconds.get(part) or 0.0 for part in parts)


def _median(lines: Sequence[StepMetrics], seconds: _Seconds) -> float | None:
    known = [value for line in lines if (value := seconds(line)) is not None]
    return median(known) if known else None


def _row(what: str, planned: PlannedRange, happened: float | None) -> PlannedRow:
    spread = f"{figure(planned.low)} to {figure(planned.high)}"
    factor = f"x {figure(happened / planned.middle)}" if happened and planned.middle else "–"
    return PlannedRow(
        what,
        figure(planned.middle),
        spread if planned.low < planned.high else "",
        "unknown" if happened is None else figure(happened),
        factor,
    )
