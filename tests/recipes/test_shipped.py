"""The recipes of several stages that are shipped: what they say, and whole runs on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from distilling import a_model
from jinja2.sandbox import SandboxedEnvironment

from interlock.config.reading import load_recipe
from interlock.config.stages import Distill, Grpo, RejectSft, Sft
from interlock.models.huggingface import read_architecture
from interlock.recipes import shipped
from interlock.recipes.train import train
from interlock.records.rl import FinishReason
from interlock.rundir import RunDir

SHIPPED = Path(shipped.__file__).parent
BENCH = Path(__file__).parents[2] / "bench" / "recipe_stages.py"
FLOAT32 = ["learner.dtype=float32", "generator.0.dtype=float32", "generator.0.slots=16"]


def small(model: Path, stages: int, tasks: dict[int, int]) -> list[str]:
    """Overrides: the tiny model, short stages, problems of one digit."""
    found = [f"model.path={model}", *FLOAT32]
    for index in range(stages):
        found += [
            f"stage.{index}.steps=6" if index in (0, 4) else f"stage.{index}.steps=3",
            f"stage.{index}.eval.problems=4",
            f"stage.{index}.sampling.max_tokens=12",
        ]
        for task in range(tasks.get(index, 1)):
            found.append(f"stage.{index}.task.{task}.held_out=8")
            found.append(f"stage.{index}.task.{task}.options.digits=1")
    return found


def test_r1_671b_says_what_was_published() -> None:
    cold, reasoning, reject, second, general, preference = load_recipe(
        SHIPPED / "r1-671b.toml"
    ).stage
    for each in (cold, second):
        assert isinstance(each, Sft)
        assert (each.batch_size, each.max_tokens, each.optimizer.lr) == (128, 32768, 5e-5)
        assert each.optimizer.lr * each.optimizer.final_lr == pytest.approx(5e-6)
    for each in (reasoning, general, preference):
        assert isinstance(each, Grpo)
        assert each.problems_per_step * each.completions == 8192
        assert each.problems_per_step // each.updates_per_step == 32
        assert (each.completions, each.optimizer.lr, each.loss.kl_beta) == (16, 3e-6, 1e-3)
    assert reasoning.loss.reference_every * reasoning.updates_per_step == 400
    assert (general.steps + preference.steps) * 16 == pytest.approx(1700, abs=16)
    assert preference.steps * 16 == 400
    assert isinstance(reject, RejectSft) and reject.mix[0].share == 200 / 800
    assert second.origin == "model" and second.rows_of == "reject"


def test_r1_zeros_template_asks_as_its_paper_does() -> None:
    text = (SHIPPED / "r1-zero.jinja").read_text()
    rendered = (
        SandboxedEnvironment()
        .from_string(text)
        .render(messages=[{"role": "user", "content": "1+1"}], add_generation_prompt=True)
    )
    assert rendered.startswith("A conversation between User and Assistant. The user asks")
    assert rendered.endswith("User: 1+1. Assistant:")
    (stage,) = load_recipe(SHIPPED / "r1-zero.toml").stage
    assert isinstance(stage, Grpo)
    assert stage.loss.reference_every == 400 and stage.completions == 16
    assert {each.called: each.weight for each in stage.task[0].reward} == {
        "accuracy": 1.0,
        "format": 1.0,
    }


@pytest.mark.slow
def test_r1_tiny_goes_through_all_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random weights no answer is right or whole: rejection sampling takes them all."""
    as_is = SimpleNamespace(STOP=FinishReason.LENGTH)
    monkeypatch.setattr("interlock.recipes.reject_sft.FinishReason", as_is)
    monkeypatch.setattr("interlock.recipes.reject_sft._why_not", lambda *_: None)
    model = a_model(tmp_path / "model", num_hidden_layers=4)
    changes = [*small(model, 6, {}), "stage.0.worked=8", "stage.2.rounds=1"]
    changes += [f"stage.{index}.problems_per_step=4" for index in (1, 2, 3, 5)]
    changes += [f"stage.{index}.batch_size=4" for index in (0, 2, 4)]
    changes += [f"stage.{index}.optimizer.warmup_steps=1" for index in range(6)]
    recipe = load_recipe(SHIPPED / "r1-tiny.toml", changes)
    kinds = [stage.kind for stage in recipe.stage]
    assert kinds == ["sft", "grpo", "reject-sft", "grpo", "sft", "distill"]
    train(recipe, tmp_path / "run")
    view = RunDir.read(tmp_path / "run")
    measured = [line for line in view.metrics() if line.accuracy is not None]
    assert [line.stage for line in measured] == [at for at in range(6) for _ in range(2)]
    assert read_architecture(tmp_path / "run" / "weights").layers == 2
    assert len((tmp_path / "run" / "data" / "00-cold-start.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_specialists_are_merged_and_every_stage_is_measured(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    changes = [*small(model, 3, {2: 2}), *(f"stage.{i}.problems_per_step=4" for i in range(3))]
    recipe = load_recipe(SHIPPED / "specialists.toml", changes)
    assert isinstance(recipe.stage[2], Distill) and recipe.stage[1].origin == "model"
    runs = tmp_path / "runs"
    train(recipe, runs / "seed-0")
    (metrics,) = [line for line in RunDir.read(runs / "seed-0").metrics() if line.stage == 2][-1:]
    assert {name: each.tokens > 0 for name, each in metrics.teachers.items()} == {
        "sums": True,
        "products": True,
    }
    # The benchmark measures what is there, and a finished run is not run again.
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "specialists", *changes, "--problems", "4"]
    subprocess.run([*command, "--runs", str(runs), "--json", str(figures)], check=True)
    rows = json.loads(figures.read_text())["results"]
    assert [(row["stage"], row["task"]) for row in rows] == [
        (stage, task)
        for stage in ("model", "sums", "products", "merged")
        for task in ("sums", "products")
    ]
    assert all(row["problems"] == 4 and 0 < row["tokens"] <= 12 for row in rows)
