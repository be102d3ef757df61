"""What `interlock eval` measures, and its figures as one JSON object.

--task … --samples … ─┐
the run's own stage ──┴─what_to_measure─> Exam ──recipes.evaluate.measure──> figures
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlock.config.reading import parse_evaluation, parse_sampling, parse_task, to_tree
from interlock.config.tasks import MOST_HELD_OUT, TaskSettings, task_conflicts
from interlock.errors import ConfigError, TooFewProblems
from interlock.recipes.evaluate import Exam, practised
from interlock.records.passes import Share, accuracy, passes
from interlock.records.rl import Score, ScoredGroup, of_tasks
from interlock.text import one_line

_LIMIT, _PROBLEMS = 256, 128
_OF_ONE = re.compile(r"(\d+)\.(.+)", re.DOTALL)  # a setting of one of several tasks


def what_to_measure(given: argparse.Namespace) -> Exam:
    """What the command line says, or the run's own. Raises ConfigError."""
    asked = {
        "samples": given.samples,
        "pass_at": given.pass_at,
        "temperature": given.temperature,
        "top_p": given.top_p,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if given.task:
        limit, count = given.max_tokens or _LIMIT, given.problems or _PROBLEMS
        with asking_for(count):
            tasks = _tasks(given.task, count, given.settings)
        sampling = parse_sampling(0.0, limit, given.stop or [], given.thinking_budget)
        return Exam(tasks, count, sampling, limit, how=parse_evaluation(asked))
    if not (Path(given.model) / "manifest.json").is_file():
        name = one_line(repr(given.model), 80)
        known = f"{name} is no run" if Path(given.model).is_dir() else f"there is no run at {name}"
        raise ConfigError(
            f"{known}, which would know its task; give a run's directory, or for a model say "
            "--task arithmetic, gsm8k, jsonl or reasoning-gym/NAME"
        )
    if given.settings:
        raise ConfigError(f"{given.settings[0]} would change the run's own task; give --task too")
    own = practised(Path(given.model))
    count = given.problems or own.problems
    if count > (most := min(task.held_out for task in own.task)):
        raise ConfigError(
            f"--problems {count}: the run held out {most}; give --problems {most} or fewer"
        )
    limit = given.max_tokens or own.sampling.max_tokens
    budget = given.thinking_budget
    budget = own.sampling.thinking_budget if budget is None else budget
    words = own.sampling.thinking_words
    sampling = parse_sampling(0.0, limit, given.stop or own.sampling.stop, budget, words)
    how = parse_evaluation(to_tree(own.how) | asked)
    return own._replace(problems=count, sampling=sampling, how=how)


def _tasks(names: Sequence[str], count: int, settings: Sequence[str]) -> list[TaskSettings]:
    """One for each name. A setting that begins with a number is of the task at that place alone."""
    own: list[list[str]] = [[] for _ in names]
    for setting in settings:
        placed = _OF_ONE.fullmatch(setting)
        if placed is None:
            for each in own:
                each.append(setting)
        elif int(placed[1]) < len(names):
            own[int(placed[1])].append(placed[2])
        else:
            raise ConfigError(
                f"{one_line(setting, 60)} is of task {placed[1]}, and they go from 0 to "
                f"{len(names) - 1}"
            )
    pairs = zip(names, own, strict=True)
    tasks = [parse_task(name, count, each) for name, each in pairs]
    for conflict in task_conflicts(tasks):
        raise ConfigError(conflict)
    return tasks


@contextmanager
def asking_for(count: int, default: bool = False) -> Iterator[None]:
    """Where a task has fewer problems than `--problems`, that is what has to be lowered.

    Raises ConfigError.
    """
    said = f"--problems {count}" + ", as it is where nothing is said" * default
    if count > MOST_HELD_OUT:
        raise ConfigError(f"{said}: that is too many; give {MOST_HELD_OUT:,} or fewer")
    try:
        yield
    except TooFewProblems as error:
        remedy = "give data with more rows"
        if error.most:
            remedy = f"give --problems {error.most} or fewer"
        raise ConfigError(f"{said}: {error.what}; {remedy}") from None


def figures(model: str, exam: Exam, scored: Sequence[ScoredGroup]) -> dict[str, Any]:
    """All that was measured, of each task and of all answers together."""
    whole = _figures(scored, exam.how.pass_at) | {"model": model, "samples": exam.how.samples}
    settings = {task.called: to_tree(task) for task in exam.task}
    if len(settings) == 1:
        return whole | {"task": to_tree(exam.task[0])}
    own = of_tasks(scored)
    return whole | {
        "tasks": [
            {"task": task} | _figures(own.get(called, []), exam.how.pass_at)
            for called, task in settings.items()
        ]
    }


def _figures(scored: Sequence[ScoredGroup], ks: Sequence[int]) -> dict[str, Any]:
    solved = accuracy(scored)
    found: dict[str, Any] = {
        "accuracy": solved.mean,
        "low": solved.low,
        "high": solved.high,
        "reward": Score.of(scored).reward,
        "problems": solved.problems,
    }
    if ks:
        found["pass_at"] = {str(k): _share(share) for k, share in passes(scored, ks).items()}
    return found


def _share(share: Share) -> dict[str, float | None]:
    """Of no problem, of which so many answers count, there is no figure."""
    figures = {"mean": share.mean, "low": share.low, "high": share.high}
    known = share.problems > 0
    return {n: each if known else None for n, each in figures.items()} | {
        "problems": share.problems
    }
