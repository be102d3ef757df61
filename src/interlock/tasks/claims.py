r"""What a turn claims as its answer: read by fixed rules that never look at the right one.

    turn ── thinking off ── <answer>…</answer>      all of the text  ┐ the first form that is met
                            \boxed{…}               all of the text  │ decides; several of it that
                            "answer: …"             a line           │ differ: no claim at all
                            what is left            its last line    ┘

A claim is then worded in a few ways ("**3**." is 3; "x = 3" and "it is 3" say 3), all of which come
from the claim alone: whoever names several answers, or lists them all, is read as naming none.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from interlock import thinking
from interlock.tasks import answers

Form = Literal["tag", "boxed", "marked", "line"]
Kind = Literal["number", "text", "lines"]  # of the reference: a number, one line, several

_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)(?:</answer>|(?=<answer>)|\Z)", re.S | re.I)
_MARKED = re.compile(
    r"(?im)^(?:[^\w\n]|_)*(?:(?:so|therefore|thus|hence),?\s+)?(?:the\s+|my\s+)?"
    r"(?:final\s+|correct\s+)?answer\b(?:\s+is\b\s*:?|\s*(?:\*\*\s*)?[:=])(?P<rest>.*\S.*)$"
)
_WRAPPED = re.compile(
    r"\*\*(.+)\*\*|\*(.+)\*|`(.+)`|\"(.+)\"|'([^']+)'|“(.+)”|\$\$(.+)\$\$|\$(.+)\$"
    r"|\\\((.+)\\\)|\\text\{([^{}]*)\}|\\boxed\{([^{}]*)\}",
    re.S,
)
_LEAD = re.compile(r"(?:\b(?:is|are|was|equals?|becomes?|gives?)\b:?|[=:])\s*(?=\S)", re.I)
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|not|any|all)\b", re.I)
_PARTS = re.compile(r"(?<=[,;.!?])\s+|\band\b", re.I)
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_MOST_WRAPS = 8


class Claim(NamedTuple):
    text: str  # never blank
    form: Form


def kind_of(reference: str) -> Kind:
    """What sort of answer is asked for: all that reading knows of the right one."""
    if _PLAIN_NUMBER.fullmatch(reference.strip()):
        return "number"
    return "text" if reference.strip() and "\n" not in reference.strip() else "lines"


def claimed(turn: str, kind: Kind) -> Claim | None:
    """The one answer that an assistant's turn gives; None where there is none, or several."""
    text = thinking.after(turn)
    if tagged := _TAGGED.findall(text):
        return _one(tagged, "tag")
    if boxes := answers.boxed(text):
        return _one(boxes, "boxed")
    if marked := [found["rest"] for found in _MARKED.finditer(text)]:
        return _one(marked, "marked")
    if kind == "lines":
        return _one([text], "line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if kind == "number":  # a column of numbers chooses none
        alone = [tidied(line) for line in lines if _PLAIN_NUMBER.fullmatch(tidied(line))]
        if len(set(alone)) > 1:
            return None
    return _one(lines[-1:], "line")


def wordings(claim: Claim, kind: Kind) -> list[str]:
    """The ways to take a claim, as it stands first; every one of them is the same answer."""
    found = [claim.text, tidied(claim.text)]
    if kind != "lines" and not _HEDGE.search(claim.text):
        plain = tidied(claim.text)
        rest = _behind_lead(plain)
        found += [] if rest is None else [rest]
        if kind == "number":
            found += [*_only_number(rest or plain)] or [*_only_number(plain)]
    return list(dict.fromkeys(each for each in found if each))


def tidied(text: str) -> str:
    """Without what typography puts around an answer, and the full stop behind it."""
    text = text.strip()
    for _ in range(_MOST_WRAPS):
        bare = text.removesuffix(".").strip() if not text.endswith("..") else text
        if found := _WRAPPED.fullmatch(bare):
            bare = next(filter(None, found.groups()), "").strip()
        if bare == text:
            break
        text = bare
    return text


def _one(found: list[str], form: Form) -> Claim | None:
    """The claim, where all that was found say the same."""
    different = {tidied(each) for each in found}
    if len(different) != 1 or not next(iter(different)):
        return None
    return Claim(found[-1].strip(), form)


def _behind_lead(line: str) -> str | None:
    """What the line says that it is: behind its last "is", "=" or ":"; None if it says several."""
    leads = [each for part in _PARTS.split(line) if (each := list(_LEAD.finditer(part)))]
    if len(leads) != 1:
        return None
    rest = line[list(_LEAD.finditer(line))[-1].end() :]
    return tidied(rest) or None


def _only_number(text: str) -> Iterator[str]:
    """The number of a text that has one alone."""
    numbers = set(answers.numbers(answers.typed(text)))
    if len(numbers) == 1:
        yield numbers.pop()
