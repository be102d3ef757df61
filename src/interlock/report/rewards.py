"""The section on rewards: what each of a weighted list pays for, and whether the verifier agrees.

    step metrics ──> RewardRow of each, over the last steps ──> table
                 ──> Plot(proxy, shares, earned with ties, length) ──> figures

A run whose steps have none of these figures, as older ones do, has no such section.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

from interlock.records.metrics import Event, RewardMetrics, StepMetrics
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
from interlock.report.summary import Evaluation, Metrics
from interlock.text import label

_COLORS = (BLUE, ORANGE, VIOLET, TEAL, ROSE, GREY)  # of more rewards they are told by name alone
_LAST = 8  # steps that the table is of
_REACHED = 0.95  # of the answers at a bound: it teaches no more
_PERCENT = {"tickformat": "~%"}
_ZERO = {"zeroline": True}

OfReward = Callable[[RewardMetrics], float | None]


class RewardRow(NamedTuple):
    """One reward over the last steps; means, and None where none of these has the figure."""

    name: str
    weight: float | None
    low: float | None
    high: float | None
    first: float | None  # its mean over as many steps at the beginning
    mean: float | None
    earned: float | None
    share: float | None
    tie: float | None
    bound: str  # the bound that nearly all answers have reached; "" for none


def reward_rows(metrics: Metrics) -> list[RewardRow]:
    """Of the last stage that has a weighted list, in the list's order."""
    with_list = [line for line in metrics if line.rollout.rewards]
    lines = [line for line in with_list if line.stage == with_list[-1].stage]
    names = dict.fromkeys(name for line in lines for name in line.rollout.rewards)
    return [_row(name, lines) for name in names]


def hacked(events: Sequence[Event]) -> list[str]:
    """What the alarm said."""
    return [event.message for event in events if event.kind == "reward_hacked"]


def reward_plots(
    metrics: Metrics, evaluations: Sequence[Evaluation], timeline: Timeline
) -> list[Plot]:
    draw = Drawing(metrics, timeline)
    names = list(dict.fromkeys(name for line in metrics for name in line.rollout.rewards))
    return shown(
        [
            Plot(
                "proxy",
                "Proxy and verifier",
                "What is learned from, the reward, beside what the verifier itself says of these "
                "answers and of held-out ones. A reward that rises alone pays for something else.",
                [Panel("mean", _proxy(draw, evaluations, timeline), {"rangemode": "tozero"})],
            ),
            Plot(
                "shares",
                "What tells answers apart",
                "Share of each reward in the variance within groups, which is what an advantage "
                "sees; they add up to 100 %. Below 0: it pays against the others.",
                [Panel("share", _lines(draw, names, lambda each: each.share), _PERCENT | _ZERO)],
            ),
            Plot(
                "earned",
                "What each reward earns",
                "Weight times mean: these add up to the reward. Below: correlation within groups "
                "with the verifier's verdict. What is below 0 pays for what is wrong.",
                [
                    Panel("earned", _lines(draw, names, lambda each: each.earned), _ZERO),
                    Panel(
                        "tie",
                        _lines(draw, names, lambda each: each.tie, False),
                        {"range": [-1.05, 1.05]},
                    ),
                ],
                height=340,
            ),
            Plot(
                "slope",
                "Reward against length",
                "Within groups: reward per 100 tokens; below, the share of the variance that "
                "length explains, rewards that are about length left out.",
                [
                    Panel(
                        "reward / 100 tokens",
                        draw.line("slope", BLUE, lambda m: m.rollout.length_slope),
                        _ZERO,
                    ),
                    Panel(
                        "explained",
                        draw.line("explained", ORANGE, lambda m: m.rollout.length_share),
                        _PERCENT | {"range": [0, 1.05]},
                    ),
                ],
                height=340,
            ),
        ]
        if any(line.rollout.verdict is not None for line in metrics)
        else []
    )


def _proxy(draw: Drawing, evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Trace]:
    verdict = draw.line("verifier, same answers", ORANGE, lambda m: m.rollout.verdict)
    held_out = []
    for stage in dict.fromkeys(each.stage for each in evaluations):
        own = [each for each in evaluations if each.stage == stage]
        held_out.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "held-out accuracy",
                "legendgroup": "held-out accuracy",
                "showlegend": stage == evaluations[0].stage,
                "x": [timeline.x(each.stage, each.step) for each in own],
                "y": [each.accuracy for each in own],
                "line": {"color": GREEN, "width": 2.5},
                "marker": {"size": 7},
            }
        )
    reward = draw.line("reward", BLUE, lambda m: m.rollout.reward)
    for trace in verdict:  # where the two are the same, both are to be seen
        trace["line"] |= {"dash": "dot"}
    return [*reward, *verdict, *held_out] if reward else []


def _lines(draw: Drawing, names: Sequence[str], figure: OfReward, told: bool = True) -> list[Trace]:
    """A line for each reward, the same colour in every plot."""
    traces = []
    for place, name in enumerate(names):
        color = GREEN if name == "accuracy" else _COLORS[place % len(_COLORS)]
        traces += draw.line(label(name), color, partial(_of, name, figure))
    return traces if told else [trace | {"showlegend": False} for trace in traces]


def _of(name: str, figure: OfReward, step: StepMetrics) -> float | None:
    return figure(step.rollout.rewards.get(name, RewardMetrics()))


def _row(name: str, lines: Metrics) -> RewardRow:
    own = [each for line in lines if (each := line.rollout.rewards.get(name)) is not None]
    first, last = own[:_LAST], own[-_LAST:]
    bounds = {
        "low": _mean([each.at_low for each in last]),
        "high": _mean([each.at_high for each in last]),
    }
    return RewardRow(
        name,
        last[-1].weight,
        last[-1].low,
        last[-1].high,
        _mean([each.mean for each in first]),
        _mean([each.mean for each in last]),
        _mean([each.earned for each in last]),
        _mean([each.share for each in last]),
        _mean([each.tie for each in last]),
        next((bound for bound, at in bounds.items() if at is not None and at >= _REACHED), ""),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
