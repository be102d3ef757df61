"""A resumed run whose learner was moved to another device goes on where it is now.

recipe that says where it began ── moves of the manifest ──> recipe that says where it goes on
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from interlock.config.schema import Recipe
from interlock.rundir import RunDir


def following(recipe: Recipe, directory: Path) -> Recipe:
    """`recipe` where it names a device that the learner has left, with that of today.

    One that names another is as it was: whether it may be resumed so is for the run to say.
    """
    if not directory.exists():  # on the other machines of a learner's processes
        return recipe
    with closing(RunDir.read(directory)) as run:
        moves = run.manifest.moves
    left = {move.before.device for move in moves}
    if not moves or recipe.learner.device not in left - {moves[-1].after.device}:
        return recipe
    today: dict[str, Any] = moves[-1].after.settings
    return replace(recipe, learner=replace(recipe.learner, **today))
