"""Run a recipe: open the model and the run directory, then one stage after another.

    Recipe ──> check what can be checked ──> RunDir ──> stage 0 ──> stage 1 ──> … ──> weights/

A resumed run starts at the newest checkpoint. Groups that are in the ledger are learned from
again, not generated again, so it goes exactly where the interrupted one was going.
"""

import gc
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from msgspec.structs import replace

from interlock import hub
from interlock.chips import device, heap
from interlock.config.reading import to_tree
from interlock.config.schema import Recipe
from interlock.config.stages import OptimizerSettings, StageSettings
from interlock.engine.budget import budget_of
from interlock.errors import ConfigError, InterlockError, RunError, TooFewProblems
from interlock.learner import checkpoint
from interlock.learner.distributed.rank_loop import run_rank
from interlock.learner.distributed.ranks import Ranks, join
from interlock.learner.learner import Learner
from interlock.models.catalogue import sizes_of
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.recipes import (
    fleet,
    gate,
    inputs,
    learned,
    metering,
    notes,
    placed,
    replays,
    settling,
    starts,
    students,
)
from interlock.recipes.budget import Budget
from interlock.recipes.gate import Use
from interlock.recipes.meter import CostMeter
from interlock.recipes.sinks import Sink, Sinks
from interlock.recipes.stage import Stage
from interlock.recipes.students import Learning
from interlock.recipes.trackers import trackers_of
from interlock.records.trust import Role
from interlock.rundir import Checkpoint, RunDir, atomic_directory
from interlock.rundir.run import vacant
from interlock.workers.generators import no_forget, no_keep
from interlock.workers.inline import Inline

Keep = Callable[[Learner, Path, Path], None]  # writes a learner's weights as a model directory
Smaller = Callable[[int], None]  # lets what a stage with `every_layer` begins with take over


class Prepared(NamedTuple):
    """A stage before it begins: the file of its kind, and what `prepare` of it returned."""

    module: ModuleType
    data: Any  # its `files` are all that it was made of


class Provided(NamedTuple):
    """What stages work with, looked up before the first of them."""

    recipe: Recipe
    run: RunDir
    ranks: Ranks
    sinks: Sinks
    stages: Sequence[Prepared]
    origins: starts.Starts
    keep: Keep
    smaller: Smaller
    decode: Callable[[list[int]], str]
    meter: CostMeter
    budget: Budget


def train(
    recipe: Recipe, directory: Path, *, resume: bool = False, sinks: Sequence[Sink] = ()
) -> None:
    """Run a recipe to its end.

    Args:
        recipe: what to do, as `load_recipe` gives it.
        directory: where the run is kept; new or empty, unless `resume`.
        resume: go on with the run in `directory` from where it stopped.
        sinks: who is told of it while it goes on; what they raise is an event of the run.

    Raises:
        UserError: the recipe, the model, the data or the directory is not fit; as a rule before
            anything is written.
        TrainingError: the run cannot go on.
    """
    heap.keep_freed()
    if resume:
        recipe = placed.following(recipe, directory)
    else:
        vacant(directory)
    ranks = join(recipe.learner.device, recipe.learner.collective_s)
    trains = gate.learner(recipe.learner.device, ranks)  # on every rank
    with ranks:
        if ranks.rank > 0:
            run_rank(ranks)
            return
        told = Sinks([*sinks, *trackers_of(recipe, directory)])
        try:
            _run_rank0(ranks, trains, recipe, directory, resume, told)
        finally:
            told.done()


def _run_rank0(
    ranks: Ranks, trains: Use, recipe: Recipe, directory: Path, resume: bool, sinks: Sinks
) -> None:
    """What `train` does in the first, and as a rule only, process of the learner."""
    meter = metering.of_recipe(recipe, directory if resume else None, trains.chips)
    plan = metering.plan_of(recipe)
    uses = _used(recipe, trains)
    check_processes(recipe, ranks.size)
    recipe = settling.settled(recipe, directory if resume else None)
    model, recipe = _found(recipe, sinks)
    tokenizer = Tokenizer.load(model, recipe.model.chat_template, recipe.model.clock)
    arch = read_architecture(model)
    students.check(recipe, arch)
    replays.check(recipe, arch)
    begun, recorded = _progress(directory if resume else None)
    where = starts.find(recipe, model, begun, recorded, sinks.note)
    prepared = _prepare(recipe, tokenizer, arch.context, directory, recorded)
    fleet.check(recipe)
    now = _opened(recipe, students.reached(directory, recipe, begun) or model, ranks, uses)
    notes.learns(recipe, model, now.decoder, sinks)
    hangs_on = inputs.identify(model, tokenizer, [each.data.files for each in prepared])
    hangs_on |= starts.digests(recipe, where, recorded)
    run = _directory(recipe, directory, hangs_on, resume, sinks)
    sinks.note(f"run directory: {directory}")
    with run, sinks.of(run), ExitStack() as stack:
        run.computes_on(device.stack(now.decoder.embed.device))
        notes.trust(recipe, uses, sizes_of(arch), now.generators, run, sinks)
        stack.enter_context(meter.running(run.keep_cost))
        stack.callback(now.close)
        if plan is not None:
            run.keep_plan(plan)
        budget = metering.budget_of(recipe, run, sinks)

        def generates() -> None:
            if now.generators is None and recipe.generates:
                now.generators = fleet.open_fleet(recipe, now.model, tokenizer, run, sinks, meter)
            if now.generators is not None:
                meter.generates(now.generators, metering.inline_chip(uses))
                now.generators.progress = sinks.advance

        def smaller(index: int) -> None:
            path = students.make(run, recipe, index, where, model)
            now.give_way(lambda: _opened(recipe, path, ranks, uses))
            generates()

        generates()
        provided = Provided(
            recipe=recipe,
            run=run,
            ranks=ranks,
            sinks=sinks,
            stages=prepared,
            origins=where,
            keep=partial(learned.keep, tokenizer, _predicts(recipe), {model: recipe.model.path}),
            smaller=smaller,
            decode=tokenizer.decode,
            meter=meter,
            budget=budget,
        )
        _run_stages(provided, now)


