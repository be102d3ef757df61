"""The plots of the fleet section: speed, mismatch, staleness, weights and states of the workers.

    step metrics, events, guard ── fleet ──> numbers per worker ──> Plot(rows of traces)

A run whose steps tell of no workers has none of these. Names and messages are escaped: plotly
reads some HTML in them.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from interlock.config.schema import GuardSettings
from interlock.records.metrics import Event, EventKind, StepMetrics, WorkerState
from interlock.report import fleet
from interlock.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VIOLET,
    Drawing,
    Figure,
    Panel,
    Plot,
    Timeline,
    Trace,
    shown,
)
from interlock.report.summary import Metrics
from interlock.text import label

RED, OCHRE = "#e5484d", "#d4a017"
_COLORS = (BLUE, ORANGE, GREEN, VIOLET, "#e0609a", "#1aa7b8", "#a3762f", "#7f8ea3")
_DASHES = ("solid", "dash", "dot")
_WORKERS = len(_COLORS) * len(_DASHES)  # drawn; more lines than that tell nothing
_MARKS = 1000  # events drawn
_STATES = {  # as the timeline tells them apart
    WorkerState.READY: "at work",
    WorkerState.LOADING: "at work",
    WorkerState.GENERATING: "at work",
    WorkerState.STARTING: "starting",
    WorkerState.RESTARTING: "starting",
    WorkerState.QUARANTINED: "quarantined",
    WorkerState.QUALIFYING: "qualifying",
    WorkerState.RETIRED: "retired",
}
_STATE_COLORS = {
    "at work": GREEN,
    "starting": OCHRE,
    "quarantined": RED,
    "qualifying": VIOLET,
    "retired": GREY,
}
_SYMBOLS: dict[EventKind, str] = {
    "worker_started": "triangle-up",
    "worker_lost": "x",
    "worker_silent": "circle-x",
    "worker_late": "hourglass",
    "worker_garbage": "diamond-x",
    "worker_unproven": "square-x",
    "worker_mismatch": "diamond",
    "worker_quarantined": "octagon",
    "worker_qualifying": "hexagon",
    "worker_readmitted": "star",
    "unqualified": "circle-open",
    "worker_retired": "square",
}


def fleet_plots(
    metrics: Metrics, events: Sequence[Event], guard: GuardSettings | None, timeline: Timeline
) -> list[Plot]:
    """Every plot of the fleet that the run has numbers for."""
    names = fleet.names(metrics)
    if not names:
        return []
    left_out = f" The first {_WORKERS} of {len(names)} workers." if len(names) > _WORKERS else ""
    names = names[:_WORKERS]
    draw = Drawing(metrics, timeline)
    by_staleness = {"title": {"text": "staleness, versions"}, "dtick": 1, "tickformat": "d"}
    candidates = [
        _states(metrics, events, names, timeline, left_out),
        Plot(
            "worker-speed",
            "Tokens per second by worker",
            f"Sampled per second in which the worker generated.{left_out}",
            [Panel("tokens / s", list(_speeds(draw, metrics, names)), {"rangemode": "tozero"})],
        ),
        Plot(
            "worker-mismatch",
            "Mismatch by worker",
            "k3 of learner against generator on fresh tokens (staleness 0), of which a step has "
            f"enough to judge by; dashed: the guard.{left_out}",
            [_decades("k3, nats", _judged(draw, names, guard, timeline))],
        ),
        Plot(
            "staleness-mismatch",
            "Mismatch by staleness",
            f"Mean over the run: a flat line is numerics, a rising one is drift.{left_out}",
            [_decades("k3, nats", list(_by_staleness(metrics, names)))],
            x=by_staleness,
        ),
        _staleness(draw),
        _weights(draw, metrics),
    ]
    return shown(candidates)


def _decades(name: str, traces: list[Trace]) -> Panel:
    """A row with a logarithmic axis over whole decades; what is not above 0 is not on it."""
    values = [y for trace in traces for y in trace["y"] if y is not None and 0 < y < math.inf]
    if not values:
        return Panel(name, [], {})
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axis = {
        "type": "log",
        "range": [low - 0.05, max(high, low + 1) + 0.05],  # a line on the edge stays whole
        "dtick": 1,
        "exponentformat": "none" if low >= -2 else "power",
    }
    return Panel(name, traces, axis)


def _staleness(draw: Drawing) -> Plot:
    return Plot(
        "staleness",
        "Staleness of the groups used",
        "Weight versions between sampling and use; below, the groups dropped for being older.",
        [
            Panel(
                "versions",
                [
                    *draw.line("mean", BLUE, lambda m: m.rollout.staleness_mean),
                    *draw.line("highest", GREY, lambda m: m.rollout.staleness_max),
                ],
                {"rangemode": "tozero"},
            ),
            Panel(
                "dropped",
                draw.bars(draw.line("dropped", ORANGE, lambda m: m.rollout.groups_stale)),
                {"rangemode": "tozero"},
            ),
        ],
    )


def _weights(draw: Drawing, metrics: Metrics) -> Plot:
    shares = _by_step(metrics, fleet.loading_share(metrics))
    published = []
    looks: list[tuple[str, str, str, Figure]] = [
        ("anchor", VIOLET, "diamond", lambda m: _megabytes(m) if m.published.anchors else None),
        ("delta", BLUE, "circle", lambda m: None if m.published.anchors else _megabytes(m)),
    ]
    for kind, color, symbol, figure in looks:
        for trace in draw.line(kind, color, figure):
            points = {"mode": "markers", "marker": {"color": color, "size": 7, "symbol": symbol}}
            published.append(trace | points)
    return Plot(
        "weights",
        "Weights published",
        "MB per version; below, the share of the workers' time spent on fetching, loading and "
        "proving them.",
        [
            _decades("MB", published),
            Panel(
                "share of time",
                draw.line("share of time", ORANGE, shares),
                {"rangemode": "tozero", "tickformat": "~%"},
            ),
        ],
    )


def _megabytes(line: StepMetrics) -> float | None:
    """Of all versions of a step; the plot shows it as an anchor if one of them is."""
    return None if line.published.bytes is None else line.published.bytes / 1e6


def _speeds(draw: Drawing, metrics: Metrics, names: Sequence[str]) -> Iterator[Trace]:
    for index, name in enumerate(names):
        rates = _by_step(metrics, fleet.rates(metrics, name))
        for trace in draw.line(label(name), GREY, rates):
            yield trace | _line_of(index)


def _judged(
    draw: Drawing, names: Sequence[str], guard: GuardSettings | None, timeline: Timeline
) -> list[Trace]:
    """What the guard looks at, and its limits; nothing where it has nothing to look at."""
    least = 1 if guard is None else guard.min_tokens
    found = [
        trace | _line_of(index)
        for index, name in enumerate(names)
        for trace in draw.line(label(name), GREY, partial(_fresh, name, least))
    ]
    return [*found, *_limits(guard, timeline)] if found and guard is not None else found


def _fresh(name: str, least: int, line: StepMetrics) -> float | None:
    own = line.workers.get(name)
    fresh = own.mismatch.get(0) if own else None
    return fresh.k3 if fresh is not None and fresh.tokens >= least else None


def _limits(guard: GuardSettings, timeline: Timeline) -> Iterator[Trace]:
    """As lines and not as shapes, so that the axis always reaches them."""
    for name, level, color in (
        ("warn", guard.warn, OCHRE),
        ("quarantine", guard.quarantine, RED),
    ):
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": f"{name} at {level:g}",
            "x": [0, timeline.end],
            "y": [level, level],
            "hoverinfo": "skip",
            "line": {"color": color, "width": 1.5, "dash": "dash"},
        }


def _by_staleness(metrics: Metrics, names: Sequence[str]) -> Iterator[Trace]:
    for index, name in enumerate(names):
        if means := fleet.mean_mismatch(metrics, name):
            yield {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name),
                "x": list(means),
                "y": [gap.k3 for gap in means.values()],
                "marker": {"size": 7},
                **_line_of(index),
            }


def _line_of(index: int) -> dict[str, Any]:
    dash, color = divmod(index, len(_COLORS))
    return {"line": {"color": _COLORS[color], "width": 2, "dash": _DASHES[dash]}}


def _by_step(metrics: Metrics, values: Sequence[float | None]) -> Figure:
    known = {(line.stage, line.step): value for line, value in zip(metrics, values, strict=True)}
    return lambda line: known[line.stage, line.step]


def _states(
    metrics: Metrics,
    events: Sequence[Event],
    names: Sequence[str],
    timeline: Timeline,
    left_out: str,
) -> Plot:
    """What every worker was doing, step by step, with what happened to it."""
    bars: dict[str, list[tuple[str, float, float]]] = {kind: [] for kind in _STATE_COLORS}
    for name in names:
        for kind, start, end in _spells(metrics, name, timeline):
            bars[kind].append((label(name), start, end))
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            "y": [name for name, _, _ in spells],
            "base": [start for _, start, _ in spells],
            "x": [end - start for _, start, end in spells],
            "width": 0.5,
            "hovertemplate": "%{y}: " + kind + "<extra></extra>",
            "marker": {"color": _STATE_COLORS[kind], "opacity": 0.75, "line": {"width": 0}},
        }
        for kind, spells in bars.items()
        if spells
    ]
    told = [event for event in events if event.worker in names]
    traces += _marks(told[-_MARKS:], metrics, timeline)
    cut = f" The last {_MARKS:,} of {len(told):,} events." if len(told) > _MARKS else ""
    categories = {"categoryorder": "array", "categoryarray": [label(name) for name in names][::-1]}
    return Plot(
        "states",
        "Workers over time",
        f"The state at the end of each step; marks are events, named on hovering.{left_out}{cut}",
        [Panel("", traces, {"type": "category", "nticks": 0, **categories})],
        height=130 + 34 * len(names),
        wide=True,
    )


def _spells(metrics: Metrics, name: str, timeline: Timeline) -> Iterator[tuple[str, float, float]]:
    """(kind of state, start, end): runs of steps with one kind of state, on the x axis."""
    steps = []
    for line in metrics:
        own = line.workers.get(name)
        steps.append((_STATES[own.state] if own else None, timeline.x(line.stage, line.step)))
    before = 0.0
    for kind, group in groupby(steps, key=lambda step: step[0]):
        end = max(x for _, x in group)
        if kind is not None and end > before:
            yield kind, before, end
        before = end


def _marks(events: Sequence[Event], metrics: Metrics, timeline: Timeline) -> Iterator[Trace]:
    """One trace per kind of event, placed between the steps by the time it happened."""
    timed = [(m.time, timeline.x(m.stage, m.step)) for m in metrics if m.time is not None]
    times, steps = [time for time, _ in timed], [x for _, x in timed]
    for kind, symbol in _SYMBOLS.items():
        own = [event for event in events if event.kind == kind]
        if not own or not times:
            continue
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": kind.removeprefix("worker_"),
            "x": [_place(event.time, times, steps) for event in own],
            "y": [label(str(event.worker)) for event in own],
            "text": [label(event.message) for event in own],
            "hovertemplate": "step %{x:.1f}: %{text}<extra></extra>",
            "marker": {"symbol": symbol, "size": 10, "color": "#ffffff",
                       "line": {"color": "#1b2230", "width": 1.5}},
        }  # fmt: skip


def _place(time: float, times: Sequence[float], steps: Sequence[float]) -> float:
    """Where `time` lies on the x axis, between the steps that were logged around it."""
    after = bisect_right(times, time)
    if after == 0:
        return max(0.0, steps[0] - 0.5) if steps[0] else 0.0
    if after == len(times):
        return steps[-1]
    start, end = times[after - 1], times[after]
    share = (time - start) / (end - start)
    return steps[after - 1] + share * (steps[after] - steps[after - 1])
