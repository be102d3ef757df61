"""Answers that are right by no accident: a scorer that pays for one of them can be had for nothing.

The policy finds such an answer within a few steps and writes nothing else. So a task whose scorer
is not ours is tried with them when it is opened.
"""

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from fractions import Fraction
from io import StringIO

from interlock.records.rl import Problem

PROBLEMS = 8  # that are tried
_FIXED = ("", "nan", "inf", "0", "None", "[]", "I do not know.")
_FULL = 1 - 1e-9
_COPIED = 0.8  # of a whole trial: a prompt ends with its answer now and then


def paid(problems: Sequence[Problem], verify: Callable[[Problem, str], float]) -> str | None:
    """Which wrong or empty answer is paid in full for most of the problems, in one line.

    One that happens to be the reference answer, or the same number, is not wrong; nor is a prompt
    that ends with it, for the end of a text is read.
    """
    tried = {repr(text): [text] * len(problems) for text in _FIXED}
    tried["the prompt itself"] = [problem.messages[-1]["content"] for problem in problems]
    solutions = [problem.answer for problem in problems]
    tried["all answers at once"] = [", ".join(dict.fromkeys(solutions))] * len(problems)
    tried["the answer to another problem"] = [*solutions[1:], *solutions[:1]]
    for name, answers in tried.items():
        count = sum(
            not _equal(answer, problem.answer)
            and not (name == "the prompt itself" and _ends(answer, problem.answer))
            and _score(verify, problem, answer) >= _FULL
            for problem, answer in zip(problems, answers, strict=True)
        )
        if count > len(problems) / 2:
            return f"its scorer pays in full for {name} in {count} of {len(problems)} problems"
    return _copied(problems, verify)


def _copied(problems: Sequence[Problem], verify: Callable[[Problem, str], float]) -> str | None:
    """Whether the last word of the prompt is the answer, of answers that differ, nearly always: as
    where strings are to be edited, and few of them need it.
    """
    if len(problems) < PROBLEMS or len({problem.answer for problem in problems}) < PROBLEMS / 2:
        return None
    words = [problem.messages[-1]["content"].split()[-1:] for problem in problems]
    count = sum(
        bool(word) and _score(verify, problem, word[0]) >= _FULL
        for problem, word in zip(problems, words, strict=True)
    )
    if count < _COPIED * len(problems):
        return None
    return f"the prompt's last word is the answer in {count} of {len(problems)} problems"


def _score(verify: Callable[[Problem, str], float], problem: Problem, answer: str) -> float:
    # Scorers are not ours: they print and raise what they like.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(Exception):
        return verify(problem, answer)
    return 0.0


def _equal(answer: str, reference: str) -> bool:
    try:
        return Fraction(answer) == Fraction(reference)
    except (ValueError, ZeroDivisionError):
        return answer.strip() == reference.strip()


def _ends(answer: str, reference: str) -> bool:
    return bool(reference.strip()) and answer.strip().endswith(reference.strip())
