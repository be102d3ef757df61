"""The shapes of what each stage learns, and of what teaches it.

[model] ── every_layer = 2 ──> half of its layers ──> the stages after it
           from = "stage:NAME" ──> as large as what that stage left
[[stage.teacher]] model ──> a stage's shape, or its own; url ──> held elsewhere
"""

from collections.abc import Sequence
from typing import NamedTuple

from interlock.config.distilling import TeacherSettings, teacher_names, teacher_of
from interlock.config.origins import layers_apart, of_stage
from interlock.config.schema import Recipe
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError, ModelError, RunError
from interlock.plan.shapes import ModelShape, model_shape


class TeacherWork(NamedTuple):
    """A teacher of a stage, as a plan sees it."""

    shape: ModelShape
    share: float  # of the step's answers, those that it reads
    held: bool  # in the learner's process


def stage_shapes(recipe: Recipe, shape: ModelShape) -> list[ModelShape]:
    """What each stage learns; `shape` is that of [model]. Raises ConfigError as training would."""
    found = []
    for index, apart in enumerate(layers_apart(recipe.stage)):
        if apart > 1 and shape.experts:
            raise ConfigError(
                f"stage.{index} learns every {apart}. layer, and {shape.name} has experts; "
                "every_layer is for models whose layers are alike"
            )
        found.append(shape.thinned(apart))
    return found


def teachers_of(
    teachers: Sequence[TeacherSettings],
    tasks: Sequence[TaskSettings],
    recipe: Recipe,
    model: ModelShape,
    shapes: Sequence[ModelShape],
    assumed: list[str],
) -> tuple[TeacherWork, ...]:
    """Every answer is read by the one teacher of its task.

    `model`: of [model]; `shapes`: of what each stage learns; `assumed`: is added to.
    """
    whole = sum(task.weight for task in tasks)
    shares = [0.0] * len(teachers)
    for task in tasks:
        place = teacher_of(teachers, task.called)
        assert place is not None  # config has seen to it
        shares[place] += task.weight / whole
    found = []
    for name, each, share in zip(teacher_names(teachers), teachers, shares, strict=True):
        shape = _earlier(each, recipe, shapes) or _elsewhere(each)
        if shape is None:
            assumed.append(f"the teacher {name!r} is as large as [model]")
        found.append(TeacherWork(shape or model, share, each.model is not None))
    if any(each.url is not None for each in teachers):
        assumed.append("an endpoint that teaches reads as fast as the learner's chips would")
    return tuple(found)


def _earlier(
    teacher: TeacherSettings, recipe: Recipe, shapes: Sequence[ModelShape]
) -> ModelShape | None:
    """Of what an earlier stage left."""
    name = None if teacher.model is None else of_stage(teacher.model)
    return None if name is None else shapes[[stage.name for stage in recipe.stage].index(name)]


def _elsewhere(teacher: TeacherSettings) -> ModelShape | None:
    """Of a run, a directory or a name of the catalogue; None: nothing tells it."""
    if teacher.model is None:
        return None
    try:
        return model_shape(teacher.model)
    except (ModelError, RunError):
        return None
