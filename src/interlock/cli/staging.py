"""One stage of a recipe by itself: `interlock train RECIPE.toml --stage NAME`.

the first, or one that says what it starts from ──> a run of that stage alone
any other ── a run of those before it, finished ──> the same run, with one stage more
"""

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from interlock.config.origins import of_stage
from interlock.config.reading import parse_recipe, recipe_of_run
from interlock.config.schema import Recipe
from interlock.config.secrets import withheld
from interlock.config.stages import StageSettings
from interlock.errors import ConfigError
from interlock.rundir import RunDir
from interlock.text import one_line

# Of a generator, what a run records as it was measured on its device (recipes/settling.py).
_MEASURED = {"kernel": "auto", "fused_attention_above": 0, "graphs": "auto"}


def only(recipe: Recipe, which: str, resumed: Path | None) -> Recipe:
    """The recipe that has no more stages than it takes to run one of them.

    Args:
        which: a stage's name, or its place from 0.
        resumed: the run to go on with; None: a new one.

    Raises ConfigError when there is no such stage, or what it starts from is not there; RunError
    when there is no run to resume.
    """
    index = _place(recipe, which)
    stage = recipe.stage[index]
    alone = replace(recipe, stage=[stage])
    if resumed is None:
        if index == 0 or _says_where(stage):
            return alone
        left = stage.origin or "what the one before it leaves"
        raise ConfigError(
            f"stage {which} starts from {left}; go on with a run of those before (--run DIR "
            f"--resume), or say what it starts from: stage.{index}.from=runs/x"
        )
    with closing(RunDir.read(resumed)) as run:
        recorded = parse_recipe(run.config, source=f"{resumed}/config.json").stage
        newest = run.latest_checkpoint()
    if len(recorded) == 1 and index > 0 and _same(recorded[0], stage):
        return alone
    reached = (newest.stage, newest.step) if newest else (0, 0)
    if index > 0 and reached < (index - 1, recipe.stage[index - 1].length):
        raise ConfigError(
            f"stage {which} comes after stage {index - 1}, which is not finished in {resumed}; run "
            f"that first: --stage {index - 1}"
        )
    return replace(recipe, stage=recipe.stage[: index + 1])


def own_recipe(given: argparse.Namespace) -> Recipe:
    """The recipe that a run recorded, where the run stands in the place of one; `given.run` is then
    that run. Raises ConfigError where another is named, or its secrets are needed.
    """
    path = Path(given.recipe)
    if given.run is not None and given.run.resolve() != path.resolve():
        raise ConfigError(f"{path} is a run, and --run names another: {given.run}; leave one out")
    with closing(RunDir.read(path)) as run:
        config = run.config
    if (secret := withheld(config)) is not None:
        raise ConfigError(
            f"{path} keeps no value of {secret}; give the recipe: interlock train RECIPE.toml "
            f"--run {path} --resume"
        )
    given.run = path
    source = f"{path}/config.json"
    recipe = recipe_of_run(config, given.settings, source)
    return recipe_of_run(_left_open(config, recipe), given.settings, source)


def _left_open(config: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """`config` without what was measured on the devices that `recipe` takes generators from."""
    known, asked = config.get("generator", []), recipe.generator
    if len(known) != len(asked):
        return config
    generators = [
        old if old.get("device") == new.device else {**old, **_MEASURED}
        for old, new in zip(known, asked, strict=True)
    ]
    return {**config, "generator": generators}


def _place(recipe: Recipe, which: str) -> int:
    names = [stage.name for stage in recipe.stage]
    if which in names and which:
        return names.index(which)
    if which.isdecimal() and int(which) < len(names):
        return int(which)
    known = ", ".join(name or str(index) for index, name in enumerate(names))
    raise ConfigError(
        f"there is no stage {one_line(repr(which), 40)}; give a name or a place: {known}"
    )


def _says_where(stage: StageSettings) -> bool:
    """Whether it starts from what is there without this recipe's other stages."""
    return stage.origin is not None and of_stage(stage.origin) is None


def _same(recorded: StageSettings, stage: StageSettings) -> bool:
    return recorded.kind == stage.kind and replace(recorded, steps=stage.steps) == stage
