"""Scorers that execute the answer they judge, and what such an answer may look like.

These generators of reasoning-gym hand the answer to `eval`, or to sympy's `parse_expr`, which is
`eval` too. So they run in a sandbox, each answer in a process of its own. That keeps the machine
and later answers; it cannot keep a program from changing the verdict on itself, nor from reading
the reference answer, which lies beside it. Hence `harmless`: what no right answer contains is
judged wrong unseen.
"""

import re

from interlock.config.rewards import CodeReward
from interlock.config.tasks import TaskSettings

# tests/tasks/test_executing.py reads reasoning-gym's sources for more.
EXECUTING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
_LETTER = re.compile(r"'[A-Za-z_.0-9]?'|\"[A-Za-z_.0-9]?\"")  # a cell of a board, quoted
_NAMES = re.compile(r"[^\W\d]\w*")
_KNOWN = re.compile("Abs|a?(sin|cos|tan)h?|cot|coth|sec|csc|exp|ln|log|sqrt|erfi?|pi|[A-Z]+|.")
_SIGNS = re.compile(r"[\w\s.,+\-*/^%()\[\]!=]*", re.ASCII)
_NUMBER = re.compile(r"(?<!\w)\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]")


def judges_outside(task: TaskSettings) -> bool:
    """Whether its verifier keeps what answers do away from itself, with limits of its own: then no
    answer can make it fail, and what ends it is nobody's fault.
    """
    by_tests = any(isinstance(each, CodeReward) for each in task.reward)
    return task.judge is None and (task.name == "code" or by_tests)


def executes(task: TaskSettings) -> bool:
    """Whether judging an answer to this task executes it in the verifier's own process."""
    return task.judge is None and task.name.partition("/")[2] in EXECUTING


def harmless(answer: str) -> bool:
    """Whether an answer is data: numbers, letters, formulas, lists; no program.

    A name is one letter, capitals alone ("ABCDE", which is the name of nothing), or a function or
    constant of mathematics. An integral that was left standing is none: it is the question.
    """
    answer = _NUMBER.sub("0", _LETTER.sub("0", answer))
    if not _SIGNS.fullmatch(answer) or _ATTRIBUTE.search(answer):
        return False
    return all(_KNOWN.fullmatch(name) for name in _NAMES.findall(answer))
