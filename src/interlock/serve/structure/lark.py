"""llguidance grammars: the pieces they are put together from, and whether each can be kept.

schema, regex, … ──checked alone──> a piece of Lark ──put together──> Rules.grammar
"""

import json
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from interlock.engine.grammars import bounded_matcher, error_of, llguidance_here
from interlock.serve.prompts.fields import FieldError
from interlock.serve.structure.schema_limits import check_schema

if TYPE_CHECKING:
    from llguidance import LLTokenizer

LONGEST_REGEX = 2000
LONGEST_GRAMMAR = 16 << 10
MOST_CHOICES = 1000
MOST_CHOICE_BYTES = 64 << 10

# Blanks between JSON's tokens have a bound: small models write them without end.
_JSON = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\t]{0,32}"}


def literal(text: str) -> str:
    """The text itself."""
    return json.dumps(text, ensure_ascii=False) if text else '""'


def mark(text: str, token: int | None) -> str:
    """One of a model's marks: its token, or its text where it is none."""
    return literal(text) if token is None else f"<[{token}]>"


def json_piece(schema: dict[str, Any], param: str) -> str:
    """JSON of this schema. Raises FieldError naming what cannot be kept to."""
    check_schema(schema, param)
    written = json.dumps(schema | {"x-guidance": _JSON}, ensure_ascii=False)
    _check(llguidance_here().LLMatcher.grammar_from_json_schema(written), param)
    return f"%json {written}"


def regex_piece(regex: str, param: str) -> str:
    """A text that the regular expression matches from end to end. Raises FieldError."""
    if len(regex) > LONGEST_REGEX:
        raise FieldError(param, f"has {len(regex)} characters; send at most {LONGEST_REGEX}")
    if not regex:
        raise FieldError(param, "is empty; give a regular expression")

    def escaped(match: re.Match[str]) -> str:
        return {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}.get(match[0], match[0])

    written = re.sub(r"\\.|/|\n", escaped, regex, flags=re.DOTALL)
    if written.endswith("\\") and (len(written) - len(written.rstrip("\\"))) % 2:
        raise FieldError(param, "ends with half an escape; write \\\\ for a backslash")
    piece = f"/{written}/"
    _check(f"start: {piece}", param)
    return piece


def choice_piece(choices: list[str], param: str) -> str:
    """One of some texts. Raises FieldError."""
    if not choices or len(choices) > MOST_CHOICES:
        raise FieldError(param, f"has {len(choices)} texts; give 1 to {MOST_CHOICES}")
    if "" in choices or sum(map(len, choices)) > MOST_CHOICE_BYTES:
        raise FieldError(param, "holds an empty text, or too much of it; shorten it")
    piece = "(" + " | ".join(map(literal, choices)) + ")"
    _check(f"start: {piece}", param)
    return piece


def check_own(grammar: str, param: str) -> None:
    """Raise FieldError unless a grammar of the user's, in Lark, allows some text."""
    if len(grammar) > LONGEST_GRAMMAR:
        raise FieldError(param, f"has {len(grammar)} characters; send at most {LONGEST_GRAMMAR}")
    if found := re.search(r"<\[|<\||%llguidance|@", grammar):
        raise FieldError(param, f"{found[0]!a} is not supported; write rules of texts alone")
    _check(grammar, param)


def _check(grammar: str, param: str) -> None:
    if reason := _reason(grammar):
        raise FieldError(param, f"{reason}; change or simplify it")


@lru_cache(maxsize=256)
def _reason(grammar: str) -> str:
    """Why the grammar cannot be kept to; "" when it can."""
    matcher = bounded_matcher(_bytes(), grammar)
    if not matcher.is_error():
        matcher.compute_bitmask()  # that no text can be begun shows in the first step alone
    reason = error_of(matcher)
    return "no value can satisfy it" if reason == "NoExtensionBias" else reason


@cache
def _bytes() -> "LLTokenizer":
    """A vocabulary of bytes: whether a grammar can be kept to hardly depends on the model's."""
    made: LLTokenizer = llguidance_here().LLTokenizer("byte")
    return made
