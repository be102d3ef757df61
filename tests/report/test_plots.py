from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest

from interlock.report.plots import Timeline, plots
from interlock.report.summary import Evaluation

Step = Callable[..., dict[str, Any]]


def traces(metrics: list[dict[str, Any]], *evaluations: Evaluation) -> dict[str, dict[str, Any]]:
    """All traces as plot id -> trace name -> trace; every figure must be valid plotly."""
    timeline = Timeline(metrics, evaluations)
    found: dict[str, dict[str, Any]] = {}
    for plot in plots(metrics, evaluations, timeline):
        figure = plot.figure(timeline)
        go.Figure(figure)  # raises on a property that plotly does not know
        found[plot.id] = {trace["name"]: trace for trace in figure["data"]}
    return found


def test_every_plot_shows_the_logged_numbers(grpo_step: Step) -> None:
    metrics = [grpo_step(0, step) for step in range(1, 6)]
    shown = traces(metrics, Evaluation(0, 0, 0.25, 4), Evaluation(0, 5, 0.5, None))
    logged = {
        ("reward", "each step"): "reward",
        ("loss", "loss"): "loss",
        ("gradient", "gradient norm"): "grad_norm",
        ("gradient", "learning rate"): "lr",
        ("length", "length"): "length",
        ("length", "share cut"): "truncated",
        ("entropy", "entropy"): "entropy",
        ("mismatch", "k3"): "mismatch_k3",
        ("mismatch", "ratio > 2"): "mismatch_share_above_2",
        ("time", "generation"): "seconds_generate",
        ("time", "verification"): "seconds_verify",
        ("time", "update"): "seconds_update",
    }
    for (plot, name), key in logged.items():
        assert shown[plot][name]["x"] == [1, 2, 3, 4, 5]
        assert shown[plot][name]["y"] == [line[key] for line in metrics]
    assert shown["time"]["other"]["y"] == [0.5] * 5  # 10 - 5 - 0.5 - 4
    assert shown["speed"]["generation"]["y"] == [200.0 * step for step in range(1, 6)]
    assert shown["speed"]["update"]["y"] == [200.0 * step for step in range(1, 6)]
    assert list(shown) == [
        "accuracy", "reward", "loss", "gradient", "length", "entropy", "mismatch", "time", "speed",
    ]  # fmt: skip


def test_accuracy_carries_its_interval_where_the_number_of_problems_is_known() -> None:
    shown = traces([], Evaluation(0, 0, 0.8, 10), Evaluation(0, 4, 0.9, None))
    line = shown["accuracy"]["accuracy"]
    assert (line["x"], line["y"]) == ([0, 4], [0.8, 0.9])
    assert line["error_y"]["array"] == pytest.approx([0.9433178 - 0.8, 0])
    assert line["error_y"]["arrayminus"] == pytest.approx([0.8 - 0.4901625, 0])


def test_stages_follow_one_another_and_lines_break_between_them(grpo_step: Step) -> None:
    sft = [{"stage": 0, "kind": "sft", "step": step, "loss": 9.0 - step} for step in (1, 2, 3)]
    grpo = [grpo_step(1, step, kind="<b>") for step in (1, 2)]
    evaluations = [Evaluation(1, 0, 0.1, 4), Evaluation(1, 2, 0.5, 4)]
    shown = traces([*sft, *grpo], *evaluations)
    assert shown["loss"]["loss"]["x"] == [1, 2, 3, None, 4, 5]
    assert shown["loss"]["loss"]["y"] == [8.0, 7.0, 6.0, None, -1, -2]
    assert shown["entropy"]["entropy"]["y"] == [None, None, None, None, 1.0, 0.5]
    assert shown["accuracy"]["accuracy"]["x"] == [3, 5]
    marks = Timeline([*sft, *grpo], evaluations).marks()
    assert [shape["x0"] for shape in marks["shapes"]] == [3]
    assert [note["text"] for note in marks["annotations"]] == ["0: sft", "1: &lt;b&gt;"]


def test_an_sft_step_is_all_update(grpo_step: Step) -> None:
    metrics = [
        {"stage": 0, "kind": "sft", "step": 1, "seconds_step": 4.0, "trained_tokens": 1000,
         "loss": 2.0, "grad_norm": 1.0, "lr": 1e-5}
    ]  # fmt: skip
    shown = traces(metrics)
    assert list(shown) == ["loss", "gradient", "time", "speed"]
    assert shown["time"]["update"]["y"] == [4.0]
    assert shown["time"]["other"]["y"] == [0.0]
    assert shown["speed"]["update"]["y"] == [250.0]


def test_a_step_of_a_fleet_waits_and_publishes(grpo_step: Step) -> None:
    line = grpo_step(0, 1, seconds_wait=2.0, seconds_publish=1.5, seconds_generate=None)
    shown = traces([line])["time"]
    assert list(shown) == ["waiting for groups", "verification", "update", "publishing", "other"]
    assert [trace["y"] for trace in shown.values()] == [[2.0], [0.5], [4.0], [1.5], [2.0]]


def test_reward_has_a_trailing_mean_that_begins_anew_with_each_stage(grpo_step: Step) -> None:
    metrics = [
        grpo_step(stage, step, reward=float(stage)) for stage in (0, 1) for step in range(1, 21)
    ]
    metrics[3]["reward"] = 8.0
    metrics[5]["reward"] = None  # a step without a reward neither counts nor breaks the window
    mean = traces(metrics)["reward"]["mean of 3 steps"]
    expected = [0, 0, 0, 8 / 3, 8 / 3, None, 8 / 3, 0]
    assert mean["y"][:8] == pytest.approx(expected)
    assert mean["y"][20:24] == [None, 1.0, 1.0, 1.0]
    assert traces(metrics[:19])["reward"].keys() == {"each step"}


def test_missing_and_odd_numbers_are_gaps(grpo_step: Step) -> None:
    metrics = [
        grpo_step(0, 1, entropy=None, seconds_generate=0.0),
        grpo_step(0, 2, entropy="high", generated_tokens=None),
        grpo_step(0, 3),
    ]
    shown = traces(metrics)
    assert shown["entropy"]["entropy"]["y"] == [None, None, 1 / 3]
    assert shown["speed"]["generation"]["y"] == [None, None, 600.0]


def test_nothing_logged_gives_no_plots() -> None:
    assert traces([]) == {}
    assert traces([{"stage": 0, "step": 1}]) == {}
