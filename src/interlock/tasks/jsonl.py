"""Question/answer files: a row is a problem. "gsm8k" is the same with its own defaults.

`path` is what data.py finds files by: JSONL, Parquet, what `datasets` saved, a data set of the hub.
Where there is a test part the held-out problems come from it alone; without, they are a random
choice of the training rows. Rows that repeat an earlier question, and training rows that repeat a
test question, are dropped and counted.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from interlock.config.fields import Said
from interlock.config.rewards import CodeReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
from interlock.records.rl import Problem
from interlock.tasks import user_verifier
from interlock.tasks.code.problems import CodeOptions, hidden_tests
from interlock.tasks.columns import AskedRow, asked
from interlock.tasks.data import find, rows_of
from interlock.tasks.drawing import RatesTold
from interlock.tasks.options import read_options
from interlock.tasks.rows import Row, row_errors
from interlock.tasks.sources import ListSource, Unfit, counted, fits, prompt
from interlock.text import one_line

_SHOWN = 3  # rows that are told of


class Jsonl(msgspec.Struct, frozen=True):
    """`answer_after`: the reference is what follows this mark in the answer field ("####").

    The fields are columns; None: the one of those usual that the rows have (columns.py).
    """

    path: Said
    question_field: Said | None = None
    answer_field: Said | None = None
    answer_after: Said | None = None
    instruction: str = ""  # put after every question
    verifier: str | None = None  # "path/to/file.py:function" instead of math-verify


class Gsm8k(Jsonl, frozen=True):
    answer_after: Said | None = "####"


def options_of(task: TaskSettings) -> Jsonl:
    """The task's options. Raises TaskError."""
    return read_options(task, Gsm8k if task.name == "gsm8k" else Jsonl)


def open_source(task: TaskSettings, unfit: Unfit = fits) -> ListSource:
    options = options_of(task)
    verifier = [] if options.verifier is None else user_verifier.sources(options.verifier)
    found = find(options.path)
    train_rows = _Rows(found.train, task, options, unfit)
    training = train_rows.problems
    dropped, left_out = train_rows.repeated, train_rows.left_out
    rng = Random(f"{task.seed}/held-out")
    if not found.test:
        ids = rng.sample(list(training), min(task.held_out, len(training)))
        held_out = [training.pop(id) for id in ids]
    else:
        test_rows = _Rows(found.test, task, options, unfit)
        test = test_rows.problems
        held_out = rng.sample(list(test.values()), min(task.held_out, len(test)))
        shared = training.keys() & test.keys()
        dropped += test_rows.repeated + len(shared)
        left_out += test_rows.left_out
        training = {id: problem for id, problem in training.items() if id not in shared}
    if found.test and not training:
        raise TaskError(
            f"{found.train[0]} asks nothing that {found.test[0]}, which is held out, does not ask; "
            "give other rows to train on"
        )
    if len(held_out) < task.held_out or not training:
        there = len(held_out) + (0 if found.test else len(training))
        long = test_rows.left_out if found.test else left_out
        raise TooFewProblems(
            f"{(found.test or found.train)[0]} has {counted(there, long)}, too few to hold out "
            f"{task.held_out}{'' if found.test else ' and train on others'}",
            there if found.test else max(0, there - 1),
            "lower stage.task.held_out and stage.eval.problems",
        )
    files = [*found.train, *found.test, *verifier]
    rates = train_rows.told.of(training)
    return ListSource(list(training.values()), held_out, task.seed, dropped, left_out, files, rates)


def training_rows(task: TaskSettings) -> tuple[list[Problem], list[str]]:
    """-> all different problems of the data's training part, as they come; what was left out

    Nothing is held out. Raises TaskError as `open_source` does.
    """
    options = options_of(task)
    rows = _Rows(find(options.path).train, task, options, fits)
    told = rows.at_odds[:_SHOWN]
    if len(rows.at_odds) > _SHOWN:
        told.append(f"{len(rows.at_odds) - _SHOWN} more rows have another answer, too")
    if rows.repeated:
        told.append(f"{rows.repeated} rows repeat the question of another, and are left out")
    return list(rows.problems.values()), told


class _Rows:
    """The problems of some files by id, and how many rows repeat one or do not fit."""

    def __init__(
        self, files: Sequence[Path], task: TaskSettings, options: Jsonl, unfit: Unfit
    ) -> None:
        self.problems: dict[str, Problem] = {}
        self.repeated = self.left_out = 0
        self.at_odds: list[str] = []  # rows that repeat a question and have another answer to it
        self.told = RatesTold(task)
        first: AskedRow | None = None
        for path, number, row in rows_of(files):
            with row_errors(path, number):
                said = asked(row, options.question_field, options.answer_field)
                first = first or said
                _check_form(said, first)
                problem = _problem(said, task, options, _tests(row, said, task))
                self.told.take(problem.id, row)
                why = unfit(problem)
                if why is not None and task.overlong == "refuse":
                    raise TaskError(f'{why}, or leave such rows out: overlong = "leave_out"')
            if why is not None:
                self.left_out += 1
            elif problem.id in self.problems:
                self.repeated += 1
                if (kept := self.problems[problem.id].answer) != problem.answer:
                    here, first_said = (one_line(repr(x), 40) for x in (problem.answer, kept))
                    self.at_odds.append(
                        f"{path}:{number} has the answer {here} to a question of which "
                        f"{first_said} is kept: one of them is wrong"
                    )
            else:
                self.problems[problem.id] = problem


def _check_form(said: AskedRow, first: AskedRow) -> None:
    """Raise ValueError where a row has its question or answer elsewhere than the first."""
    for here, before in zip(said.form[:2], first.form[:2], strict=True):
        if here != before:
            raise ValueError(
                f"the row has the column {here!r} where the first row has {before!r}; give all "
                "rows one form"
            )
    if said.form != first.form:
        raise ValueError(
            f"the column {said.form[0]!r} is a text in some rows and turns in others; give all "
            "rows one form"
        )


def _tests(row: Row, said: AskedRow, task: TaskSettings) -> dict[str, Any]:
    """The hidden tests of a row, where a reward grades by them. Raises ValueError."""
    if not any(isinstance(each, CodeReward) for each in task.reward):
        return {}
    shown = said.question if isinstance(said.question, str) else said.question[-1]["content"]
    return hidden_tests(row, shown, CodeOptions())


def _problem(said: AskedRow, task: TaskSettings, options: Jsonl, meta: dict[str, Any]) -> Problem:
    answer = said.answer
    if options.answer_after is not None:
        _, mark, answer = answer.rpartition(options.answer_after)
        if not mark:
            raise ValueError(f"the answer has no {options.answer_after!r}")
    if not answer.strip():
        raise ValueError("the answer is empty")
    turns = said.question if isinstance(said.question, list) else []
    content = said.question if isinstance(said.question, str) else turns[-1]["content"]
    question = f"{content}\n{options.instruction}".rstrip("\n")
    if turns[:1] and turns[0]["role"] == "system" and task.system is not None:
        raise ValueError("the row has a system turn, and so has the task; remove task.system")
    key = " ".join(content.split()) if not turns else json.dumps(turns)
    key += json.dumps(said.template, sort_keys=True) if said.template else ""
    return Problem(
        id=f"{task.name}:{hashlib.sha256(key.encode()).hexdigest()[:16]}",
        messages=prompt(task, question, turns[:-1]),
        answer=answer.strip(),
        meta=meta,
        template={**task.template, **said.template},
    )
