"""Sums, differences and products of two whole numbers: "What is 12 + 34?".

`12 + 34` and `34 + 12` belong to one family, which is either trained on or held out, never both.
"""

import re
import string
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlock import thinking
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import answers
from interlock.tasks.options import read_options
from interlock.tasks.sources import ProceduralSource, Unfit, fits, prompt

Digits = Annotated[int, Meta(ge=1, le=6)]
# Not tuple[Digits, Digits]: beside a bounded int in a union it makes msgspec 0.22 corrupt memory.
DigitRange = Annotated[tuple[Digits, ...], Meta(min_length=2, max_length=2)]
Operator = Literal["+", "-", "*"]

# The last number is what something is to be done with: "12 + 34", "92 / 2", nothing behind it.
# Of a line: a last line "-167" below one that ends with a digit is a value.
_OPERAND = re.compile(
    r"[0-9)][^\S\n]*(?:[-+*×·/÷\N{MINUS SIGN}]|\\times|\\cdot|plus|times|(?:multiplied|divided) by)"
    r"\s*[0-9]+[^0-9=]*\Z"
)

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
}


class Arithmetic(msgspec.Struct, frozen=True):
    """`digits` of each operand: one number, or the least and the most, each count as likely."""

    digits: Digits | DigitRange = 2
    operators: Annotated[tuple[Operator, ...], Meta(min_length=1)] = ("+",)
    template: str = "What is {a} {op} {b}?"


def open_source(task: TaskSettings, unfit: Unfit = fits) -> ProceduralSource:
    options = read_options(task, Arithmetic)
    _check_template(options.template)
    digits = options.digits
    fewest, most = digits if isinstance(digits, tuple) else (digits, digits)
    if fewest > most:
        raise TaskError(f"task 'arithmetic': digits = [{fewest}, {most}]; put the smaller first")

    def operand(rng: Random) -> int:
        length = rng.randint(fewest, most)
        return rng.randint(0 if length == 1 else 10 ** (length - 1), 10**length - 1)

    def draw(rng: Random) -> Problem:
        a, op, b = operand(rng), rng.choice(options.operators), operand(rng)
        return Problem(
            id=f"arithmetic:{a}{op}{b}",
            messages=prompt(task, options.template.format(a=a, op=op, b=b)),
            answer=str(_OPERATIONS[op](a, b)),
            meta={"a": a, "op": op, "b": b},
            template=task.template,
        )

    operands = 10**most - (10 ** (fewest - 1) if fewest > 1 else 0)
    families = operands * (operands + 1) // 2 * len(set(options.operators))
    return ProceduralSource(draw, task.seed, task.held_out, families, _family, unfit, task.overlong)


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], bool]:
    return verify


def verify(problem: Problem, answer: str) -> bool:
    """Whether the answer gives one number as its result, and that is the right one."""
    number = _result(answers.typed(thinking.after(answer)))
    return number is not None and Decimal(number) == Decimal(problem.answer)


def _result(text: str) -> str | None:
    r"""What is in \boxed{…}, else the last number; None of several, and of an operand.

    Of a box, what stands behind its last "=": "12 + 34 = 46" is one number, "45, 46" and "12 + 34"
    are two.
    """
    if boxes := answers.boxed(text):
        found = {Decimal(n) for box in boxes for n in answers.numbers(box.rpartition("=")[2])}
        return str(found.pop()) if len(found) == 1 else None
    if answers.undecided(text) or _OPERAND.search(text):
        return None
    return answers.last_number(text)


def _family(problem: Problem) -> str:
    low, high = sorted((problem.meta["a"], problem.meta["b"]))
    return f"{low}{problem.meta['op']}{high}"


def _check_template(template: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise TaskError(f"task 'arithmetic': template = {template!r}: {error}") from None
    fields = {field for _, field, _, _ in parts if field is not None}
    if not {"a", "b"} <= fields <= {"a", "b", "op"}:
        raise TaskError(
            f"task 'arithmetic': template = {template!r}: use {{a}}, {{b}} and, if wanted, {{op}}"
        )
    if any(re.search(r"\d{4}|\{", width or "") for _, _, width, _ in parts):
        raise TaskError(f"task 'arithmetic': template = {template!r}: write widths up to 999")
