"""Opens everything that a recipe needs, and runs nothing: `interlock train RECIPE --check`.

    Recipe ──> devices, model, stages, workers, disk, each on its own ──> Checked(plan, mistakes)

What a run would meet only after a while is found here, all of it and not the first alone. Nothing
is written but what is fetched: a model's files go to the cache, as they would for the run.
"""

import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

from interlock.config.schema import Recipe
from interlock.config.stages import Sampled, StageSettings
from interlock.engine.budget import budget_of
from interlock.errors import InterlockError, UserError
from interlock.learner.distributed.ranks import join
from interlock.models import adapters
from interlock.models.checkpoint import StoredWeights
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.recipes import (
    fleet,
    gate,
    metering,
    pretrain,
    reject_sft,
    replays,
    sft,
    starts,
    students,
    trackers,
)
from interlock.recipes.train import recipe_of
from interlock.records.cost import HeldChip
from interlock.rundir import RunDir
from interlock.rundir.run import vacant
from interlock.text import hide_credentials

Found = TypeVar("Found")
_MASTERS = 16  # bytes a weight while it learns: fp32 master, gradient and two moments
_CHECKPOINT = 12  # bytes a weight: the same without the gradient
_REFERENCE = 4  # bytes a weight of the KL's reference, in memory and in checkpoints, at most


class Checked(NamedTuple):
    plan: list[str]  # what would run, a line each
    mistakes: list[str]  # why it would not, a line each


def check(recipe: Recipe, directory: Path, resume: bool = False) -> Checked:
    """Try all that a run in `directory`, begun or gone on with, would need."""
    found = Checked([], [])

    def tried(work: Callable[[], Found], where: str = "") -> Found | None:
        try:
            return work()
        except (InterlockError, OSError) as error:
            line = hide_credentials(f"{where}{error}")
            if line not in found.mistakes:
                found.mistakes.append(line)
            return None

    tried(lambda: RunDir.read(directory).close() if resume else vacant(directory))
    learners = tried(lambda: _devices(recipe))
    tried(lambda: fleet.check(recipe))
    tried(lambda: trackers.check(recipe))
    tried(lambda: metering.prices_of(recipe))
    if learners is not None:
        tried(lambda: metering.of_recipe(recipe, None, learners))
    tried(lambda: metering.plan_of(recipe))
    model = tried(lambda: find_model(recipe.model.path))
    if model is None:
        return found
    settings = recipe.model
    tokenizer = tried(lambda: Tokenizer.load(model, settings.chat_template, settings.clock))
    arch = tried(lambda: read_architecture(model))
    shapes = tried(lambda: StoredWeights(model).shapes)
    if shapes is not None:
        weights = sum(map(prod, shapes.values()))
        found.plan.append(_size(recipe, weights))
        tried(lambda: _room(recipe, weights, directory))
        if (form := recipe.learner.lora) is not None:
            tried(lambda: adapters.check_targets(shapes, form))
    if tokenizer is None or arch is None:
        return found
    tried(lambda: starts.find(recipe, model, -1, {}, lambda _: None))
    tried(lambda: students.check(recipe, arch))
    tried(lambda: replays.check(recipe, arch))
    for index, stage in enumerate(recipe.stage):
        module, where = recipe_of(stage.kind), f"stage {index} ({stage.kind}): "
        if stage.generates:
            tried(lambda: budget_of(stage.sampling, tokenizer), where)  # noqa: B023  called at once
        data = tried(
            lambda: module.prepare(stage, tokenizer, arch.context),  # noqa: B023  called at once
            where,
        )
        if data is not None:
            found.plan.append(f"stage {index}: {_stage(stage, data)}")
    return found


def _devices(recipe: Recipe) -> tuple[HeldChip, ...]:
    """Whether they are here, and may be used; those that learn. Raises UserError."""
    with join(recipe.learner.device) as ranks:
        uses = [gate.learner(recipe.learner.device, ranks)]
    if recipe.fleet.kind == "inline" and any(stage.generates for stage in recipe.stage):
        uses.append(gate.inline(recipe.generator[0].device))
    gate.check(uses, recipe.unqualified)
    return uses[0].chips


