"""When math-verify may call two equations the same.

By itself it takes the question's "x + 3 = 8" for its solution, x = 5, and all equations without a
solution for one: "x = x" for the reference x^2 + 1 = 0.
"""

from typing import Any

from math_verify import grader
from sympy import Eq, Symbol, solve

_related, _solved_alike = grader.sympy_compare_relational, grader.sympy_solve_and_compare


def compare_solutions() -> None:
    """Let math-verify compare relations by the rules below, also inside lists and sets."""
    grader.sympy_compare_relational = _same_relation
    grader.sympy_solve_and_compare = _same_solutions


def _same_relation(reference: Any, found: Any, *precision: int) -> bool:
    if isinstance(reference, Eq) and _names_a_number(reference):
        alike = isinstance(found, Eq) and any(isinstance(side, Symbol) for side in found.args)
        return alike and bool(_related(reference, found, *precision))
    return bool(_related(reference, found, *precision))


def _same_solutions(reference: Any, found: Any, *precision: int) -> bool:
    there = solve(reference, reference.free_symbols)
    return bool(there) and bool(_solved_alike(reference, found, *precision))


def _names_a_number(equation: Eq) -> bool:
    return isinstance(equation.lhs, Symbol) and bool(equation.rhs.is_number)
