"""Runs whose later stages learn a smaller model from what the earlier ones made."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distilling import a_model
from safetensors.torch import load_file

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError
from interlock.learner.learner import Learner
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.recipes import sft
from interlock.recipes.evaluate import measure, practised
from interlock.recipes.sinks import Sink
from interlock.recipes.stage import Stage
from interlock.recipes.train import train
from interlock.records.rl import FinishReason
from interlock.rundir import RunDir

TASK = """
[[stage.task]]
name = "arithmetic"
options = { digits = 1 }
held_out = 4
"""
RECIPE = """
checkpoint_every = 1
model.path = "{model}"
learner.dtype = "float32"

[[generator]]
dtype = "float32"
slots = 16

[[stage]]
kind = "sft"
name = "cold"
worked = 6
steps = 2
batch_size = 2
sampling.max_tokens = 8
eval.problems = 2
optimizer.lr = 1e-2
{task}
[[stage]]
kind = "reject-sft"
name = "reject"
rounds = 1
steps = 1
problems_per_step = 4
completions = 2
batch_size = 2
sampling.max_tokens = 8
eval.problems = 2
{task}
[[stage]]
kind = "sft"
name = "small"
data = "stage:reject"
every_layer = 2
steps = 2
batch_size = 2
sampling.max_tokens = 8
eval.problems = 2
optimizer.lr = 1e-2
{task}
[[stage]]
kind = "distill"
name = "student"
steps = 2
problems_per_step = 2
sampling.max_tokens = 8
eval.problems = 2
optimizer.lr = 1e-2
{task}
[[stage.teacher]]
model = "stage:reject"
"""
SAMPLED = """
[[stage]]
kind = "grpo"
steps = 1
problems_per_step = 2
completions = 2
sampling.max_tokens = 8
eval.problems = 2
{task}
"""


class Killed(BaseException):
    """As if the process ended here."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All answers of random weights, which never stop, are right and whole."""
    as_is = SimpleNamespace(STOP=FinishReason.LENGTH)
    monkeypatch.setattr("interlock.recipes.reject_sft.FinishReason", as_is)
    monkeypatch.setattr("interlock.recipes.reject_sft._why_not", lambda *_: None)
    model = a_model(tmp_path / "model", num_hidden_layers=3)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=model, task=TASK))
    return path


def weights(run: Path) -> bytes:
    return (run / "weights" / "model.safetensors").read_bytes()


def test_a_student_of_every_second_layer_is_the_runs_model(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_recipe(recipe), run)
    names = sorted(path.name for path in (run / "stages").iterdir())
    assert names == ["00-cold", "01-reject", "02-small", "02-small-begin"]
    layers = {name: read_architecture(run / "stages" / name).layers for name in names}
    assert layers == {"00-cold": 3, "01-reject": 3, "02-small": 2, "02-small-begin": 2}
    assert read_architecture(run / "weights").layers == 2
    # The student began with layers 0 and 2 of what rejection sampling left.
    larger = load_file(run / "stages" / "01-reject" / "model.safetensors")
    began = load_file(run / "stages" / "02-small-begin" / "model.safetensors")
    for theirs, ours in ((0, 0), (2, 1)):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(began[name.format(ours)], larger[name.format(theirs)])
    # The cold start's rows can be read, and so can what the student learned from.
    rows = [json.loads(line) for line in (run / "data" / "00-cold.jsonl").read_text().splitlines()]
    assert len({row["problem"] for row in rows}) == 6
    assert all(row["messages"][-1]["content"].startswith("<think>\n") for row in rows)
    lines = RunDir.read(run).metrics()
    assert [line.accuracy is not None for line in lines if line.step in (0, 2)] == [True] * 8
    assert lines[-1].teachers["teacher-0"].tokens > 0
    # Its evaluation is of the smaller model.
    found = measure(str(run), practised(run), load_recipe(recipe).generator[0], Sink())
    assert len(found) == 2


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[int, set[int]]]]:
    """By stage: learners, and the layers of decoders, that are there when a step of it ends."""
    before = [each for each in gc.get_objects() if type(each) in (Learner, Decoder)]
    found: dict[int, tuple[int, set[int]]] = {}
    finish = Stage.finish_step

    def finished(self: Stage, *args: Any, **more: Any) -> None:
        objects = [each for each in gc.get_objects() if type(each) in (Learner, Decoder)]
        there = [each for each in objects if not any(each is old for old in before)]
        learners = [each for each in there if isinstance(each, Learner)]
        layers = {each.arch.layers for each in there if isinstance(each, Decoder)}
        found[self.index] = len(learners), layers
        finish(self, *args, **more)

    monkeypatch.setattr(Stage, "finish_step", finished)
    gc.disable()  # what is in no circle goes by itself, when nobody refers to it
    try:
        yield found
    finally:
        gc.enable()


