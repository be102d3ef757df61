r"""Whether an answer only repeats the question: a formula that nobody worked out.

    "\boxed{12 + 34}" to "What is 12 + 34?"     a computer algebra system finds it equal to 46

No value is
- a sum or product of any plain numbers, where the reference is one number: 12 + 33 + 1;
- an expression of plain numbers that all stand in the question, or are 0 and 1, which add nothing;
- a formula or list that stands in the question as it is: "(x+1)^2" to "Expand (x+1)^2";
- an integral, sum, product, limit or derivative left standing;
unless the reference is written so, in this order or another. What is the customary way to write a
value is one: a fraction in lowest terms, a mixed number, m * 10^n. Of an equation one side that is
a value is enough, and is then what is judged: "0 = 12 + 34" says 0.
"""

import functools
import math
import re
from typing import NamedTuple

from interlock.tasks import answers

_SIGNS = (
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"(\1/\2)"),
    (r"\\sqrt\s*(?:\{([^{}]*)\}|([0-9]))", r"√(\1\2)"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅]", "*"),
    (r"\\div(?![A-Za-z])|[÷:]", "/"),
    (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:! ]|\\?[$€£¥₹]|\s", ""),
    (r"\*\*", "^"),
    ("[\N{MINUS SIGN}\N{EN DASH}]", "-"),
    (r"[\[{]", "("),
    (r"[\]}]", ")"),
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_ARITHMETIC = re.compile(r"[0-9.+\-*/^()!√|]+")
# What is worked out of a whole number or a fraction; "\\ln 2" is as far as that one goes.
_FUNCTION = (
    r"\\(?:d?binom|log|ln|exp|gcd|lcm|max|min|[bp]?mod|[lr](?:floor|ceil)|det|sin|cos|tan"
    r"|(?:begin|end)\([bpvV]?matrix\)|operatorname\([a-z]+\))(?![A-Za-z])"
)
_WITH_FUNCTIONS = re.compile(rf"(?:{_FUNCTION}|\\pi(?![A-Za-z])|[0-9.+\-*/^()!√|,_&\\])+")
_STANDING = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim)(?![A-Za-z])|\(d(?:\^[^()]{1,3})?\)/\(d[A-Za-z]|\\partial"
)
_OPERATION = re.compile(rf"(?<=.)[-+*/^!√,=<>|]|[√|]|{_FUNCTION}|{_STANDING.pattern}|\)\(")
_RATIONAL = re.compile(r"\(*-?\(*[0-9.]+(?:\)*/\(*[0-9.]+)?\)*")
_SUM = re.compile(r"[0-9.+\-*/()]+")
_SURD = re.compile(r"-?[0-9]*\*?√([0-9]{1,9})")
_FRACTION = re.compile(r"-?\(*-?([0-9]+)\)*/\(*([0-9]+)\)*")
_MIXED = re.compile(r"-?[0-9]+\(\(*[0-9]+\)*/\(*[0-9]+\)*\)")
_SCIENTIFIC = re.compile(r"-?[0-9.]+\*10\^\(?-?[0-9]+\)?")


def worked_out(answer: str, question: str, reference: str) -> list[str]:
    """What of `answer`, which is without its unit, may be compared with the reference: all of it;
    of an equation that ends with an echo, the sides before that are none; nothing.
    """
    *sides, last = answer.split("=")
    if _is_echo(answer, question, reference) or _is_echo(last, question, reference):
        return [side for side in sides if not _is_echo(side, question, reference)]
    return [answer]


def _is_echo(formula: str, question: str, reference: str) -> bool:
    plain, right = one_way(formula), one_way(reference)
    if _signs(plain) == _signs(right.rpartition("=")[2]) or _signs(plain) == _signs(right):
        return False
    if _is_value(plain):
        return False
    if _STANDING.search(plain) and not _STANDING.search(right):
        return True
    asked = _asked(question)
    return _is_expression(plain, right, asked.numbers) or _stands_in(plain, asked.plain)


def _signs(plain: str) -> str | list[str]:
    """The same for what is only put in another order; of a list the order is kept, for that may be
    what was asked for.
    """
    plain = plain.casefold()
    return plain if "," in plain else sorted(re.sub(r"[()*]", "", plain))


def _is_value(plain: str) -> bool:
    """Whether it is worked out as far as it goes."""
    if fraction := _FRACTION.fullmatch(plain):
        return math.gcd(*map(int, fraction.groups())) == 1
    if surd := _SURD.fullmatch(plain):  # no square divides it
        under = int(surd[1])
        return all(under % (n * n) for n in range(2, min(math.isqrt(under), 10_000) + 1))
    return bool(_MIXED.fullmatch(plain) or _SCIENTIFIC.fullmatch(plain)) or not _OPERATION.search(
        plain.strip("()").lstrip("+-")
    )


def _is_expression(plain: str, reference: str, known: set[str]) -> bool:
    """Whether it is made of numbers of the question alone, or is a sum or product of any where a
    number is asked for.
    """
    numbers = [_digits(found[0]) for found in _NUMBER.finditer(plain)]
    to_number = _RATIONAL.fullmatch(reference) is not None
    if to_number and _SUM.fullmatch(plain) and not _FRACTION.fullmatch(plain):
        return True
    of_it = _WITH_FUNCTIONS if to_number else _ARITHMETIC
    if "√" not in plain:  # 1 + √5 is as short as it can be
        known = known | {"0", "1"}
    return bool(numbers) and of_it.fullmatch(plain) is not None and known.issuperset(numbers)


def _stands_in(plain: str, question: str) -> bool:
    return re.search(rf"(?<![0-9.^/]){re.escape(plain)}(?![0-9^!])", question) is not None


class _Asking(NamedTuple):
    plain: str
    numbers: set[str]


@functools.lru_cache(maxsize=16)
def _asked(question: str) -> _Asking:
    asked = answers.ungrouped(answers.spelled(question))
    return _Asking(one_way(question), {_digits(found[0]) for found in _NUMBER.finditer(asked)})


@functools.lru_cache(maxsize=64)
def one_way(text: str) -> str:
    """In one way of writing, without spaces."""
    text = answers.ungrouped(answers.spelled(text))
    for pattern, instead in _SIGNS:
        text = re.sub(pattern, instead, text)
    return re.sub(r"(?<![0-9)])\((-?[0-9.]+)\)(?![0-9(])", r"\1", text).rstrip(".")


def _digits(number: str) -> str:
    number = number.lstrip("0") if number.strip("0.") else "0"
    return number.rstrip("0").rstrip(".") if "." in number else number
