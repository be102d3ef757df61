r"""Judges the final answer of a completion against the reference, by math-verify.

The final answer is, in this order, what stands in \boxed{…}; what follows the task's own mark
("####"); the last number. Several boxed or marked answers must all be right: naming every candidate
earns nothing. Texts of three letters and more are compared as words, since to a computer algebra
system "Paris" and "pairs" are the same product.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import math_verify

from interlock.config.schema import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import answers
from interlock.tasks.jsonl import options_of

_WORDS = re.compile(r"[^\W\d_]{3}[^\W\d_]*([\s'-]+[^\W\d_]+)*")
_UNIT = re.compile(r"(\S*[0-9])\s+[A-Za-z]{3}[A-Za-z ]*")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], bool]:
    marker = options_of(task).answer_after

    def verify(problem: Problem, answer: str) -> bool:
        found = final_answers(answers.after_thinking(answer), marker)
        return bool(found) and all(same(problem.answer, each) for each in set(found))

    return verify


def final_answers(text: str, marker: str | None) -> list[str]:
    """What the text claims as its result: all that is boxed, else all marked, else one number."""
    if found := answers.boxed(text):
        return found
    if marker is not None and (found := answers.marked(text, marker)):
        return found
    number = answers.last_number(text)
    return [] if number is None else [number]


def same(reference: str, found: str) -> bool:
    """Whether two answers mean the same; what math-verify cannot read is compared as text."""
    reference, found = _plain(reference), _plain(found)
    if _WORDS.fullmatch(reference):
        return reference.casefold() == found.casefold()
    if not re.search("[A-Za-z]", reference) and (quantity := _UNIT.fullmatch(found)):
        found = quantity[1]  # "18 dollars"
    # The deadline is the pool's: math-verify's own alarm cannot stop a computation inside C code.
    return bool(math_verify.verify(_parse(reference), _parse(found), timeout_seconds=0))


def _plain(answer: str) -> str:
    return _TEXT.sub(r"\1", answer).replace("\\ ", " ").strip().removesuffix(".")


@functools.lru_cache(maxsize=256)
def _parse(answer: str) -> list[Any]:
    parsed: list[Any] = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=0)
    return parsed