def _size(recipe: Recipe, weights: int) -> str:
    reference = _REFERENCE * any(stage.keeps_reference for stage in recipe.stage)
    memory = _gigabytes(weights * (_MASTERS + reference))
    return (
        f"model {recipe.model.path}: {weights:,} weights; learning takes {memory} GB for them "
        "and what is kept of each, and more for activations"
    )


def _room(recipe: Recipe, weights: int, directory: Path) -> None:
    """Raise UserError where the disk has no room for checkpoints and the result."""
    place = directory.absolute()
    while not os.path.exists(place):  # False, too, where a name is longer than there are any
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot make {directory}: {place} is no directory; give another --run")
    # A new checkpoint is whole before an old one goes.
    kept = _CHECKPOINT + _REFERENCE * any(stage.keeps_reference for stage in recipe.stage)
    left = recipe.stage[:-1] if recipe.keep_stages else starts.referred(recipe)
    wanted = weights * (kept * (1 + max(1, recipe.keep_checkpoints)) + 4 * (1 + len(left)))
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise UserError(
            f"the disk of {directory} has {_gigabytes(free)} GB, and the run takes "
            f"{_gigabytes(wanted)} for checkpoints and weights; give another --run, lower "
            "keep_checkpoints, or set keep_stages = false"
        )
    if not os.access(place, os.W_OK):
        raise UserError(f"cannot write to {place}; give another --run")


def _gigabytes(count: int) -> str:
    """With one decimal, or as many as tell it from nothing."""
    amount = count / 2**30
    return f"{amount:,.1f}" if amount >= 0.1 else f"{amount:.1g}"


def _stage(settings: StageSettings, data: object) -> str:
    """What the stage would do."""
    told = f"{settings.kind}, {settings.steps:,} steps"
    if isinstance(settings, Sampled):
        rounds = ""
        if settings.sampled_steps < settings.length:
            rounds = f", after {settings.sampled_steps:,} rounds"
        answers = settings.sampled_steps * settings.problems_per_step * settings.completions
        told += (
            f"{rounds} of {settings.problems_per_step} problems × {settings.completions} answers: "
            f"{answers:,} answers of at most {settings.sampling.max_tokens:,} tokens"
        )
    told += _rows(settings, data)
    if settings.origin is not None:
        told += f"; starts from {settings.origin}"
    each = f", {settings.eval.samples} times each" * (settings.eval.samples > 1)
    for task in settings.task:
        told += (
            f"; task {task.called}, {settings.eval.problems} of {task.held_out} held-out problems"
        )
        told += f" answered {_evaluations(settings)} times{each}"
    return told


def _rows(settings: StageSettings, data: object) -> str:
    """What is read, and how often it is gone through."""
    batch, told = getattr(settings, "batch_size", 0), ""
    if isinstance(data, sft.Data) and not data.rows:
        told = f"; on the rows of stage {settings.rows_of}"
    elif isinstance(data, sft.Data):
        tokens = sum(len(row.tokens) for row in data.rows)
        learned = sum(sum(row.learned) for row in data.rows)
        told = f"; {len(data.rows):,} texts of {tokens:,} tokens, {learned:,} of them learned"
        told += f", {data.left_out:,} left out" * bool(data.left_out)
        told += f"; {settings.steps * batch / len(data.rows):.1f} times through them"
    if isinstance(data, pretrain.PretrainData):
        tokens = sum(map(len, data.texts))
        told = f"; {len(data.texts):,} texts of {tokens:,} tokens in rows of {data.row:,}"
        told += f", {len(data.held_out):,} held out" * bool(data.held_out)
        told += f"; {settings.steps * batch * data.row / tokens:.1f} times through them"
    if isinstance(data, reject_sft.RejectData):
        told = f"; at most {sum(map(len, data.mixed)):,} rows are mixed in" * bool(data.mixed)
    return told


def _evaluations(settings: StageSettings) -> int:
    """How often held-out problems are answered: before the first step, and where it is due."""
    every, last = settings.eval.every, settings.length
    learning = range(last - settings.steps + 1, last + 1)
    return 1 + sum(step == last or bool(every and step % every == 0) for step in learning)
