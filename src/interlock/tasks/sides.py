r"""Whether the sides of an equation agree: "6 = 5" names two values, and whoever names two none.

Looked at are sides of plain arithmetic alone, as both of "2 + 3 = 5" are; "x", "1101_2" and "50\%"
are not. A number may be the other side rounded or cut off, as in "100/3 = 33.3".
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from interlock.tasks import answers
from interlock.tasks.echoes import one_way

_ARITHMETIC = re.compile(r"[0-9.+\-*/()]{1,200}")
_NUMBER = re.compile(r"\(*[+-]?[0-9]*(?:\.([0-9]*))?\)*")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def agree(answer: str) -> bool:
    """Whether no equation in it has sides that differ; it may be a list of several."""
    return all(_agree(each) for each in re.split("[,;]", answers.ungrouped(answer)))


def _agree(equation: str) -> bool:
    sides = [one_way(side) for side in equation.split("=")]
    found = [(worth, _place(side)) for side in sides if (worth := _worth(side)) is not None]
    last, its_place = found[-1] if found else (Fraction(), Fraction())
    return all(worth == last or abs(worth - last) < max(place, its_place) for worth, place in found)


def _worth(side: str) -> Fraction | None:
    """Exactly; None of what is no plain arithmetic."""
    if not _ARITHMETIC.fullmatch(side):
        return None

    def worth(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(ast.get_source_segment(side, node) or "")
            case ast.UnaryOp(op=sign, operand=inner):
                return -worth(inner) if isinstance(sign, ast.USub) else worth(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](worth(left), worth(right))
        raise ValueError("no plain arithmetic")

    try:
        return worth(ast.parse(side, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _place(side: str) -> Fraction:
    """What its last digit stands for; 0 of a calculation."""
    number = _NUMBER.fullmatch(side)
    return Fraction(1, 10 ** len(number[1] or "")) if number else Fraction()
