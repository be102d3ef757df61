"""Splits an answer into what was thought and what is answered, as it comes.

    words, marks ──Splitter──> Portion(thought, words) │ Portion(answer, words or a mark)

The template may have opened thinking already, in which case no begin mark comes. Thinking that
never ends is all there is. A begin mark inside of thinking is text of it, and its first end mark
ends it. An end mark where nothing was begun says that all before it was thought: who streams has
told it as answer by then, who waits for the whole is told right.
"""

from enum import Enum
from typing import NamedTuple

from interlock.serve.prompts.families import ThinkingMarks
from interlock.serve.reading.lexer import Item, Mark


class PortionKind(Enum):
    """Where a portion belongs."""

    THOUGHT = "thought"
    ANSWER = "answer"
    RETRACTED = "retracted"  # all that was told as answer was thought


class Portion(NamedTuple):
    """A piece of an answer with its place."""

    kind: PortionKind
    item: Item = ""


class Splitter:
    """`inside`: the answer begins inside of thinking. Line ends at the borders belong to neither
    part: templates put them there.
    """

    def __init__(self, marks: ThinkingMarks | None, inside: bool) -> None:
        self._begin = None if marks is None else marks.begin
        self._end = None if marks is None else marks.end
        self.inside = inside and marks is not None
        self._thought = self.inside  # something was, or is being, thought
        self._blank = True  # nothing but blanks came since the last border
        self._held = ""  # blanks that may belong to a border

    def push(self, item: Item) -> list[Portion]:
        """What is known of the item's part, and of those held back before it."""
        if isinstance(item, Mark):
            if item.text == self._begin:
                return self._begun(item)
            if item.text == self._end:
                return self._ended(item)
            if self.inside:
                return self._words(item.text)
            held = self._release() if not self._thought or not self._blank else self._forget()
            self._blank = False
            return [*held, Portion(PortionKind.ANSWER, item)]
        return self._words(item)

    def finish(self) -> list[Portion]:
        """Nothing follows."""
        return self._forget() if self.inside or (self._thought and self._blank) else self._release()

    def _begun(self, mark: Mark) -> list[Portion]:
        if self.inside:
            return [] if self._blank else self._words(mark.text)
        if not (mark.certain or self._blank):
            return self._words(mark.text)  # an answer that speaks of the mark
        held = self._forget() if self._blank else self._release()
        self.inside = self._thought = self._blank = True
        return held

    def _ended(self, mark: Mark) -> list[Portion]:
        if self.inside:
            self.inside, self._blank = False, True
            return self._forget()
        if self._thought:
            return self._words(mark.text)
        held = self._release()
        self._thought = self._blank = True
        return [*held, Portion(PortionKind.RETRACTED)]

    def _words(self, text: str) -> list[Portion]:
        if not text:
            return []
        kind = PortionKind.THOUGHT if self.inside else PortionKind.ANSWER
        if not self.inside and not self._blank:
            return [Portion(kind, text)]
        text = self._held + text
        if self._blank:  # at the beginning of a part
            if not text.strip():
                self._held = text
                return []
            self._blank = False
            if self._thought:
                text = text.lstrip("\n")
        self._held = ""
        if self.inside:
            kept = len(text.rstrip("\n"))
            text, self._held = text[:kept], text[kept:]
        return [Portion(kind, text)] if text else []

    def _release(self) -> list[Portion]:
        held, self._held = self._held, ""
        kind = PortionKind.THOUGHT if self.inside else PortionKind.ANSWER
        return [Portion(kind, held)] if held else []

    def _forget(self) -> list[Portion]:
        self._held = ""
        return []
