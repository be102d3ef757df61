"""Stages that begin with fewer layers than the stage before left: `every_layer`.

    stages/02-NAME, or what `from` says ──thin──> stages/03-NAME-begin ──opened──> stage 3, and on

A smaller model has a decoder and generators of its own, and they take the place of the larger
one's: one model is learned at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interlock.chips import heap
from interlock.config.origins import of_stage
from interlock.config.schema import Recipe
from interlock.errors import ConfigError
from interlock.models.decoder import Decoder
from interlock.models.huggingface import Architecture
from interlock.models.thinning import thin
from interlock.recipes.starts import Starts
from interlock.rundir import RunDir, atomic_directory
from interlock.workers.generators import Generators


def check(recipe: Recipe, arch: Architecture) -> None:
    """Raise ConfigError where a stage asks for fewer layers of a model that has experts."""
    for index, stage in enumerate(recipe.stage):
        if stage.every_layer > 1 and arch.routing is not None:
            raise ConfigError(
                f"stage.{index}.every_layer = {stage.every_layer} is for models without experts, "
                "whose layers are alike; remove it"
            )


@dataclass
class Learning:
    """What learns now: a model directory, its weights, and what generates with them.

    Nobody else holds these from stage to stage, so what gives way is there no more.
    """

    model: Path
    decoder: Decoder
    generators: Generators | None  # None where no stage generates anything

    def give_way(self, opened: "Callable[[], Learning]") -> None:
        """Another takes the place of what learns; it is opened when that is gone."""
        self.close()
        del self.decoder
        heap.release()
        other = opened()
        self.model, self.decoder, self.generators = other.model, other.decoder, other.generators

    def close(self) -> None:
        """Nothing is generated any more."""
        if self.generators is not None:
            self.generators.close()
            self.generators = None


def directory(run: Path, recipe: Recipe, index: int) -> Path:
    """Where the smaller model is that a stage begins with."""
    return (
        run / "stages" / "-".join(filter(None, [f"{index:02d}", recipe.stage[index].name, "begin"]))
    )


def reached(run: Path, recipe: Recipe, begun: int) -> Path | None:
    """The smaller model that is learned where stage `begun` has begun; None: the recipe's own."""
    smaller = [i for i, each in enumerate(recipe.stage[: begun + 1]) if each.every_layer > 1]
    return directory(run, recipe, smaller[-1]) if smaller else None


def make(run: RunDir, recipe: Recipe, index: int, starts: Starts, model: Path) -> Path:
    """Write what stage `index` begins with. Raises ModelError when it cannot be made smaller.

    Args:
        model: the recipe's own.
    """
    settings = recipe.stage[index]
    named = None if settings.origin is None else of_stage(settings.origin)
    if named is not None:
        source = run.stage_weights([each.name for each in recipe.stage].index(named), named)
    elif index in starts:
        source = starts[index]
    else:
        source = run.stage_weights(index - 1, recipe.stage[index - 1].name) if index else model
    path = directory(run.path, recipe, index)
    with atomic_directory(path) as whole:
        thin(source, whole, settings.every_layer)
    message = f"stage {index} begins with every {settings.every_layer}. layer of {source}"
    run.event("student_made", message)
    return path


def needed(recipe: Recipe) -> list[int]:
    """The stages whose weights are the source of a smaller model."""
    return [
        index - 1
        for index, each in enumerate(recipe.stage)
        if index and each.every_layer > 1 and each.origin is None
    ]
