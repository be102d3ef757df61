"""The updates of every kind of stage are repeated as the run made them, from its checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from stopping import train_until

from interlock.config.reading import load_recipe, recipe_of_run
from interlock.config.schema import Recipe
from interlock.errors import RunError
from interlock.mismatch import mismatch
from interlock.recipes.past import cut
from interlock.recipes.repeat import answers
from interlock.records.adapters import AdapterForm
from interlock.records.moves import DeviceOpened, Repeat, Repeated
from interlock.rundir import RunDir

TEXTS = {"kind": "sft", "batch_size": 2, "max_tokens": 64}
ROWS = {"kind": "pretrain", "batch_size": 2, "row_tokens": 16}


def of_texts(model: Path, directory: Path, stage: dict[str, Any]) -> Recipe:
    data = directory / "rows.jsonl"
    lines = [json.dumps({"text": f"The number {n} is followed by {n + 1}."}) for n in range(9)]
    data.write_text("\n".join(lines) + "\n")
    learns = {"steps": 6, "data": str(data), "optimizer": {"lr": 1e-3}}
    return recipe_of_run(
        {
            "model": {"path": str(model)},
            "learner": {"dtype": "float32"},
            "checkpoint_every": 3,
            "stage": [stage | learns],
        }
    )


def repeated(run: Path, **asked: Any) -> tuple[DeviceOpened, list[Repeated]]:
    opened, *sides = answers(Repeat(str(run), "cpu", **asked))
    assert isinstance(opened, DeviceOpened)
    return opened, [side for side in sides if isinstance(side, Repeated)]


def check_as_logged(run: Path) -> None:
    """Steps 4 and 5: on the same CPU to the bit."""
    opened, (exact, own, target) = repeated(run, updates=2)
    assert opened.recorded and opened.steps == [4, 5] and opened.dtypes == ["float32"]
    lines = {line.step: line.update for line in RunDir.read(run).metrics()}
    for made in target.updates:
        assert (made.loss, made.grad_norm) == (lines[made.step].loss, lines[made.step].grad_norm)
        assert made.whole
    assert own.updates == target.updates and own.gradients == target.gradients
    assert [made.loss for made in exact.updates] == pytest.approx(
        [made.loss for made in own.updates], abs=1e-5
    )
    assert exact.updates != own.updates
    assert 0 < own.gradients[""] < 1e-4 and own.moved is not None and 0 < own.moved < 1e-2


@pytest.mark.parametrize("stage", [TEXTS, ROWS], ids=["sft", "pretrain"])
def test_of_texts(tiny_model: Path, tmp_path: Path, stage: dict[str, Any]) -> None:
    run = tmp_path / "run"
    train_until(of_texts(tiny_model, tmp_path, stage), run, 5)
    check_as_logged(run)


def test_of_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    recipe = of_texts(tiny_model, tmp_path, TEXTS)
    run, form = tmp_path / "run", AdapterForm(rank=4, alpha=8.0)
    train_until(replace(recipe, learner=replace(recipe.learner, lora=form)), run, 5)
    check_as_logged(run)


def test_of_a_policy_with_several_updates_a_step(tiny_recipe: Path, tmp_path: Path) -> None:
    more = ("stage.updates_per_step=2", "stage.loss.kl_beta=0.01", "stage.loss.reference_every=2")
    quiet = ("stage.eval.every=0", "stage.eval.problems=2")
    run = tmp_path / "run"
    train_until(load_recipe(tiny_recipe, [*more, *quiet]), run, 5)
    check_as_logged(run)
    # Where nothing comes after the checkpoint, the last before it: at other weights.
    view = RunDir.read(run)
    opened, sides = repeated(run, updates=1, tokens=40)
    assert opened.steps == [4] and not sides[-1].updates[0].whole
    view.close()


def test_in_bfloat16_the_rounding_of_weights_is_no_distance(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = of_texts(tiny_model, tmp_path, TEXTS)
    train_until(replace(recipe, learner=replace(recipe.learner, dtype="bfloat16")), run, 4)
    opened, sides = repeated(run, updates=1)
    assert opened.dtypes == ["bfloat16", "float32"]
    assert [(side.side, side.dtype) for side in sides] == [
        (side, dtype) for dtype in opened.dtypes for side in ("exact", "own", "target")
    ]
    line = RunDir.read(run).metrics()[-1].update
    assert (sides[2].updates[0].loss, sides[2].updates[0].grad_norm) == (line.loss, line.grad_norm)
    apart = mismatch(sides[1].updates[0].logprobs, sides[0].updates[0].logprobs)
    whole = mismatch(sides[1].updates[0].logprobs, sides[3].updates[0].logprobs)
    assert 0 < apart.max < whole.max / 2  # which is to the weights that are not rounded
    assert 1e-4 < sides[1].gradients[""] < 0.05


def test_of_what_lies_behind_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(of_texts(tiny_model, tmp_path, TEXTS), run, 99)
    opened, sides = repeated(run, updates=2)
    assert opened.steps == [5, 6] and not opened.recorded and len(sides) == 3
    for checkpoint in RunDir.read(run).checkpoints():
        (checkpoint.path / "state.json").unlink()
        (checkpoint.path / "masters.safetensors").unlink()
        for file in checkpoint.path.iterdir():
            file.unlink()
        checkpoint.path.rmdir()
    with pytest.raises(RunError, match="has no checkpoint to prove a device with"):
        repeated(run)


def test_an_update_is_cut_to_its_first_groups() -> None:
    from interlock.learner.packing import TrainingGroup

    group = TrainingGroup([1, 2], [[3, 4], [5]], [[1.0, 1.0], [1.0]])  # 5 tokens
    assert cut([[group, group], [group]], 15) == [[group, group], [group]]
    assert cut([[group, group], [group]], 14) == [[group, group]]
    assert cut([[group, group], [group]], 9) == [[group]]
    assert cut([[group, group]], 1) == [[group]]
