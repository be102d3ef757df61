"""What generators are asked to tell of how they drew, for the learner to repeat it."""

from interlock.config.schema import Recipe
from interlock.config.stages import Sampled
from interlock.errors import ConfigError
from interlock.models.architecture import Architecture
from interlock.models.routes import route_shape
from interlock.records.replay import Replay


def check(recipe: Recipe, arch: Architecture) -> None:
    """Raise ConfigError where a stage asks for what the model has not."""
    for index, stage in enumerate(recipe.stage):
        if isinstance(stage, Sampled) and "routes" in stage.replays and arch.routing is None:
            raise ConfigError(
                f"stage.{index}.replay has 'routes', and {recipe.model.path} has no experts to "
                "route through; remove it"
            )


def replay_of(settings: Sampled, arch: Architecture) -> Replay:
    """`arch`: of the weights that are learned."""
    wanted = settings.replays
    return Replay("kept" in wanted, route_shape(arch) if "routes" in wanted else None)
