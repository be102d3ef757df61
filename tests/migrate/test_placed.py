"""Which recipe resumes a run that was moved, and that it takes none."""

import argparse
from contextlib import closing
from pathlib import Path

import pytest
from a_move import HERE, THERE, a_move
from msgspec.structs import replace

from interlock.cli.staging import own_recipe
from interlock.config.reading import recipe_of_run, to_tree
from interlock.config.schema import GeneratorSettings, Recipe
from interlock.errors import ConfigError
from interlock.recipes.placed import following
from interlock.recipes.settling import settled
from interlock.rundir import RunDir

CONFIG = {
    "model": {"path": "m"},
    "learner": {"kernel": "onednn", "micro_batch_tokens": 512},
    "stage": [{"kind": "sft", "data": "rows.jsonl", "steps": 9}],
}


def on(device: str) -> Recipe:
    recipe = recipe_of_run(CONFIG)
    return replace(recipe, learner=replace(recipe.learner, device=device))


def moved(path: Path, *moves: object, **config: object) -> Path:
    with closing(RunDir.create(path, to_tree(recipe_of_run(CONFIG | config)), {}, {})) as run:
        for move in moves:
            run.moved(move)  # type: ignore[arg-type]
    return path


def test_a_recipe_that_names_a_device_that_was_left_follows(tmp_path: Path) -> None:
    run = moved(tmp_path / "run", a_move())
    learner = following(on("cpu"), run).learner
    assert (learner.device, learner.kernel, learner.micro_batch_tokens) == ("sim", "torch", 512)
    assert following(on("sim"), run) == on("sim")
    assert following(on("cuda"), run) == on("cuda")  # which the run itself refuses
    assert following(on("cpu"), moved(tmp_path / "stayed")) == on("cpu")
    assert following(on("cpu"), tmp_path / "elsewhere") == on("cpu")
    back = moved(tmp_path / "back", a_move(), a_move(before=THERE, after=HERE, undoes=1))
    assert following(on("sim"), back).learner == on("cpu").learner
    assert following(on("cpu"), back) == on("cpu")


def test_a_run_is_its_own_recipe(tmp_path: Path) -> None:
    run = moved(tmp_path / "run", a_move())
    given = argparse.Namespace(recipe=str(run), run=None, settings=["checkpoint_every=7"])
    recipe = own_recipe(given)
    assert (recipe.learner.device, recipe.checkpoint_every, given.run) == ("sim", 7, run)
    given.run = tmp_path / "other"
    with pytest.raises(ConfigError, match="and --run names another"):
        own_recipe(given)


def test_a_generator_on_another_device_has_nothing_that_was_measured_on_the_first(
    tmp_path: Path,
) -> None:
    """docs/migrate.md: train RUN --resume generator.0.device=…"""
    measured = {"kernel": "mkl", "fused_attention_above": 512, "graphs": False, "dtype": "float32"}
    run = moved(tmp_path / "run", generator=[measured | {"slots": 8}])

    def asked(*settings: str) -> GeneratorSettings:
        given = argparse.Namespace(recipe=str(run), run=None, settings=list(settings))
        return own_recipe(given).generator[0]

    recorded = GeneratorSettings(**measured, slots=8)  # type: ignore[arg-type]
    assert asked() == asked("generator.0.device=cpu") == recorded
    there = asked("generator.0.device=sim")
    assert there == GeneratorSettings(device="sim", dtype="float32", slots=8)
    assert asked("generator.device=sim", "generator.kernel=onednn") == replace(
        there, kernel="onednn"
    )


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_nor_has_one_of_a_recipe(tmp_path: Path, kind: str) -> None:
    measured = {"kernel": "mkl", "fused_attention_above": 512, "graphs": False, "dtype": "float32"}
    run = moved(tmp_path / "run", generator=[measured], fleet={"kind": kind})
    recipe = recipe_of_run(CONFIG | {"generator": [{"device": "sim"}], "fleet": {"kind": kind}})
    [there] = settled(recipe, run).generator
    expected = ("torch", "float32") if kind == "inline" else ("auto", "auto")  # it decides itself
    assert (there.kernel, there.dtype) == expected


def test_what_the_run_does_not_keep_is_asked_for(tmp_path: Path) -> None:
    tables = [{"env": {"KEY": "a secret of theirs"}}]
    run = moved(tmp_path / "run", generator=tables, fleet={"kind": "local"})
    given = argparse.Namespace(recipe=str(run), run=None, settings=[])
    with pytest.raises(ConfigError, match=r"keeps no value of generator\.0\.env\.KEY; give the"):
        own_recipe(given)
