"""Solutions of a task's problems: what a cold start learns from, with no data from outside.

    Problem ──lines of the calculation──> "<think>\\n7+8=15\\n</think>\\n15"     arithmetic
            ──its reference answer──────> "<answer>15</answer>"                  reasoning-gym/…

A solution is a function of its problem alone.
"""

from collections.abc import Callable, Iterator, Sequence

from interlock import thinking
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import known
from interlock.tasks.packages import module_of

Solve = Callable[[Problem], str]


def open_solver(task: TaskSettings) -> Solve:
    """What gives the assistant's turn for a problem of `task`.

    Raises TaskError where there is no such thing, now or when it is asked for one problem.
    """
    kind = known(task.name)
    if kind == "arithmetic":
        return worked
    if kind == "reasoning-gym":
        solver: Solve = module_of("interlock.tasks.gym", f"task {task.name!r}").open_solver(task)
        return solver
    raise TaskError(
        f"task {task.name!r} has no worked solutions, which arithmetic and reasoning-gym have; "
        "give data"
    )


def worked(problem: Problem) -> str:
    """A calculation, worked out line by line inside the tags of thinking, then the answer."""
    begin, end = thinking.PAIRS[0]
    thought = "\n".join(_arithmetic(problem))
    return f"{begin}\n{thought}\n{end}\n{problem.answer}"


def _arithmetic(problem: Problem) -> Iterator[str]:
    """A sum by places, which are then added up; a difference place by place of the second number;
    a product by its places.
    """
    a, op, b = (problem.meta[name] for name in ("a", "op", "b"))
    if op == "*":
        yield from _product(a, b)
    elif op == "+":
        yield from _sum(a, b)
    elif a < b:
        yield from _difference(b, a)
        yield f"{a}-{b}=-{b - a}"
    else:
        yield from _difference(a, b)


def _sum(a: int, b: int) -> Iterator[str]:
    places = range(max(len(str(a)), len(str(b))) - 1, -1, -1)
    pairs = [(a // 10**p % 10 * 10**p, b // 10**p % 10 * 10**p) for p in places]
    yield from (f"{x}+{y}={x + y}" for x, y in pairs)
    yield from _added([x + y for x, y in pairs])


def _difference(a: int, b: int) -> Iterator[str]:
    """a - b, where b is no larger."""
    for part in _parts(b):
        yield f"{a}-{part}={a - part}"
        a -= part


def _product(a: int, b: int) -> Iterator[str]:
    yield from (f"{a}*{part}={a * part}" for part in _parts(b))
    yield from _added([a * part for part in _parts(b)])


def _added(numbers: Sequence[int]) -> Iterator[str]:
    """One after another, each line with the sum so far; nothing for a single number."""
    total = numbers[0]
    for each in numbers[1:]:
        yield f"{total}+{each}={total + each}"
        total += each


def _parts(number: int) -> list[int]:
    """Hundreds, tens, ones: those that are not 0, or the 0."""
    digits = str(number)
    parts = [int(d) * 10 ** (len(digits) - 1 - place) for place, d in enumerate(digits)]
    return [part for part in parts if part] or [0]
