"""A resumed run whose parts were moved to other devices goes on where they are now.

recipe that says where it began ── moves of the manifest ──> recipe that says where it goes on
"""

from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from interlock.config.reading import parse_recipe
from interlock.config.schema import GeneratorSettings, LearnerSettings, Recipe
from interlock.records.moves import Move
from interlock.rundir import RunDir

Part = TypeVar("Part", LearnerSettings, GeneratorSettings)


def following(recipe: Recipe, directory: Path) -> Recipe:
    """`recipe` where it names a device that a part of the run has left, with that of today.

    One that names another is as it was: whether it may be resumed so is for the run to say.
    """
    if not directory.exists():  # on the other machines of a learner's processes
        return recipe
    with closing(RunDir.read(directory)) as run:
        moves = run.manifest.moves
        if not moves:
            return recipe
        known = parse_recipe(run.config, source=f"{directory}/config.json")
    generators = list(recipe.generator)
    for index, table in enumerate(known.generator[: len(generators)]):
        own = [move for move in moves if move.part == f"generator.{index}"]
        generators[index] = _followed(generators[index], table, own)
    own = [move for move in moves if move.part == "learner"]
    learner = _followed(recipe.learner, known.learner, own)
    return replace(recipe, learner=learner, generator=generators)


def _followed(asked: Part, known: Part, moves: list[Move]) -> Part:
    left = {move.before.device for move in moves} - {known.device}
    if asked.device not in left:
        return asked
    taken: dict[str, Any] = {name: getattr(known, name) for name in moves[-1].after.settings}
    return replace(asked, **taken)
