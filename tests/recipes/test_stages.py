"""The table of stages: what a new kind has to bring, and who may know of it."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import interlock
from interlock.config.schema import Recipe
from interlock.config.stages import STAGES, AnyStage, StageSettings
from interlock.recipes.train import recipe_of

SOURCE = Path(interlock.__file__).parent


@pytest.mark.parametrize("kind", STAGES)
def test_every_kind_has_its_recipe(kind: type[StageSettings]) -> None:
    recipe = recipe_of(str(kind.__struct_config__.tag))
    assert callable(recipe.prepare) and callable(recipe.run)


def test_a_recipe_reads_every_kind() -> None:
    assert set(get_args(AnyStage)) == set(STAGES)
    (listed,) = get_args(get_args(Recipe.__annotations__["stage"])[0])
    assert listed is AnyStage


def test_only_its_recipe_and_the_planner_know_the_class_of_a_stage() -> None:
    planner = str(SOURCE / "plan" / "workload.py")  # what a stage computes differs by kind
    for kind in STAGES:
        own = recipe_of(str(kind.__struct_config__.tag)).__file__
        for path in SOURCE.rglob("*.py"):
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and node.module == "interlock.config.stages"
                for alias in node.names
            }
            assert kind.__name__ not in names or str(path) in (own, planner)
