"""Both sides of a move, on the page and in the plots."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from interlock.records.metrics import StepMetrics
from interlock.records.moves import Location, Move
from interlock.records.trust import Finding, Measure, Result, Stack
from interlock.report import moves, write_report
from interlock.report.drawing import Timeline
from interlock.rundir import RunDir

CPU = Location({"device": "cpu"}, Stack("cpu", "A <processor>", torch="2.13"))
NPU = Location({"device": "npu:0"}, Stack("npu", "910B", driver="24.1", torch="2.13"))
LIMIT = Measure("loss", 1e-7, 1e-6)
FINDING = Finding("updates", Result.PASS, "all <right>", measures=[LIMIT] * 9)
THERE = Move("learner", CPU, NPU, 0, 2, 100.0, [FINDING], "train")
BACK = Move("learner", NPU, CPU, 0, 3, 200.0, [], "cpu", undoes=1, discarded=True)


@pytest.fixture
def metrics(grpo_step: Callable[..., StepMetrics]) -> list[StepMetrics]:
    """Steps 1 and 2 on the CPU, 3 on the other chip, 4 on the CPU again."""
    times = {0: 1.0, 1: 10.0, 2: 20.0, 3: 150.0, 4: 300.0}
    return [replace(grpo_step(0, step), time=time) for step, time in times.items() if step]


def test_each_side_has_the_steps_that_it_computed(metrics: list[StepMetrics]) -> None:
    before, there, after = moves.sides([THERE, BACK], metrics)
    assert [before.device, there.device, after.device] == ["cpu", "npu:0", "cpu"]
    assert (before.steps, before.first, before.last) == (2, "1", "2")
    assert (there.steps, there.first, there.last, after.steps) == (1, "3", "3", 1)
    # Steps of 10 s, of which 4 s updates on 800 tokens times the step's number.
    assert before.step_s == 10.0 and before.rate == 800 * 3 / 8 and there.rate == 800 * 3 / 4
    # k3 is 1e-4 times the step, by 800 times the step tokens: (1 * 1 + 2 * 2) / 3.
    assert before.k3 == pytest.approx(5e-4 / 3) and there.k3 == pytest.approx(3e-4)
    assert there.stack == "910B · 24.1 · torch 2.13"
    assert moves.sides([], metrics) == []


def test_a_mark_in_the_curves(metrics: list[StepMetrics]) -> None:
    timeline = Timeline(metrics, [], moves.marks([THERE, BACK]))
    found = timeline.marks()
    assert [shape["x0"] for shape in found["shapes"]] == [2, 3]
    assert [each["text"] for each in found["annotations"]] == ["→ npu:0", "→ cpu"]
    assert Timeline(metrics, []).marks() == {"shapes": [], "annotations": []}


def test_the_page_shows_both_sides_and_why(
    make_run: Callable[..., RunDir], metrics: list[StepMetrics]
) -> None:
    run = make_run()
    run.moved(THERE)
    run.moved(BACK)
    text = write_report(run.path).read_text()
    assert "learner: cpu → npu:0, from stage 0 step 2" in text
    assert "takes move 1 back, and what came since is put aside" in text
    assert "A &lt;processor&gt; · torch 2.13" in text and "updates: pass" in text
    assert text.count("loss: 1e-07, at most 1e-06") == 4
