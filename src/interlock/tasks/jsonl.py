"""Question/answer files: one JSON object a line. "gsm8k" is the same with its own defaults.

`path` is a .jsonl file, a directory with train.jsonl and perhaps test.jsonl, or a dataset of the
hub with those files (hf:org/name, hf:org/name@revision). With a test.jsonl the held-out problems
come from it alone; without, they are a random choice of the training rows. Rows that repeat an
earlier question, and training rows that repeat a test question, are dropped and counted.
"""

import hashlib
import json
from pathlib import Path
from random import Random

import msgspec

from interlock import hub
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import user_verifier
from interlock.tasks.options import read_options
from interlock.tasks.rows import Row, plain, read_rows, row_errors
from interlock.tasks.sources import ListSource, Unfit, fits, prompt


class Jsonl(msgspec.Struct, frozen=True):
    """`answer_after`: the reference is what follows this mark in the answer field ("####")."""

    path: str
    question_field: str = "question"
    answer_field: str = "answer"
    answer_after: str | None = None
    instruction: str = ""  # put after every question
    verifier: str | None = None  # "path/to/file.py:function" instead of math-verify


class Gsm8k(Jsonl, frozen=True):
    answer_after: str | None = "####"


def options_of(task: TaskSettings) -> Jsonl:
    """The task's options. Raises TaskError."""
    return read_options(task, Gsm8k if task.name == "gsm8k" else Jsonl)


def open_source(task: TaskSettings, unfit: Unfit = fits) -> ListSource:
    options = options_of(task)
    verifier = [] if options.verifier is None else user_verifier.sources(options.verifier)
    train_file, test_file = _find_files(options.path)
    train_rows = _Rows(train_file, task, options, unfit)
    training = train_rows.problems
    dropped, left_out = train_rows.repeated, train_rows.left_out
    rng = Random(f"{task.seed}/held-out")
    if test_file is None:
        ids = rng.sample(list(training), min(task.held_out, len(training)))
        held_out = [training.pop(id) for id in ids]
    else:
        test_rows = _Rows(test_file, task, options, unfit)
        test = test_rows.problems
        held_out = rng.sample(list(test.values()), min(task.held_out, len(test)))
        shared = training.keys() & test.keys()
        dropped += test_rows.repeated + len(shared)
        left_out += test_rows.left_out
        training = {id: problem for id, problem in training.items() if id not in shared}
    if len(held_out) < task.held_out or not training:
        there = len(held_out) + (len(training) if test_file is None else 0)
        raise TaskError(
            f"{test_file or train_file} has {there} different problems, too few to hold out "
            f"{task.held_out}{' and train on others' * (test_file is None)}; lower "
            "stage.task.held_out and stage.eval.problems"
        )
    files = [train_file, *filter(None, [test_file]), *verifier]
    return ListSource(list(training.values()), held_out, task.seed, dropped, left_out, files)


def _find_files(path: str) -> tuple[Path, Path | None]:
    """(file to train on, file to hold out from or None)."""
    place = Path(path)
    if path.startswith(hub.PREFIX):
        place = hub.fetch(path, "dataset", ["*.jsonl"])
    if place.is_file():
        return place, None
    train_file, test_file = place / "train.jsonl", place / "test.jsonl"
    if not train_file.is_file():
        what = f"{path} has no train.jsonl" if place.is_dir() else f"there is no {path}"
        raise TaskError(
            f"{what}; give a .jsonl file, or a directory with train.jsonl"
            f"{'' if place.is_dir() or place.suffix == '.jsonl' else hub.hint(path)}"
        )
    return train_file, test_file if test_file.is_file() else None


class _Rows:
    """The problems of a file by id, and how many rows repeat one or do not fit."""

    def __init__(self, path: Path, task: TaskSettings, options: Jsonl, unfit: Unfit) -> None:
        self.problems: dict[str, Problem] = {}
        self.repeated = self.left_out = 0
        for number, row in read_rows(path):
            with row_errors(path, number):
                problem = _problem(row, task, options)
                why = unfit(problem)
                if why is not None and task.overlong == "refuse":
                    raise TaskError(f'{why}, or leave such rows out: overlong = "leave_out"')
            if why is not None:
                self.left_out += 1
            elif problem.id in self.problems:
                self.repeated += 1
            else:
                self.problems[problem.id] = problem


def _problem(row: Row, task: TaskSettings, options: Jsonl) -> Problem:
    question = _field(row, options.question_field)
    answer = _field(row, options.answer_field)
    if options.answer_after is not None:
        _, mark, answer = answer.rpartition(options.answer_after)
        if not mark:
            raise ValueError(f"the answer has no {options.answer_after!r}")
    if not answer.strip():
        raise ValueError("the answer is empty")
    digest = hashlib.sha256(" ".join(question.split()).encode()).hexdigest()
    return Problem(
        id=f"{task.name}:{digest[:16]}",
        messages=prompt(task, f"{question}\n{options.instruction}".rstrip("\n")),
        answer=answer.strip(),
    )


def _field(row: Row, name: str) -> str:
    """A non-empty text, or a number as text. Raises ValueError."""
    if name not in row:
        raise ValueError(f"no field {name!r}; the row has {', '.join(map(repr, row))}")
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {name!r} is {json.dumps(value)[:80]}, not a text or a number")
    return value
