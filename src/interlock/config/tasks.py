"""`[stage.task]` and `[stage.eval]`: where problems come from, and how a model is measured.

One table is one task; of several, `[[stage.task]]`, a step mixes problems by their `weight`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from msgspec import Meta

from interlock.config.drawing import DrawSettings
from interlock.config.fields import (
    NonNegative,
    Overlong,
    Positive,
    Processes,
    Rate,
    Seed,
    SettingsTable,
    ThinkingSwitch,
)
from interlock.config.judging import JudgeSettings
from interlock.config.rewards import AnyReward, CodeReward, reward_conflicts, room_conflicts
from interlock.text import one_line

MOST_HELD_OUT = 1_000_000


class TaskSettings(SettingsTable, frozen=True):
    """`[stage.task]`, or one of several `[[stage.task]]`: a source of problems and its verifier."""

    name: str  # "arithmetic", "code", "gsm8k", "jsonl", or "reasoning-gym/<generator>"
    options: dict[str, Any] = {}  # the task's own, which it checks (docs/recipes.md)
    label: str = ""  # what figures and teachers call it; "": its name
    weight: Rate = 1.0  # of several: its share of a step's problems, against the others' weights
    seed: Seed = 0  # of the problems and their order
    # Problems kept away from training.
    held_out: Annotated[int, Meta(gt=0, le=MOST_HELD_OUT)] = 128
    overlong: Overlong = "refuse"  # a prompt that leaves no room for sampling.max_tokens
    system: str | None = None  # a system turn put before every problem
    # What the chat template is told with every problem; what a row says itself goes before it.
    template: dict[str, Any] = {}  # { enable_thinking = false }
    # Whether the model is told to think; None: nothing is said. As a row's, by the switch of sft.
    thinking: bool | None = None
    thinking_switch: ThinkingSwitch = "template"
    workers: Processes = 1  # verifier processes
    timeout_s: Rate = 5.0  # to judge one answer
    # Times that it is tried again to judge answers when it failed through no fault of theirs (what
    # judges did not start, could not be reached, had no processor with no other answer beside it);
    # then they are left out.
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    retry_s: Rate = 60.0  # within which a new attempt at the answers of a step may begin
    memory_mb: Positive = 1024  # address space that judging may add to the process's own
    # What judges runs isolated: "auto", when it executes what the model wrote; "always"; or "none",
    # which is kept in the run's record.
    sandbox: Literal["auto", "always", "none"] = "auto"
    judge: JudgeSettings | None = None  # a model that scores the answers, in the verifier's stead
    reward: list[AnyReward] = []  # [[stage.task.reward]]; []: what its verifier gives
    draw: DrawSettings | None = None  # by pass rate; None: in an order that hangs on seed alone

    @property
    def called(self) -> str:
        """What its problems carry as their task."""
        return self.label or self.name


_LABEL = 80  # characters
_TESTED = ("code", "jsonl")  # tasks whose rows may have hidden tests
# Settings of a task that a judge has no use for, each with its own of the kind.
_OF_VERIFIERS = {
    "workers": "concurrency",
    "timeout_s": "timeout_s",
    "retries": "attempts",
    "retry_s": "deadline_s",
    "memory_mb": None,
    "sandbox": None,
}


def room_for_tasks(tasks: Sequence[TaskSettings], max_tokens: int, evaluated: int) -> Iterator[str]:
    """Where answers of `max_tokens`, or `evaluated` problems, are none that a task has room for."""
    for place, task in enumerate(tasks):
        which = "task" if len(tasks) == 1 else f"task.{place}"
        for why in room_conflicts(task.reward, max_tokens):
            yield f"{which}.{why}"
        if evaluated > task.held_out:
            yield (
                f"eval.problems = {evaluated} is more than {which}.held_out = {task.held_out}; "
                "lower the one or raise the other"
            )


def task_conflicts(tasks: Sequence[TaskSettings], drawn: bool = False) -> Iterator[str]:
    """Why the tasks of one stage do not go together; as StageSettings.conflicts.

    `drawn`: whether their problems may be drawn by pass rate.
    """
    yield from _mode_conflicts(tasks)
    for called, times in Counter(each.called for each in tasks).items():
        if times > 1:
            yield f"task: {times} are called {called!r}; give each a label of its own"
    for task in tasks:
        if not task.label.isprintable() or len(task.label) > _LABEL:
            shown = one_line(repr(task.label), 60)
            yield f"task.label = {shown} is no name: at most {_LABEL} characters of one line"
        for why in [] if task.draw is None else task.draw.conflicts():
            yield f"task.draw.{why}"
        if task.draw is not None and not drawn:
            yield "task.draw is of grpo stages, whose groups show what is solved; remove it"
        for why in reward_conflicts(task.reward):
            yield f"task.{why}"
        if task.name not in _TESTED and any(isinstance(each, CodeReward) for each in task.reward):
            yield (
                f"task.reward of kind code wants hidden tests in every row, and {task.name!r} has "
                "none; use a jsonl or code task, or remove it"
            )
        if task.judge is not None and task.reward:
            yield "task.judge scores in the verifier's stead, and task.reward too; remove one"
        if task.judge is None:
            continue
        for conflict in task.judge.conflicts():
            yield f"task.judge.{conflict}"
        if "verifier" in task.options:
            yield "task.judge and task.options.verifier both say who scores; remove one"
        usual = TaskSettings(task.name)
        for name, of_judge in _OF_VERIFIERS.items():
            if getattr(task, name) != getattr(usual, name):
                other = f"remove it, or set task.judge.{of_judge}" if of_judge else "remove it"
                yield f"task.{name} is a verifier's, and task.judge scores in its stead; {other}"
    if len(tasks) == 1 and tasks[0].weight != 1:
        yield f"task.weight = {tasks[0].weight} is against other tasks, and there is one; remove it"


def same_problems(one: TaskSettings, other: TaskSettings) -> bool:
    """Whether both are made of the same rows, or by the same procedure."""
    here, there = one.options.get("path"), other.options.get("path")
    if isinstance(here, str) and isinstance(there, str):
        return os.path.abspath(here) == os.path.abspath(there)
    return (one.name, one.options) == (other.name, other.options)


def _mode_conflicts(tasks: Sequence[TaskSettings]) -> Iterator[str]:
    """Of problems that are asked with thinking and without."""
    for task in tasks:
        told = task.template.get("enable_thinking", task.thinking)
        if task.thinking is not None and told is not task.thinking:
            yield (
                f"task.template.enable_thinking = {told!r} and task.thinking = {task.thinking!r} "
                "contradict each other; remove one"
            )
    for one, other in combinations(tasks, 2):
        if same_problems(one, other) and (one.seed, one.held_out) != (other.seed, other.held_out):
            yield (
                f"task: {one.called!r} and {other.called!r} are of the same problems, and what the "
                "one holds out the other may train on; give both one seed and one held_out"
            )


class EvaluationSettings(SettingsTable, frozen=True):
    """`[stage.eval]`: accuracy on held-out problems, before the first step and after the last, and
    in between.
    """

    every: NonNegative = 0  # steps; 0: only before and after
    problems: Positive = 128  # of each task's held_out
    samples: Annotated[int, Meta(ge=1, le=1024)] = 1  # answers per problem; 1: a greedy one
    # Of several answers, which are drawn.
    temperature: Annotated[float, Meta(gt=0, le=10)] = 0.6
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    # Each k: the chance that one of k answers is right, estimated without bias from `samples`.
    pass_at: list[Positive] = []

    def conflicts(self) -> Iterator[str]:
        """As StageSettings.conflicts."""
        for k in self.pass_at:
            if k > self.samples:
                yield (
                    f"eval.pass_at = {k} is of more answers than eval.samples = {self.samples}; "
                    "raise that"
                )
        usual = EvaluationSettings()
        for name in ("temperature", "top_p"):
            if self.samples == 1 and getattr(self, name) != getattr(usual, name):
                yield (
                    f"eval.{name} = {getattr(self, name)} is of answers that are drawn, and one is "
                    "greedy; ask for more samples, or remove it"
                )
