"""Runs that are made longer, stages that start elsewhere, and stages by themselves."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from interlock.cli.staging import only
from interlock.config.reading import load_recipe
from interlock.config.schema import Recipe
from interlock.errors import ConfigError, RunError
from interlock.recipes.train import train
from interlock.rundir import RunDir

SFT = """
[[stage]]
kind = "sft"
name = "{name}"
data = "{data}"
steps = 3
batch_size = 2
optimizer.lr = 1e-2
"""


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    """Two stages, one after the other, on different words."""
    text = f'model.path = "{tiny_model}"\nlearner.dtype = "float32"\n'
    for name, words in (("one", "red green blue"), ("two", "black white grey")):
        data = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"{word} " * 4} for word in words.split()]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text += SFT.format(name=name, data=data)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def weights(run: Path) -> bytes:
    return (run / "weights" / "model.safetensors").read_bytes()


def first(recipe: Recipe) -> Recipe:
    return replace(recipe, stage=recipe.stage[:1])


def test_a_finished_run_with_a_stage_more_is_the_longer_recipe(
    recipe: Path, tmp_path: Path
) -> None:
    whole, run = load_recipe(recipe, ["model.clock=2026-01-01T00:00:00"]), tmp_path / "run"
    train(whole, tmp_path / "whole")
    train(first(whole), run)
    before = json.loads((run / "config.json").read_text())
    train(whole, run, resume=True)
    assert weights(run) == weights(tmp_path / "whole")
    view, theirs = RunDir.read(run), RunDir.read(tmp_path / "whole")
    assert [event.kind for event in view.events()] == ["resumed", "extended"]
    assert "resumed with more stages: two" in view.events()[1].message
    (line,) = (run / "config-history.jsonl").read_text().splitlines()
    assert json.loads(line)["config"] == before
    assert view.config == theirs.config
    assert view.manifest.inputs == theirs.manifest.inputs
    # What is finished is never run again: nothing of it is logged a second time.
    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in (0, 1) for step in range(4)
    ]
    train(whole, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == text
    # What each stage left is kept; the last one's weights are the run's.
    assert [path.name for path in (run / "stages").iterdir()] == ["00-one"]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_steps_are_the_longer_run_unless_a_schedule_runs_over_them(
    schedule: str, recipe: Path, tmp_path: Path
) -> None:
    asked = [f"stage.0.optimizer.schedule={schedule}"]
    longer = first(load_recipe(recipe, [*asked, "stage.0.steps=5"]))
    train(longer, tmp_path / "whole")
    train(first(load_recipe(recipe, asked)), tmp_path / "run")
    train(longer, tmp_path / "run", resume=True)
    same = weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert same == (schedule == "constant")
    kinds = [event.kind for event in RunDir.read(tmp_path / "run").events()]
    assert kinds == ["resumed", "settings_changed"]


def test_what_a_finished_run_may_not_become(recipe: Path, tmp_path: Path) -> None:
    whole, run = load_recipe(recipe), tmp_path / "run"
    train(whole, run)
    kept = {path: path.read_bytes() for path in run.glob("*.json*")}
    for asked, complaint in (
        (first(whole), "was run with 2 stages, not 1"),
        (load_recipe(recipe, ["stage.0.steps=4"]), r"stage\[0\]\.steps = 3, not 4"),
        (load_recipe(recipe, ["stage.1.steps=2"]), r"stage\[1\]\.steps = 3, not 2"),
        (load_recipe(recipe, ["stage.1.batch_size=1"]), r"batch_size = 2, not 1"),
    ):
        with pytest.raises(RunError, match=complaint):
            train(asked, run, resume=True)
    (tmp_path / "one.jsonl").write_text('{"text": "other words"}\n')
    with pytest.raises(RunError, match=r"began with another stage 0: one\.jsonl"):
        train(whole, run, resume=True)
    assert {path: path.read_bytes() for path in run.glob("*.json*")} == kept


def changed(run: Path) -> None:
    path = run / "weights" / "model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_stage_starts_from_the_model_another_run_or_an_earlier_stage(
    recipe: Path, tmp_path: Path
) -> None:
    sequence = load_recipe(recipe)
    one, two = sequence.stage
    train(sequence, tmp_path / "sequence")
    train(first(sequence), tmp_path / "first")

    again = load_recipe(recipe, ["stage.1.from=model"])
    train(again, tmp_path / "again")
    alone = only(again, "two", None)
    assert len(alone.stage) == 1
    train(alone, tmp_path / "alone")
    assert weights(tmp_path / "again") == weights(tmp_path / "alone")
    assert weights(tmp_path / "again") != weights(tmp_path / "sequence")

    between = replace(two, name="between")
    back = replace(sequence, stage=[one, between, replace(two, origin="stage:one")])
    train(back, tmp_path / "back")
    (started,) = RunDir.read(tmp_path / "back").events()
    left = hashlib.sha256((tmp_path / "back/stages/00-one/model.safetensors").read_bytes())
    assert started.facts["digest"] == f"sha256 {hashlib.sha256(left.digest()).hexdigest()}"
    with pytest.raises(ConfigError, match="stage 2 starts from stage:one; go on with a run"):
        only(back, "2", None)
    assert weights(tmp_path / "back") == weights(tmp_path / "sequence")

    other = replace(sequence, stage=[replace(two, origin=str(tmp_path / "first"))])
    train(other, tmp_path / "other")
    assert weights(tmp_path / "other") == weights(tmp_path / "sequence")
    view = RunDir.read(tmp_path / "other")
    digest = view.manifest.inputs[f"stage 0: from {tmp_path / 'first'}"]
    (event,) = view.events()
    assert (event.kind, event.facts["digest"]) == ("started_from", digest)
    changed(tmp_path / "first")  # it has begun: what it began with may be another
    train(other, tmp_path / "other", resume=True)
    assert weights(tmp_path / "other") == weights(tmp_path / "sequence")


def test_other_weights_than_those_recorded_are_refused_before_the_stage_begins(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(first(load_recipe(recipe)), tmp_path / "first")
    asked = load_recipe(recipe, [f"stage.1.from={tmp_path / 'first'}"])

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("interlock.recipes.starts._load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(asked, tmp_path / "run")
    monkeypatch.undo()
    changed(tmp_path / "first")
    with pytest.raises(RunError, match="began with another stage 1: from"):
        train(asked, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("stage.1.from=stage:three", "none before it is named so"),
        ("stage.0.from=stage:two", "none before it is named so"),
        ("stage.1.from=''", "names nothing; remove it"),
        ("stage.1.name=one", "is another stage's, too"),
        ("stage.1.name='7'", "no number alone"),
        ("stage.1.name=a/b", "use letters, digits"),
    ],
)
def test_names_that_are_none(override: str, complaint: str, recipe: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(recipe, [override])


def test_weights_of_another_shape_are_refused(
    recipe: Path, tmp_path: Path, tiny_model: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(
        ConfigError, match=r"stage two: from = .* another model than .* \(layers is 1, not 2\)"
    ):
        train(load_recipe(recipe, [f"stage.1.from={other}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_made_longer_is_not_started_from_until_it_ends(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first_run = load_recipe(recipe), tmp_path / "first"
    train(first(whole), first_run)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("interlock.recipes.sft.learn", interrupted)
        train(whole, first_run, resume=True)
    asked = replace(whole, stage=[replace(whole.stage[1], origin=str(first_run))])
    with pytest.raises(ConfigError, match=r"^stage two: from = .* that run is interrupted, and"):
        train(asked, tmp_path / "run")
    before = replace(asked.stage[0], origin=str(first_run / "weights"))
    train(replace(asked, stage=[before]), tmp_path / "run")


def test_stage_after_stage_by_name_is_the_whole_recipe(recipe: Path, tmp_path: Path) -> None:
    whole, run = load_recipe(recipe), tmp_path / "run"
    train(whole, tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"or say what it starts from: stage\.1\.from=runs/x"):
        only(whole, "two", None)
    train(only(whole, "one", None), run)
    train(only(whole, "1", run), run, resume=True)
    assert weights(run) == weights(tmp_path / "whole")
    with pytest.raises(
        ConfigError, match="there is no stage 'three'; give a name or a place: one, two"
    ):
        only(whole, "three", None)
    longer = replace(whole, stage=[replace(whole.stage[0], steps=9), whole.stage[1]])
    train(only(whole, "one", None), tmp_path / "begun")
    with pytest.raises(ConfigError, match="comes after stage 0, which is not finished"):
        only(longer, "two", tmp_path / "begun")


def test_the_reference_is_what_the_stage_starts_from(tiny_recipe: Path, tmp_path: Path) -> None:
    short = ["stage.steps=2", "stage.eval.every=0"]
    train(load_recipe(tiny_recipe, short), tmp_path / "first")
    asked = [*short, f"stage.from={tmp_path / 'first'}", "stage.loss.kl_beta=0.1"]
    train(load_recipe(tiny_recipe, asked), tmp_path / "run")
    assert RunDir.read(tmp_path / "run").metrics()[1].update.kl == 0


def test_what_a_kill_left_half_written_beside_is_put_away(recipe: Path, tmp_path: Path) -> None:
    whole, run = load_recipe(recipe), tmp_path / "run"
    train(first(whole), run)
    for name in ("stages", "data"):
        (run / name / ".tmp-half").mkdir(parents=True)
    train(whole, run, resume=True)
    assert [path.name for path in (run / "stages").iterdir()] == ["00-one"]
    assert list((run / "data").iterdir()) == []
    assert "recovered" in [event.kind for event in RunDir.read(run).events()]


def test_a_finished_run_without_a_checkpoint_is_not_run_again(recipe: Path, tmp_path: Path) -> None:
    whole, run = load_recipe(recipe, ["keep_checkpoints=0"]), tmp_path / "run"
    train(first(whole), run)
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"kept no checkpoint .* new run with stage\.0\.from="):
        train(whole, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == metrics
