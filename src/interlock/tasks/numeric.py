"""When two numbers of sympy are the same: exactly where both are exact, else relatively.

math-verify rounds both to six decimals, which makes all tiny numbers one; and then it simplifies
their difference, which makes all infinite ones nothing.
"""

from typing import Any

from math_verify import grader
from sympy import Float, Integer, MatrixBase, Rational, nan, oo, zoo

_ROUNDED = Rational(1, 10**6)  # of a number that is written with as many digits as one cares to
_DIGITS = 30
_same_formula = grader.sympy_symbolic_eq


def compare_relatively() -> None:
    """Let math-verify compare numbers by `same_number`, also inside tuples, sets and matrices."""
    grader.sympy_numeric_eq = same_number
    grader.sympy_symbolic_eq = same_formula


def same_number(a: Any, b: Any, *_: int) -> bool:
    """Whether two numbers, or matrices of them, are the same; False of what is no number.

    Decimals, integers and fractions are exact. A decimal is also right as the six leading digits of
    what has no end: 0.333333 of 1/3, 1.414214 of a root. A percentage is what it is worth, or the
    number in front of the sign.
    """
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        pairs = zip(a.flat(), b.flat(), strict=True) if a.shape == b.shape else ()
        return a.shape == b.shape and all(same_number(x, y) for x, y in pairs)
    percent_a, percent_b = grader.get_pct_val(a), grader.get_pct_val(b)
    if (percent_a is None) != (percent_b is None) and _same(
        a if percent_a is None else percent_a, b if percent_b is None else percent_b
    ):
        return True
    return _same(grader.safe_sympy_doit(a), grader.safe_sympy_doit(b))


def same_formula(a: Any, b: Any) -> bool:
    """Whether two formulas are the same by algebra, which has no rules for infinity: |oo| - 5 is
    zero to it.
    """
    a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
    endless = any(each.has(oo, -oo, zoo, nan) for each in (a, b))
    return not endless and bool(_same_formula(a, b))


def _same(a: Any, b: Any) -> bool:
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)):
        return False
    decimal = a.has(Float) or b.has(Float)
    a, b = _exact(a), _exact(b)
    if isinstance(a, Rational) and isinstance(b, Rational) and not (decimal and _endless(a, b)):
        return bool(a == b)
    if not (isinstance(a, Rational) and isinstance(b, Rational)):
        a, b = a.evalf(_DIGITS), b.evalf(_DIGITS)
        if not (a.is_finite and b.is_finite):  # within any share of infinity lies every number
            return bool(a == b and a is not nan)
    return bool(abs(a - b) <= max(abs(a), abs(b)) * (_ROUNDED if decimal else 1e-12))


def _exact(number: Any) -> Any:
    return Rational(str(number)) if isinstance(number, Float) else number


def _endless(a: Rational, b: Rational) -> bool:
    """Whether one of them has no last decimal."""
    return any(int(Integer(10**400) % each.q) != 0 for each in (a, b))