def _used(recipe: Recipe, trains: Use) -> list[Use]:
    """What computes in this process. Raises ConfigError where it may not be trusted with that."""
    uses = [trains]
    if recipe.fleet.kind == "inline" and recipe.generates:
        uses.append(gate.inline(recipe.generator[0].device))
    gate.check(uses, recipe.unqualified)
    return uses


def _found(recipe: Recipe, sinks: Sinks) -> tuple[Path, Recipe]:
    """The directory of [model], and the recipe with the very commit that it is of, if any."""
    sinks.phase("opening the model")
    model = find_model(recipe.model.path, sinks.note)
    path = hub.pinned(recipe.model.path, model)
    return model, replace(recipe, model=replace(recipe.model, path=path))


def _opened(recipe: Recipe, path: Path, ranks: Ranks, uses: Sequence[Use]) -> Learning:
    """What learns in a model directory, with the generator in this process, if there is one."""
    decoder = learned.masters(recipe, path, ranks, _predicts(recipe))
    inline = _inline(recipe, path, uses, decoder if ranks.size == 1 else None)
    return Learning(path, decoder, inline)


def _predicts(recipe: Recipe) -> bool:
    return recipe.learner.mtp_weight > 0


def _directory(
    recipe: Recipe, directory: Path, hangs_on: Mapping[str, str], resume: bool, sinks: Sinks
) -> RunDir:
    """The run directory, gone on with or begun."""
    if resume:
        return RunDir.open(directory, to_tree(recipe), hangs_on)
    kernels = settling.kernels(recipe)
    sinks.note(kernels)
    found = settling.versions() | {"kernels": kernels}
    return RunDir.create(directory, to_tree(recipe), found, hangs_on)


def check_processes(recipe: Recipe, size: int) -> None:
    """Raise ConfigError where a stage, be it the last, cannot learn in `size` processes."""
    if size > 1 and recipe.learner.mtp_weight > 0:
        raise ConfigError(
            f"learner.mtp_weight: the layer for multi-token prediction learns in one process, and "
            f"this learner has {size}; start it without torchrun, or leave it at 0"
        )
    if size > 1 and recipe.learner.lora is not None:
        raise ConfigError(
            f"learner.lora: an adapter learns in one process, and this learner has {size}; start "
            "it without torchrun, or leave it out"
        )
    for index, stage in enumerate(recipe.stage):
        if size > 1 and stage.learns_alone:
            raise ConfigError(
                f"stage {index}: a {stage.kind} stage learns in one process, and this learner has "
                f"{size}; start it without torchrun"
            )


def _prepare(
    recipe: Recipe,
    tokenizer: Tokenizer,
    context: int,
    directory: Path,
    recorded: Mapping[str, str],
) -> list[Prepared]:
    """The recipe and the data of every stage, tried before anything is written.

    `recorded`: the inputs of the run in `directory` that is resumed; those of a new one are none.
    """
    found = []
    for index, settings in enumerate(recipe.stage):
        if settings.generates:
            budget_of(settings.sampling, tokenizer)
        module = recipe_of(settings.kind)
        try:
            found.append(Prepared(module, module.prepare(settings, tokenizer, context)))
        except TooFewProblems as error:
            began = inputs.of_stage(recorded, index)  # none of a stage that is new to a run
            raise (inputs.lost(error, directory) if began else error) from None
    return found


