from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest
from msgspec.structs import replace

from interlock.records.metrics import StepMetrics, StepSeconds, UpdateMetrics
from interlock.report.drawing import Timeline
from interlock.report.plots import plots
from interlock.report.summary import Evaluation

Step = Callable[..., StepMetrics]


def traces(metrics: list[StepMetrics], *evaluations: Evaluation) -> dict[str, dict[str, Any]]:
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
    logged: dict[tuple[str, str], Callable[[StepMetrics], float | None]] = {
        ("reward", "each step"): lambda m: m.rollout.reward,
        ("reward", "right"): lambda m: m.rollout.correct,
        ("loss", "loss"): lambda m: m.update.loss,
        ("gradient", "gradient norm"): lambda m: m.update.grad_norm,
        ("gradient", "learning rate"): lambda m: m.update.lr,
        ("length", "length"): lambda m: m.rollout.length,
        ("length", "share cut"): lambda m: m.rollout.truncated,
        ("entropy", "entropy"): lambda m: m.update.entropy,
        ("mismatch", "k3"): lambda m: 1e-4 * m.step,
        ("mismatch", "ratio > 2"): lambda m: 1e-3 * m.step,
        ("time", "generation"): lambda m: m.seconds.generate,
        ("time", "verification"): lambda m: m.seconds.verify,
        ("time", "update"): lambda m: m.seconds.update,
    }
    for (plot, name), figure in logged.items():
        assert shown[plot][name]["x"] == [1, 2, 3, 4, 5]
        assert shown[plot][name]["y"] == [figure(line) for line in metrics]
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
    sft = [sft_step(step, loss=9.0 - step) for step in (1, 2, 3)]
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


def sft_step(step: int, **update: Any) -> StepMetrics:
    return StepMetrics(stage=0, step=step, kind="sft", update=UpdateMetrics(**update))


def test_an_sft_step_is_all_update() -> None:
    step = sft_step(1, tokens=1000, loss=2.0, grad_norm=1.0, lr=1e-5)
    shown = traces([replace(step, seconds=StepSeconds(update=4.0, step=4.5))])
    assert list(shown) == ["loss", "gradient", "time", "speed"]
    assert shown["time"]["update"]["y"] == [4.0]
    assert shown["time"]["other"]["y"] == [0.5]
    assert shown["speed"]["update"]["y"] == [250.0]


def test_held_out_loss_is_a_line_through_the_steps_that_measure_it() -> None:
    first = [replace(sft_step(step, loss=9.0 - step), held_out_loss=None) for step in range(1, 5)]
    first[1], first[3] = (replace(first[n], held_out_loss=8.0 - n) for n in (1, 3))
    other = replace(sft_step(1, loss=3.0), stage=1, held_out_loss=2.5)
    shown = traces([*first, other])["loss"]
    assert shown["loss"]["y"] == [8.0, 7.0, 6.0, 5.0, None, 3.0]
    assert (shown["held out"]["x"], shown["held out"]["y"]) == (
        [2, 4, None, 5],
        [7.0, 5.0, None, 2.5],
    )


def test_a_step_of_a_fleet_waits_and_publishes(grpo_step: Step) -> None:
    line = grpo_step(0, 1, seconds={"wait": 2.0, "publish": 1.5, "generate": None})
    shown = traces([line])["time"]
    assert list(shown) == ["waiting for groups", "verification", "update", "publishing", "other"]
    assert [trace["y"] for trace in shown.values()] == [[2.0], [0.5], [4.0], [1.5], [2.0]]


def test_reward_has_a_trailing_mean_that_begins_anew_with_each_stage(grpo_step: Step) -> None:
    rewards: list[float | None] = [0.0] * 20 + [1.0] * 20
    rewards[3] = 8.0
    rewards[5] = None  # a step without a reward neither counts nor breaks the window
    metrics = [
        grpo_step(at // 20, at % 20 + 1, rollout={"reward": reward})
        for at, reward in enumerate(rewards)
    ]
    mean = traces(metrics)["reward"]["mean of 3 steps"]
    expected = [0, 0, 0, 8 / 3, 8 / 3, None, 8 / 3, 0]
    assert mean["y"][:8] == pytest.approx(expected)
    assert mean["y"][20:24] == [None, 1.0, 1.0, 1.0]
    assert traces(metrics[:19])["reward"].keys() == {"each step", "right"}


def test_thinking_stands_beside_the_answer_where_a_model_thinks(grpo_step: Step) -> None:
    thinks = {"thinking_length": 15.0, "answer_length": 7.0}
    shown = traces([grpo_step(0, 1, rollout=thinks), grpo_step(0, 2)])["length"]
    assert (shown["thinking"]["y"], shown["answer"]["y"]) == ([15.0, None], [7.0, None])
    plain = {"thinking_length": 0.0, "answer_length": 21.0}
    assert traces([grpo_step(0, 1, rollout=plain)])["length"].keys() == {"length", "share cut"}


def test_the_share_of_thinking_that_its_budget_ended_is_told_where_there_is_one(
    grpo_step: Step,
) -> None:
    cut = {"thinking_cut": 12, "completions": 48}
    shown = traces([grpo_step(0, 1, rollout=cut)])["length"]
    assert shown["thinking ended by its budget"]["y"] == [0.25]


def test_missing_numbers_are_gaps(grpo_step: Step) -> None:
    metrics = [
        grpo_step(0, 1, update={"entropy": None}, seconds={"generate": 0.0}),
        grpo_step(0, 2, update={"entropy": None}, rollout={"tokens": None}),
        grpo_step(0, 3),
    ]
    shown = traces(metrics)
    assert shown["entropy"]["entropy"]["y"] == [None, None, 1 / 3]
    assert shown["speed"]["generation"]["y"] == [None, None, 600.0]


def test_nothing_logged_gives_no_plots() -> None:
    assert traces([]) == {}
    assert traces([StepMetrics(stage=0, step=1)]) == {}


def test_points_on_an_axis_are_whole_and_small_losses_are_numbers(grpo_step: Step) -> None:
    metrics = [grpo_step(0, step) for step in range(1, 4)]
    timeline = Timeline(metrics, [])
    figures = {plot.id: plot.figure(timeline) for plot in plots(metrics, [], timeline)}
    drawn = [trace for figure in figures.values() for trace in figure["data"]]
    assert {trace.get("cliponaxis", True) for trace in drawn if trace["type"] == "scatter"} == {
        False
    }
    assert figures["loss"]["layout"]["yaxis"]["exponentformat"] == "e"
