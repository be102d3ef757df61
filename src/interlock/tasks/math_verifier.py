r"""Judges the final answer of a completion against the reference, by math-verify.

The final answer is, in this order, what stands in \boxed{…}; what follows the task's own mark
("####"); the last number, fraction or formula. Several boxed or marked answers must all be right:
naming every candidate earns nothing, and nor does an end such as "45 or 46", nor an expression of
the question that was not worked out (echoes.py), nor an equation whose sides differ (sides.py). A
set says no order, and so is no pair. Texts of three letters and more are compared as words, since
to a computer algebra system "Paris" and "pairs" are the same product; dates too, which are
differences to it. A unit, also a currency and "%", may be missing on one side, and must be the same
where both have one (units.py).
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig

from interlock import thinking
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import answers, equations, numeric, units
from interlock.tasks.echoes import worked_out
from interlock.tasks.jsonl import options_of
from interlock.tasks.sides import agree

_WORDS = re.compile(r"[^\W\d_]{3}[^\W\d_]*([\s'-]+[^\W\d_]+)*")
_DATE = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})")
_WRAPPED = r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
_SPACES = re.compile(  # but for the end of a matrix's row, "\\\\ "
    r"\\\\|\\[,;:! ]|\\q?quad(?![A-Za-z])"
    r"|[~\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}]"
)
_SIZED = re.compile(r"\\(?:left|right)(?![A-Za-z])\s*")
_ORDERED = re.compile(r"(?:[^=]*=\s*)?\([^()]*,[^()]*\)")
_SET = re.compile(r"(?:[^=]*(?:=|\\in(?![A-Za-z]))\s*)?\\(?:\{|lbrace(?![A-Za-z]))[^()]*")
_DEGREES = re.compile(
    r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°|degrees?\b)\s*(?:\\\w+\{[CF]\}|[CF]\b)?"
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])([0-9]*\.?[0-9]+)[eE]([+-]?[0-9]{1,4})(?!\w|\.[0-9])")
_NEGATIVE_POWER = re.compile(r"\^\s*(-[0-9]+)")
_POWER = r"(?:\s*\^\s*\{?-?[0-9]\}?)?"
_TYPOGRAPHY = re.compile(
    r"\\(?:bf|rm|it|displaystyle|textstyle|[Ll]arge|LARGE|[Hh]uge|small)(?![A-Za-z])"
    r"|\\color\s*\{[^{}]*\}"
    r"|\\(?:underline|underbrace|overbrace|boldsymbol|bm|emph|textit|textcolor\s*\{[^{}]*\})"
    r"\s*\{([^{}]*)\}"
)
_MIXED = re.compile(r"(?<![0-9])(-?[0-9]{1,9})\s+(?:([0-9]+)\s*/\s*([0-9]+)|(\\[dt]?frac))")
_MONEY = re.compile(rf"(?P<sign>[-+\N{{MINUS SIGN}}]?)\s*(?P<money>{units.MONEY})\s*(?=[-0-9.\\])")
_MONEY_BEHIND = re.compile(rf"(?<=[0-9)}}])\s*(?P<money>{units.MONEY})\Z")
_NAMED = r"(?:[A-Za-z](?:_\{?\w{1,9}\}?)?\s*=\s*)?"
# What is wrapped is a unit, and so are words. Of what is shorter only what is customary and no
# likely product: "5 m" may be one. A base ("1011_2") is like a unit: it says what digits mean.
_WRAPPED_UNIT = re.compile(
    rf"(?P<value>{_NAMED}(?:\\[A-Za-z]+|[^A-Za-z\\])*(?:[0-9)}}]|\\pi))"
    rf"(?P<unit>(?:\s*/?\s*{_WRAPPED}{_POWER})+)"
)
_SHORT = "mm|cm|km|ft|in|yd|mi|mg|kg|lb|oz|ms|hr|mL|ml|kJ|kW|Hz|Pa"
_UNIT = re.compile(
    rf"""(?P<value>{_NAMED}(?:\\[dt]?frac|\\times|[^A-Za-z\\])*[0-9)}}])(?P<unit>
        \s+[A-Za-z]{{3}}[A-Za-z ]*{_POWER}
      | \s*(?:{_SHORT}){_POWER}
      | \s*(?:{_SHORT}|m|g|L|J|N)\s*/\s*(?:{_SHORT}|m|g|L|s|h){_POWER}
      | _\{{?[0-9]+\}}?
    )""",
    re.VERBOSE,
)
# Without its own idea of units, which takes the "t" of "3t" for one.
_READING = [
    math_verify.LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        )
    )
]
_MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NO_UNITS = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "theta", "lambda", "sigma", "omega", "phi", "psi"),
        *("infinity", "sqrt", "log", "sin", "cos", "tan", "d", "e", "i"),
    )
)


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], bool]:
    marker = options_of(task).answer_after
    numeric.compare_relatively()
    equations.compare_solutions()

    def verify(problem: Problem, answer: str) -> bool:
        found = set(final_answers(answers.spelled(thinking.after(answer)), marker))
        question = problem.messages[-1].get("content", "") if problem.messages else ""
        return bool(found) and all(_right(problem.answer, each, question) for each in found)

    return verify


def _right(reference: str, found: str, question: str) -> bool:
    """Whether they are the same, without what of `found` the question itself has said."""
    (right, _), (value, _) = _read(reference), _read(found)
    if agree(right) and not agree(value):
        return False
    compared = worked_out(value, question, right)
    return any(same(reference, found if each == value else each) for each in compared)


def final_answers(text: str, marker: str | None) -> list[str]:
    """What the text claims as its result: all that is boxed, else all marked, else one value."""
    if found := answers.boxed(text):
        return found
    if marker is not None and (found := answers.marked(text, marker)):
        return found
    value = None if answers.undecided(text) else answers.last_value(text)
    return [] if value is None else [value]


def same(reference: str, found: str) -> bool:
    """Whether two answers mean the same; what math-verify cannot read is compared as text."""
    (reference, unit), (found, other) = _read(reference), _read(found)
    if _WORDS.fullmatch(reference):
        return reference.casefold() == found.casefold()
    dates = _DATE.fullmatch(reference), _DATE.fullmatch(found)
    if any(dates):
        return all(dates) and _date(dates[0]) == _date(dates[1])
    if unit and other and unit != other:
        return False
    if _ORDERED.fullmatch(_SIZED.sub("", reference)) and _SET.fullmatch(_SIZED.sub("", found)):
        return False
    # The deadline is the pool's: math-verify's own alarm cannot stop a computation inside C code.
    return bool(math_verify.verify(_parse(reference), _parse(found), timeout_seconds=0))


@functools.lru_cache(maxsize=256)
def _read(answer: str) -> tuple[str, str]:
    """(value, unit) of an answer as it was written."""
    return _quantity(_plain(answer))


def _plain(answer: str) -> str:
    """The answer in the one way of writing that is read below."""
    answer = answers.spelled(answer)
    if not answer.startswith(("(", "[", "{", "\\left", "\\{")):  # "(1,234)" is a pair
        answer = answers.ungrouped(answer)
    answer = _SPACES.sub(lambda found: found[0] if found[0] == r"\\" else " ", answer)
    answer = _DEGREES.sub("", re.sub(r"(?<!\\)\\\Z", "", answer.rstrip("; ")))
    answer = _TYPOGRAPHY.sub(lambda found: found[1] or "", answer).strip()
    answer = _MIXED.sub(_joined, answer)
    answer = re.sub(r"\\varnothing(?![A-Za-z])|\A\\\{\s*\\\}\Z", r"\\emptyset", answer)
    answer = _NEGATIVE_POWER.sub(r"^{\1}", answer)
    answer = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", answer)
    return answer.strip().removesuffix(".").strip()


def _joined(mixed: re.Match[str]) -> str:
    """A whole number and a fraction behind it, as one: "2 1/3"."""
    whole, above, below, command = mixed.groups()
    if command:
        return f"{whole}{command}"
    return rf"{whole}\frac{{{above}}}{{{below}}}" if int(above) < int(below) else mixed[0]


def _quantity(answer: str) -> tuple[str, str]:
    """(value, unit), the unit as it is compared; "" without one."""
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and answer[-2] != "\\":
        answer = answer.strip("$").strip()  # marks of a formula
    if paid := _MONEY.match(answer) or _MONEY_BEHIND.search(answer):
        rest = paid.groupdict().get("sign", "") + answer[paid.end() :]
        return (rest if paid.start() == 0 else answer[: paid.start()]), units.money(paid["money"])
    value, unit = _measured(answer)
    return value, unit or ("%" if value.rstrip().endswith("%") else "")


def _measured(answer: str) -> tuple[str, str]:
    quantity = _WRAPPED_UNIT.fullmatch(answer)
    answer = re.sub(_WRAPPED, r"\1", answer).strip().removesuffix(".")
    quantity = quantity or _UNIT.fullmatch(answer)
    if quantity is None:
        return answer, ""
    value, words = quantity["value"], re.sub(_WRAPPED, r" \1", quantity["unit"]).split()
    if words and words[0].casefold() in _NO_UNITS:
        return answer, ""
    while words and (power := _MULTIPLES.get(words[0].casefold())):
        value, words = f"{value} \\times 10^{{{power}}}", words[1:]
    if words and words[0].casefold() == "percent":
        value, words = f"{value}\\%", words[1:]
    return value, units.canonical(" ".join(words))


def _date(date: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(int(date[part]) for part in (1, 3, 4)) if date else ()


@functools.lru_cache(maxsize=256)
def _parse(answer: str) -> list[Any]:
    parsed: list[Any] = math_verify.parse(
        f"\\boxed{{{answer}}}", extraction_config=_READING, parsing_timeout=0
    )
    return parsed
