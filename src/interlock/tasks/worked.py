"""Worked solutions of a task's problems: what a cold start learns from, with no data from outside.

    Problem ──lines of the calculation──> "<think>\\n7+80=87\\n87+2=89\\n</think>\\n89"

A solution is a function of its problem alone.
"""

from collections.abc import Callable, Iterator

from interlock import thinking
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem


def worked(task: TaskSettings, problem: Problem) -> str:
    """The assistant's turn: the thinking, then the answer. Raises TaskError where there is none."""
    lines = _LINES.get(task.name)
    if lines is None:
        raise TaskError(
            f"task {task.name!r} has no worked solutions, which {', '.join(_LINES)} has; give data"
        )
    begin, end = thinking.PAIRS[0]
    thought = "\n".join(lines(problem))
    return f"{begin}\n{thought}\n{end}\n{problem.answer}"


def _arithmetic(problem: Problem) -> Iterator[str]:
    """Digit by digit of the second number, from the left: each line has the sum so far."""
    a, op, b = (problem.meta[name] for name in ("a", "op", "b"))
    if op == "*":
        yield from _product(a, b)
    elif op == "-" and a < b:
        yield from _stepwise(b, "-", a)
        yield f"{a}-{b}=-{b - a}"
    else:
        yield from _stepwise(a, op, b)


def _stepwise(a: int, op: str, b: int) -> Iterator[str]:
    """a + b or a - b; a difference is of a number no larger than a."""
    for part in _parts(b):
        after = a + part if op == "+" else a - part
        yield f"{a}{op}{part}={after}"
        a = after


def _product(a: int, b: int) -> Iterator[str]:
    products = [a * part for part in _parts(b)]
    yield from (f"{a}*{part}={a * part}" for part in _parts(b))
    if len(products) > 1:
        total = products[0]
        for each in products[1:]:
            yield f"{total}+{each}={total + each}"
            total += each


def _parts(number: int) -> list[int]:
    """Hundreds, tens, ones: those that are not 0, or the 0."""
    digits = str(number)
    parts = [int(d) * 10 ** (len(digits) - 1 - place) for place, d in enumerate(digits)]
    return [part for part in parts if part] or [0]


_LINES: dict[str, Callable[[Problem], Iterator[str]]] = {"arithmetic": _arithmetic}
