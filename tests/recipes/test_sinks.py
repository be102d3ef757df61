"""Who listens to a run: trackers hear what is logged, and one that fails costs nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from interlock.config.reading import load_recipe
from interlock.errors import TaskError
from interlock.recipes.sinks import Sink, Sinks
from interlock.recipes.train import train
from interlock.records.metrics import Event, StepMetrics
from interlock.rundir import RunDir


class Recorder(Sink):
    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []
        self.events: list[Event] = []
        self.calls: list[Any] = []

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def done(self) -> None:
        self.calls.append("done")

    def stage(self, *told: Any) -> None:
        self.calls.append(told)


class Broken(Sink):
    def step(self, metrics: StepMetrics) -> None:
        raise ConnectionError("the tracker is down")

    def event(self, event: Event) -> None:
        raise ValueError("again")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with RunDir.create(tmp_path / "run", {}, {}) as made:
        yield made


def test_a_tracker_hears_what_is_logged_and_a_broken_one_costs_nothing(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    first, last = Recorder(), Recorder()
    recipe = load_recipe(tiny_recipe, ["stage.steps=2", "stage.eval.every=0"])
    train(recipe, tmp_path / "run", sinks=[first, Broken(), last])
    view = RunDir.read(tmp_path / "run")
    assert view.status == "finished"
    assert first.steps == last.steps == view.metrics()
    assert [metrics.step for metrics in first.steps] == [0, 1, 2]
    assert first.calls == last.calls == [(0, "grpo", 0, 2), "done"]
    shown, counted = view.events()
    assert first.events == last.events == [shown]
    assert shown.kind == counted.kind == "sink_failed"
    assert shown.message == "the sink Broken raised ConnectionError: the tracker is down"
    assert counted.message == "the sink Broken raised 4 times"  # three steps, one event


def test_done_comes_however_it_ends(tiny_recipe: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    recipe = load_recipe(tiny_recipe, ["stage.task.options.path=/nowhere.jsonl"])
    with pytest.raises(TaskError):
        train(recipe, tmp_path / "run", sinks=[recorder])
    assert recorder.calls == ["done"] and not (tmp_path / "run").exists()


def test_before_there_is_a_run_a_failure_is_a_note() -> None:
    notes: list[str] = []

    class Notes(Sink):
        def note(self, message: str) -> None:
            notes.append(message)

    class Restless(Sink):
        def phase(self, name: str, total: int = 0) -> None:
            raise KeyError(name)

    sinks = Sinks([Restless(), Notes()])
    for _ in range(3):
        sinks.phase("opening the model")
    assert notes == ["the sink Restless raised KeyError: 'opening the model'"]


def test_a_sink_that_fails_once_is_told_of_once(run: RunDir) -> None:
    class Once(Sink):
        def done(self) -> None:
            raise RuntimeError("no")

    sinks = Sinks([Once()])
    with sinks.of(run):
        sinks.done()
    assert [event.message for event in run.events()] == ["the sink Once raised RuntimeError: no"]


def test_an_interrupt_is_no_failure_of_a_sink(run: RunDir) -> None:
    class Interrupted(Sink):
        def advance(self) -> None:
            raise KeyboardInterrupt

    sinks = Sinks([Interrupted()])
    with pytest.raises(KeyboardInterrupt), sinks.of(run):
        sinks.advance()
    assert run.events() == []


def test_the_tracker_of_the_documentation(tiny_recipe: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class" in block
    ]
    defined: dict[str, Any] = {}
    exec(code, defined)
    recipe = load_recipe(tiny_recipe, ["stage.steps=2", "stage.eval.every=0"])
    tracker = defined["Tracker"](tmp_path / "sent.jsonl")
    train(recipe, tmp_path / "run", sinks=[tracker])
    sent = [json.loads(line) for line in (tmp_path / "sent.jsonl").read_text().splitlines()]
    metrics = RunDir.read(tmp_path / "run").metrics()
    assert [line["rollout/reward"] for line in sent[1:]] == [m.rollout.reward for m in metrics[1:]]
    assert {key for key in sent[0] if not key.startswith("cost/")} == {
        "step",
        "accuracy",
        "held_out_reward",
    }
    assert sent[0]["cost/chip_hours"] == metrics[0].cost.chip_hours
    assert sent[2]["seconds/update"] > 0 and sent[2]["workers/generator-0/tokens"] > 0
