"""What a run's record says of the devices and sandboxes that it uses, before its first step."""

from collections.abc import Sequence

from interlock.config.schema import Recipe
from interlock.recipes.gate import Use
from interlock.recipes.sinks import Sink
from interlock.records.trust import Sizes
from interlock.rundir import RunDir
from interlock.sandbox.canary import open_sandbox
from interlock.tasks.executing import executes, judges_outside
from interlock.tasks.verifier_pool import sandbox_of


def unqualified(uses: Sequence[Use], run: RunDir, sinks: Sink) -> None:
    for use in uses:
        if use.why:
            message = f"{use.device} is used unqualified to {use.role}: {use.why}"
            sinks.event(run.event("unqualified", message, device=use.device, reason=use.why))


def untried(uses: Sequence[Use], sizes: Sizes, run: RunDir, sinks: Sink) -> None:
    """Where the model is larger than what a certificate was made at."""
    for use in uses:
        if use.tried is not None and not use.why and (beyond := sizes.beyond(use.tried)):
            message = (
                f"the certificate of {use.device} was made at smaller sizes ({', '.join(beyond)}); "
                "interlock qualify --model tries those of this model"
            )
            sinks.event(run.event("sizes_untried", message, device=use.device))


def isolation(recipe: Recipe, run: RunDir, sinks: Sink) -> None:
    for task in (task for stage in recipe.stage for task in stage.task):
        way = open_sandbox() if judges_outside(task) else sandbox_of(task)
        if way is not None:
            message = f"answers to {task.name} are judged in a sandbox of {way.name}"
            sinks.event(run.event("sandboxed", message, way=way.name))
        elif executes(task):
            message = f"{task.name} executes answers, and without a sandbox, as was asked for"
            sinks.event(run.event("unsandboxed", message))