def _run_stages(provided: Provided, now: Learning) -> None:
    """One stage after another, from the newest checkpoint on."""
    recipe, newest, version = provided.recipe, provided.run.latest_checkpoint(), 0
    if newest and newest.stage >= len(recipe.stage):
        raise RunError(f"{newest.path} is of no stage of this recipe; remove it")
    for index in range(newest.stage if newest else 0, len(recipe.stage)):
        resumed = newest if newest and newest.stage == index else None
        if recipe.stage[index].every_layer > 1 and resumed is None:
            provided.smaller(index)
        version = _run_stage(provided, now, index, resumed, version)
        gc.collect()  # torch's first optimizer leaves frames in a circle, the learner's among them


def _run_stage(
    provided: Provided, now: Learning, index: int, resumed: Checkpoint | None, version: int
) -> int:
    """One stage, whose learner is there no more when it returns. -> version of what it leaves"""
    recipe, run, sinks = provided.recipe, provided.run, provided.sinks
    settings = recipe.stage[index]
    learner = _learner(recipe, settings, now.decoder, provided.ranks, version)
    stage: Stage[Any] = Stage(
        index,
        settings,
        recipe,
        run,
        learner,
        now.generators,
        sinks,
        decode=provided.decode,
        meter=provided.meter,
        budget=provided.budget,
    )
    if resumed:
        _restore(stage, resumed)
    elif settings.every_layer == 1:
        starts.begin(stage, provided.origins)
    if stage.done < settings.length:  # else it was finished, and another follows it
        sinks.stage(index, settings.kind, stage.done, settings.length)
        with provided.meter.stage(index), _saving(stage):
            provided.stages[index].module.run(stage, provided.stages[index].data)
    if now.generators is not None:  # whom they told of groups holds the stage
        now.generators.keep, now.generators.forget = no_keep, no_forget
    _leave(provided, index, learner, now.model)
    return learner.version + learner.unpublished


def _leave(provided: Provided, index: int, learner: Learner, source: Path) -> None:
    """The weights that a stage ends with, where they are wanted; the last one's are the run's."""
    recipe, run = provided.recipe, provided.run
    if index + 1 == len(recipe.stage):
        provided.sinks.phase("saving the weights")
        with run.weights() as path:
            provided.keep(learner, path, source)
        if recipe.keep_checkpoints == 0:
            run.prune_checkpoints(keep=0)
    elif recipe.keep_stages or index in {*starts.referred(recipe), *students.needed(recipe)}:
        with atomic_directory(run.stage_weights(index, recipe.stage[index].name)) as path:
            provided.keep(learner, path, source)


def _progress(resumed: Path | None) -> tuple[int, dict[str, str]]:
    """The last stage that a run to be resumed has a checkpoint of (-1: none), and its inputs.

    Raises RunError when it is finished and kept none: it would be run again from the beginning.
    """
    if resumed is None:
        return -1, {}
    with closing(RunDir.read(resumed)) as run:
        newest = run.latest_checkpoint()
        if newest is None and run.status == "finished" and run.config.get("keep_checkpoints") == 0:
            raise RunError(
                f"{resumed} is finished and kept no checkpoint (keep_checkpoints = 0) to go on "
                f"from; start a new run with stage.0.from={resumed}"
            )
        return (-1 if newest is None else newest.stage), run.manifest.inputs


@contextmanager
def _saving(stage: Stage[Any]) -> Iterator[None]:
    """Keep a checkpoint of what is done when the stage cannot go on."""
    try:
        yield
    except InterlockError:
        with suppress(InterlockError, OSError):  # the reason it stops for may forbid it
            stage.save_what_is_done()
        raise


def _learner(
    recipe: Recipe, settings: StageSettings, decoder: Decoder, ranks: Ranks, version: int
) -> Learner:
    return Learner(
        decoder,
        recipe.learner,
        settings.optimizer or OptimizerSettings(),
        settings.updates,
        keep_reference=settings.keeps_reference,
        version=version,
        ranks=ranks,
    )


def recipe_of(kind: str) -> ModuleType:
    """The file of a kind of stage: its `prepare` comes before anything is written, then `run`."""
    return importlib.import_module(f"interlock.recipes.{kind.replace('-', '_')}")


def _inline(
    recipe: Recipe, model: Path, uses: Sequence[Use], masters: Decoder | None
) -> Inline | None:
    """The recipe's generator when it runs in this process and a stage has something to generate."""
    for use in uses:
        if use.role is Role.GENERATE:
            return fleet.open_inline(recipe, model, use.trust, masters)
    return None


def _restore(stage: Stage[Any], newest: Checkpoint) -> None:
    kept = checkpoint.load(stage.learner, newest.path)
    if (kept["stage"], kept["step"]) != (newest.stage, newest.step):
        raise RunError(
            f"{newest.path} holds stage {kept['stage']} step {kept['step']}; "
            "remove it to resume from the one before"
        )
    stage.memory.update(kept.get("memory", {}))
    stage.restored(newest.step)
