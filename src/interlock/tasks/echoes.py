r"""Whether an answer only repeats the question: an arithmetic expression that nobody worked out.

    "\boxed{12 + 34}" to "What is 12 + 34?"     a computer algebra system finds it equal to 46

An expression of plain numbers is no value where every number in it stands in the question, unless
the reference is written just so. What is the customary way to write a value is one: a fraction in
lowest terms, a mixed number, m * 10^n. Of an equation one side that is such a value is enough.
"""

import math
import re

from interlock.tasks import answers

_SIGNS = (
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"(\1/\2)"),
    (r"\\sqrt\s*(?:\{([^{}]*)\}|([0-9]))", r"√(\1\2)"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅]", "*"),
    (r"\\div(?![A-Za-z])|[÷:]", "/"),
    (r"\\(?:left|right)(?![A-Za-z])|\\[,;:! ]|\\?[$€£¥₹]|\s", ""),
    (r"\*\*", "^"),
    ("[\N{MINUS SIGN}\N{EN DASH}]", "-"),
    (r"[\[{]", "("),
    (r"[\]}]", ")"),
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_ARITHMETIC = re.compile(r"[0-9.+\-*/^()!√]+")
_SURD = re.compile(r"-?[0-9]*\*?√([0-9]{1,9})")
_FRACTION = re.compile(r"-?\(*-?([0-9]+)\)*/\(*([0-9]+)\)*")
_MIXED = re.compile(r"-?[0-9]+\(\(*[0-9]+\)*/\(*[0-9]+\)*\)")
_SCIENTIFIC = re.compile(r"-?[0-9.]+\*10\^\(?-?[0-9]+\)?")


def is_echo(answer: str, question: str, reference: str) -> bool:
    """Whether `answer`, without what marks it as one, is an expression out of the question."""
    plain = _plain(answer)
    if plain == _plain(reference):
        return False
    asked = answers.ungrouped(answers.spelled(question))
    known = {_digits(found[0]) for found in _NUMBER.finditer(asked)}
    # What has letters beside it, "x = 12 + 34", is no value of its own that would make up for it.
    sides = [side for side in plain.split("=") if _ARITHMETIC.fullmatch(side)]
    return bool(sides) and all(_is_expression(side, known) for side in sides)


def _is_expression(plain: str, known: set[str]) -> bool:
    numbers = [_digits(found[0]) for found in _NUMBER.finditer(plain)]
    if "√" not in plain:
        known = known | {"0", "1"}  # "12 + 34 + 0" works nothing out; 1 + √5 is as short as can be
    if not numbers or not known.issuperset(numbers):
        return False
    inner = plain.strip("()").lstrip("+-")
    if fraction := _FRACTION.fullmatch(plain):
        return math.gcd(*map(int, fraction.groups())) > 1
    if surd := _SURD.fullmatch(plain):  # worked out as far as it goes: no square divides it
        under = int(surd[1])
        return any(under % (n * n) == 0 for n in range(2, min(math.isqrt(under), 10_000) + 1))
    if _MIXED.fullmatch(plain) or _SCIENTIFIC.fullmatch(plain):
        return False
    return re.search(r"[-+*/^!√]", inner) is not None or ")(" in plain


def _plain(text: str) -> str:
    """In one way of writing, without spaces."""
    text = answers.ungrouped(answers.spelled(text))
    for pattern, instead in _SIGNS:
        text = re.sub(pattern, instead, text)
    return re.sub(r"\((-?[0-9.]+)\)", r"\1", text).rstrip(".")


def _digits(number: str) -> str:
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return number.lstrip("0") or "0"
