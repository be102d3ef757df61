"""Where a stage's weights or rows come from, as `from` and `data` name it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlock.config.stages import StageSettings

MODEL = "model"  # what the first stage begins with
_OF_STAGE = "stage:"


def of_stage(origin: str) -> str | None:
    """The name of the earlier stage that is meant, of "stage:NAME"; None: of none."""
    return origin.removeprefix(_OF_STAGE) if origin.startswith(_OF_STAGE) else None


def layers_apart(stages: Sequence["StageSettings"]) -> list[int]:
    """Every so many layers of the recipe's model each stage learns: 1 is all of them.

    Weights of another run, or of another model, are of [model]'s shape (recipes/starts.py).
    """
    found: list[int] = []
    names = [stage.name for stage in stages]
    for index, stage in enumerate(stages):
        begins = found[-1] if found else 1
        if stage.origin is not None:
            named = of_stage(stage.origin)
            begins = found[names.index(named)] if named in names[:index] else 1
        found.append(begins * stage.every_layer)
    return found
