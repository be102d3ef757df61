"""What a run says of what learns, its devices and sandboxes, before its first step."""

from collections.abc import Sequence
from pathlib import Path

from interlock.config.schema import Recipe
from interlock.config.stages import LORA_FACTOR, OptimizerSettings
from interlock.models.adapters import adapter_share
from interlock.models.checkpoint import has_predictor
from interlock.models.decoder import Decoder
from interlock.recipes.gate import Use
from interlock.recipes.sinks import Sink
from interlock.records.adapters import ALL_LINEAR
from interlock.records.trust import Sizes
from interlock.rundir import RunDir
from interlock.sandbox.canary import open_sandbox
from interlock.tasks.executing import executes, judges_outside
from interlock.tasks.verifier_pool import sandbox_of
from interlock.workers.generators import Generators
from interlock.workers.inline import Inline


def learns(recipe: Recipe, model: Path, decoder: Decoder, sinks: Sink) -> None:
    """What learns, where that is not all of the model."""
    if has_predictor(model) and recipe.learner.mtp_weight == 0:
        sinks.note("the layer for multi-token prediction is left out (learner.mtp_weight = 0)")
    if recipe.learner.lora is not None:
        sinks.note(_adapter(recipe, decoder))


def trust(
    recipe: Recipe,
    uses: Sequence[Use],
    sizes: Sizes,
    generators: Generators | None,
    run: RunDir,
    sinks: Sink,
) -> None:
    """What a reader of the run should not take for granted."""
    _unqualified(uses, run, sinks)
    _untried(uses, sizes, run, sinks)
    _isolation(recipe, run, sinks)
    _merges(recipe, generators, run, sinks)


def _adapter(recipe: Recipe, decoder: Decoder) -> str:
    """What learns, at which rates, in one line."""
    form = recipe.learner.lora
    assert form is not None
    learned, beside = adapter_share(decoder)
    where = "all linear layers" if form.targets == ALL_LINEAR else ", ".join(form.targets)
    rates = dict.fromkeys(s.optimizer.lr for s in recipe.stage if s.optimizer is not None)
    usual = LORA_FACTOR * OptimizerSettings().lr
    told = [f"{lr:g}" + " (by rule, 10 times full training's)" * (lr == usual) for lr in rates]
    return (
        f"LoRA of rank {form.rank}, alpha {form.alpha:g}, on {where}: {learned:,} weights learn "
        f"beside {beside:,} that stay ({learned / beside:.1%}); lr = {', '.join(told) or 'none'}"
    )


def _merges(recipe: Recipe, generators: Generators | None, run: RunDir, sinks: Sink) -> None:
    """Where the generator in this process does not take the adapter that learns."""
    form = recipe.learner.lora
    if not isinstance(generators, Inline) or form is None:
        return
    if why := generators.merges(form):
        sinks.event(run.event("adapter_merged", f"the generator has adapters merged: {why}"))


def _unqualified(uses: Sequence[Use], run: RunDir, sinks: Sink) -> None:
    for use in uses:
        if use.why:
            message = f"{use.device} is used unqualified to {use.role}: {use.why}"
            sinks.event(run.event("unqualified", message, device=use.device, reason=use.why))


def _untried(uses: Sequence[Use], sizes: Sizes, run: RunDir, sinks: Sink) -> None:
    """Where the model is larger than what a certificate was made at."""
    for use in uses:
        if use.tried is not None and not use.why and (beyond := sizes.beyond(use.tried)):
            message = (
                f"the certificate of {use.device} was made at smaller sizes ({', '.join(beyond)}); "
                "interlock qualify --model tries those of this model"
            )
            sinks.event(run.event("sizes_untried", message, device=use.device))


def _isolation(recipe: Recipe, run: RunDir, sinks: Sink) -> None:
    for task in (task for stage in recipe.stage for task in stage.task):
        way = open_sandbox() if judges_outside(task) else sandbox_of(task)
        if way is not None:
            message = f"answers to {task.name} are judged in a sandbox of {way.name}"
            sinks.event(run.event("sandboxed", message, way=way.name))
        elif executes(task):
            message = f"{task.name} executes answers, and without a sandbox, as was asked for"
            sinks.event(run.event("unsandboxed", message))
