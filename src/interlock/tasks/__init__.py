"""Tasks: where problems come from and who judges the answers.

    config.Task ── open_task ──> TaskSource ── train(step, count), held_out(count) ──> Problem
               └── VerifierPool ── verify([(Problem, answer), …]) ──> [Verdict, …]

A task's module offers `open_source(task, unfit) -> PooledSource`. Its verifier is loaded only in
the worker processes of `verifier_pool`, so the caller never imports a verifier's libraries.
"""

from collections.abc import Sequence

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
from interlock.tasks.drawing import DrawnSource
from interlock.tasks.options import unknown
from interlock.tasks.packages import module_of
from interlock.tasks.sources import PooledSource, TaskSource, Unfit, fits

_SOURCES = {
    "arithmetic": "interlock.tasks.arithmetic",
    "code": "interlock.tasks.code.problems",
    "gsm8k": "interlock.tasks.jsonl",
    "jsonl": "interlock.tasks.jsonl",
    "reasoning-gym": "interlock.tasks.gym",
}


def kinds() -> set[str]:
    """What a task's name may be, or may be before its "/"."""
    return set(_SOURCES)


def generators() -> list[str]:
    """The generators of reasoning-gym by their own names; none where it is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(DATASETS)


def known(name: str) -> str:
    """The kind of a task, by its name. Raises TaskError where there is none such."""
    kind, slash, _ = name.partition("/")
    if kind not in _SOURCES or bool(slash) != (kind == "reasoning-gym"):
        if name in generators():
            raise TaskError(f"unknown task: {name!r}; did you mean reasoning-gym/{name}?")
        names = {*_SOURCES, "reasoning-gym/<generator>"} - {"reasoning-gym"}
        raise unknown("task", name, names)
    return kind


def open_task(task: TaskSettings, unfit: Unfit = fits) -> TaskSource:
    """Open the task's problems and set its held-out ones aside; see `open_beside`."""
    (source,) = open_beside([task], [unfit])
    return source


def open_beside(tasks: Sequence[TaskSettings], unfit: Sequence[Unfit]) -> list[TaskSource]:
    """Open the problems of tasks, none of which trains on what one of the same name holds out.

    Args:
        unfit: of each task, why a problem does not fit the model; such ones are refused, or left
            out and counted, as `task.overlong` says.

    Raises TaskError for an unknown name or option, for data that cannot be read or does not fit,
    for too few problems, and for a missing package.
    """
    sources = [_opened(*each, alone=len(tasks) == 1) for each in zip(tasks, unfit, strict=True)]
    for task, source in zip(tasks, sources, strict=True):
        for other, beside in zip(tasks, sources, strict=True):
            if other.name == task.name and beside is not source:
                source.spare(beside.reserved)
    return [
        source if task.draw is None else DrawnSource(source, task.draw, task.seed)
        for task, source in zip(tasks, sources, strict=True)
    ]


def _opened(task: TaskSettings, unfit: Unfit, alone: bool) -> PooledSource:
    module = module_of(_SOURCES[known(task.name)], f"task {task.name!r}")
    try:
        source: PooledSource = module.open_source(task, unfit)
    except TooFewProblems as error:
        raise (error if alone else error.of(task.called)) from None
    return source
