"""How the problems stand that are drawn by pass rate, and how many groups teach.

step metrics ── pools ──> Plot(problems by pass rate, share that teaches); without any, none
"""

from collections.abc import Callable

from interlock.records.metrics import PoolMetrics, StepMetrics
from interlock.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ROSE,
    TEAL,
    VIOLET,
    Drawing,
    Panel,
    Plot,
    Timeline,
    Trace,
    shown,
)
from interlock.report.summary import Metrics

_COLORS = (ROSE, ORANGE, TEAL, BLUE, VIOLET, "#c3a6ff")  # of the ranges of pass rates, from 0 on


def pool_plots(metrics: Metrics, timeline: Timeline) -> list[Plot]:
    """Of all tasks of a step together."""
    drawn = [line for line in metrics if line.rollout.pools]
    draw = Drawing(drawn, timeline)
    pools = [pool for line in drawn for pool in line.rollout.pools.values()]
    names = list(dict.fromkeys(name for pool in pools for name in pool.rates))
    traces = draw.line("untried", GREY, _sum(lambda pool: pool.untried))
    for place, name in enumerate(names):
        traces += draw.line(name, _COLORS[place % len(_COLORS)], _sum(_of(name)))
    traces += draw.line("retired", GREEN, _sum(lambda pool: pool.retired))
    stacked: list[Trace] = [
        trace | {"mode": "lines", "stackgroup": "problems", "line": trace["line"] | {"width": 0.5}}
        for trace in traces
    ]
    rows = [
        Panel("problems", stacked, {"rangemode": "tozero"}),
        Panel(
            "teach",
            draw.line("groups that teach", BLUE, _teaching),
            {"rangemode": "tozero", "tickformat": "~%"},
        ),
    ]
    note = (
        "After each step, by the running pass rate that a step draws by; those that were solved "
        "too often in a row are retired. And the share of the step's groups whose rewards differ."
    )
    return shown([Plot("pools", "Problems by pass rate", note, rows, height=360, wide=True)])


def _of(name: str) -> Callable[[PoolMetrics], int | None]:
    return lambda pool: pool.rates.get(name)


def _sum(figure: Callable[[PoolMetrics], int | None]) -> Callable[[StepMetrics], float | None]:
    def of(step: StepMetrics) -> float | None:
        if not step.rollout.pools:
            return None
        return float(sum(figure(pool) or 0 for pool in step.rollout.pools.values()))

    return of


def _teaching(step: StepMetrics) -> float | None:
    groups, skipped = step.rollout.groups, step.rollout.groups_skipped
    return 1 - skipped / groups if groups and skipped is not None else None