def test_what_gave_way_to_a_student_is_there_no_more(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(monkeypatch) as found:
        train(load_recipe(recipe), tmp_path / "run")
    # The last stage's teacher has three layers.
    assert found == {0: (1, {3}), 1: (1, {3}), 2: (1, {2}), 3: (1, {2, 3})}


def test_a_stage_that_generated_is_there_no_more_in_one_that_starts_elsewhere(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then = SAMPLED.format(task=TASK), 'from = "model"\nworked = 6'
    text = recipe.read_text().partition('[[stage]]\nkind = "reject-sft"')[0]
    text = text.replace("[[stage]]\n", first + "[[stage]]\n", 1).replace("worked = 6", then)
    recipe.write_text(text)
    with held(monkeypatch) as found:
        train(load_recipe(recipe), tmp_path / "run")
    assert found == {0: (1, {3}), 1: (1, {3})}


@pytest.mark.parametrize(("stage", "step"), [(2, 0), (2, 1), (3, 1)])
def test_a_run_that_is_killed_while_the_student_learns_ends_in_the_same_weights(
    recipe: Path, tmp_path: Path, stage: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_recipe(recipe, ["model.clock=2026-01-01T00:00:00"])
    train(asked, tmp_path / "whole")
    seed = Stage.seed

    def killed(self: Stage, at: int) -> int:
        if (self.index, self.done) == (stage, step):
            raise Killed
        return seed(self, at)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Stage, "seed", killed)
        train(asked, tmp_path / "run")
    train(asked, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_teacher_is_what_an_earlier_stage_left(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def load(directory: Path, *rest: object) -> object:
        opened.append(directory)
        return load_decoder(directory, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("interlock.recipes.teachers.load_decoder", load)
    train(load_recipe(recipe), tmp_path / "run")
    assert opened == [tmp_path / "run" / "stages" / "01-reject"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("stage.3.from=model", r"stage\.3\.from = 'model' has other layers"),
        ("stage.3.from=stage:cold", "put the stages of the smaller model last"),
        ("stage.2.data=stage:cold", "no reject-sft stage before it is named so"),
        ("stage.2.data=stage:student", "no reject-sft stage before it is named so"),
        ("stage.0.data=x.jsonl", "give either data, or worked"),
        ("stage.0.worked=0", "give either data, or worked"),
        ("stage.3.teacher.0.model=stage:later", "none before it is named so"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run(recipe: Path, change: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_recipe(recipe, [change])


def test_several_processes_are_refused_a_smaller_model(recipe: Path) -> None:
    first, _, small, student = load_recipe(recipe).stage
    assert not first.learns_alone and small.learns_alone and student.learns_alone


def test_only_tasks_with_solutions_have_any(recipe: Path) -> None:
    settings = load_recipe(recipe).stage[0]
    (task,) = settings.task
    problem = sft.open_tasks([task]).train(1, 1)
    (row,) = sft.solutions([task], problem)
    assert row["messages"][:-1] == problem[0].messages and row["source"] == "worked"
