"""The section on rewards: its rows by hand, its lines as they were logged, and what it says."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest

from interlock.records.metrics import Event, RewardMetrics, StepMetrics
from interlock.report.drawing import Timeline
from interlock.report.rewards import hacked, reward_plots, reward_rows
from interlock.report.summary import Evaluation

Step = Callable[..., StepMetrics]


def paid(step: int) -> dict[str, Any]:
    """Of ten steps, of which the last eight are 3 to 10."""
    style = RewardMetrics(
        weight=2.0, low=0.0, high=1.0, mean=step / 10, earned=step / 5, share=step / 20, tie=-0.1,
        at_low=0.0, at_high=1.0 if step > 2 else 0.0,
    )  # fmt: skip
    accuracy = RewardMetrics(weight=1.0, low=0.0, high=1.0, mean=0.5, earned=0.5, at_high=0.5)
    rewards = {"accuracy": accuracy, "<style>": style}
    return {"rewards": rewards, "verdict": 0.5, "length_slope": 0.1 * step, "length_share": 0.25}


def test_rows_are_means_over_the_last_eight_steps(grpo_step: Step) -> None:
    older = grpo_step(0, 1, rollout={"rewards": {"old": RewardMetrics(mean=1.0)}})
    rows = reward_rows([older, *(grpo_step(1, step, rollout=paid(step)) for step in range(1, 11))])
    assert [row.name for row in rows] == ["accuracy", "<style>"]  # of the last stage alone
    style = rows[1]
    assert (style.weight, style.low, style.high) == (2.0, 0.0, 1.0)
    assert style.first == pytest.approx(0.45)  # of 1 to 8
    assert style.mean == pytest.approx(0.65)  # of 3 to 10
    assert (style.earned, style.share) == (pytest.approx(1.3), pytest.approx(0.325))
    assert (style.tie, style.bound) == (pytest.approx(-0.1), "high")
    assert (rows[0].share, rows[0].tie, rows[0].bound) == (None, None, "")
    assert reward_rows([grpo_step(0, 1)]) == []


def test_every_line_shows_what_was_logged(grpo_step: Step) -> None:
    metrics = [grpo_step(0, step, rollout=paid(step)) for step in (1, 2, 3)]
    evaluations = [Evaluation(0, 0, 0.25, 4), Evaluation(0, 3, 0.5, 4)]
    timeline = Timeline(metrics, evaluations)
    plots = {
        plot.id: plot.figure(timeline) for plot in reward_plots(metrics, evaluations, timeline)
    }
    for figure in plots.values():
        go.Figure(figure)
    lines = {id: [(t["name"], t["y"]) for t in figure["data"]] for id, figure in plots.items()}
    assert lines == {
        "proxy": [
            ("reward", [0.01, 0.02, 0.03]),
            ("verifier, same answers", [0.5] * 3),
            ("held-out accuracy", [0.25, 0.5]),
        ],
        "shares": [("&lt;style&gt;", [0.05, 0.1, 0.15])],
        "earned": [
            ("accuracy", [0.5] * 3),
            ("&lt;style&gt;", [0.2, 0.4, 0.6]),
            ("&lt;style&gt;", [-0.1] * 3),
        ],
        "slope": [("slope", [0.1, 0.2, 0.1 * 3]), ("explained", [0.25] * 3)],
    }
    # A reward that is what the verifier says is drawn under it, and seen between its dots.
    assert [line["line"].get("dash") for line in plots["proxy"]["data"]] == [None, "dot", None]


def test_a_run_without_these_figures_has_no_section(grpo_step: Step) -> None:
    metrics = [grpo_step(0, 1)]
    assert reward_plots(metrics, [], Timeline(metrics, [])) == []


def test_the_alarm_is_said_where_one_looks() -> None:
    events = [Event(1.0, "reward_hacked", "step 3: it pays"), Event(1.0, "resumed", "again")]
    assert hacked(events) == ["step 3: it pays"]
