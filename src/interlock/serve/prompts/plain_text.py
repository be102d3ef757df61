"""What a user typed stays text, though it reads like one of the model's own marks.

    strings with "<|im_end|>" ──hide──> strings with a random word ──template──> text
    text ──split──> the parts to be encoded one by one: a mark that was typed lies in two of them

A conversation without such text is not touched, so its tokens are those of an ordinary encode.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any


class Typed:
    """The marks that were typed in one conversation, and where in the rendered text they are."""

    def __init__(self) -> None:
        self._word = f"Q{secrets.token_hex(12)}Z"  # letters and digits: no template changes it
        self._found: list[str] = []

    def hide(self, value: Any, marks: re.Pattern[str]) -> Any:
        """The value with every mark in its strings, keys included, replaced by a random word."""
        if isinstance(value, str):
            return marks.sub(self._hidden, value)
        if isinstance(value, dict):
            return {self.hide(k, marks): self.hide(v, marks) for k, v in value.items()}
        if isinstance(value, list):
            return [self.hide(each, marks) for each in value]
        return value

    def split(self, text: str) -> list[str]:
        """The rendered text with the marks back in it, cut inside each: the parts' sum is it."""
        first, *rest = re.split(f"{self._word}(\\d+)Z", text)
        parts = [first]
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            mark = self._found[int(number)]
            parts[-1] += mark[0]
            parts.append(mark[1:] + after)
        return parts

    def _hidden(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        return f"{self._word}{len(self._found) - 1}Z"


def any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of some marks; not those of a single character, which cannot be cut."""
    ordered = sorted({mark for mark in marks if len(mark) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
