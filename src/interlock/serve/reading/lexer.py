"""An answer's tokens as text, and as the model's own marks where it wrote them.

    token ──Detokenizer──> text ──StopHold──> "words", Mark("</think>"), "words", …

A mark that is one token of the vocabulary is that token and nothing else: its text, spelt out, is
text. A vocabulary without such a token has the mark where its text stands; what may be the
beginning of one is held back until more has come.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from interlock.serve.prompts.plain_text import any_of


class Mark(NamedTuple):
    """One of the model's marks; `certain`: it was a token of its own."""

    text: str
    certain: bool = True


Item = str | Mark


class TokenText(Protocol):
    """What is needed of models.detokenizer.Detokenizer."""

    def push(self, token: int) -> str: ...


class TextHold(Protocol):
    """Cuts text where a stop string stands in it."""

    over: bool

    def push(self, text: str) -> str: ...
    def rest(self) -> str: ...


class Lexer:
    """Reads one answer.

    Args:
        by_id: the marks that are tokens.
        by_text: those that are not.
        hold: what cuts the text at stop strings, if any were asked for.
    """

    def __init__(
        self,
        stream: TokenText,
        by_id: dict[int, str],
        by_text: Sequence[str] = (),
        hold: TextHold | None = None,
    ) -> None:
        self._stream, self._by_id, self._hold = stream, by_id, hold
        self._marks, self._longest = any_of(by_text), max(map(len, by_text), default=0)
        self._begun = _beginnings(by_text)
        self._held = ""

    @property
    def holds(self) -> bool:
        """Whether text is held back that may turn out to be a mark."""
        return bool(self._held)

    def push(self, token: int) -> list[Item]:
        """What the token completes."""
        if self._hold is not None and self._hold.over:
            return []
        text, mark = self._stream.push(token), self._by_id.get(token)
        if mark is None:
            return self._read(text if self._hold is None else self._hold.push(text))
        before = text.removesuffix(mark)
        if self._hold is not None:
            before = self._hold.push(before)
            before += "" if self._hold.over else self._hold.rest()
        found = [*self._read(before), *self._release()]
        return found if self._hold is not None and self._hold.over else [*found, Mark(mark)]

    def finish(self) -> list[Item]:
        """What was held back, once nothing follows."""
        rest = "" if self._hold is None or self._hold.over else self._hold.rest()
        return [*self._read(rest), *self._release()]

    def _release(self) -> list[Item]:
        held, self._held = self._held, ""
        return [held] if held else []

    def _read(self, text: str) -> list[Item]:
        if not self._longest:
            return [text] if text else []
        found: list[Item] = []
        text, at = self._held + text, 0
        for match in self._marks.finditer(text):
            found += [text[at : match.start()], Mark(match[0], certain=False)]
            at = match.end()
        tail = text[at:]
        begun = self._begun.search(tail, max(0, len(tail) - self._longest + 1))
        cut = len(tail) if begun is None else begun.start()
        self._held = tail[cut:]
        return [item for item in (*found, tail[:cut]) if item]


def _beginnings(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds the beginning of some mark at the end of a text."""
    parts = {mark[:n] for mark in marks for n in range(1, len(mark))}
    ordered = sorted(parts, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, ordered))})\\Z" if parts else r"(?!)")
