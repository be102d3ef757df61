"""Reads one answer of a model that chats: from its tokens to what a client is told.

tokens ──Lexer──> words, marks ──Splitter──┬─ thought ─> reasoning
                                           └─ answer ──CallReader──> content, calls
"""

from collections.abc import Callable, Iterable, Sequence

from interlock.serve.prompts.families import MARKS, ToolForm
from interlock.serve.prompts.prompting import ChatFormat, ThinkingStage
from interlock.serve.prompts.turns import Tool
from interlock.serve.reading.deltas import ChatAnswer, Delta, DeltaKind, Whole
from interlock.serve.reading.lexer import Item, Lexer, Mark, TextHold
from interlock.serve.reading.reasoning import Portion, PortionKind, Splitter
from interlock.serve.reading.tools import CallReader, new_id


class AnswerReader:
    """Reads one choice.

        reader = AnswerReader(form, prompt.stage, tools)
        for piece in …:
            deltas = reader.push(piece.tokens)
        deltas = reader.finish()
        answer = reader.answer

    Args:
        tools: those that may be called; none: whatever is written is content.
        hold: what cuts the text at stop strings.
        ids: gives the calls their ids.
    """

    def __init__(
        self,
        form: ChatFormat,
        stage: ThinkingStage,
        tools: Sequence[Tool] = (),
        hold: TextHold | None = None,
        ids: Callable[[], str] = new_id,
    ) -> None:
        family = form.family
        marks = list(family.thinking[:2]) if family.thinking else []
        calls = bool(tools) and family.tools is not ToolForm.NONE
        if calls:
            marks += filter(None, MARKS[family.tools])
        known = {mark: form.token_id(mark) for mark in marks}
        self._lexer = Lexer(
            form.stream(),
            {token: mark for mark, token in known.items() if token is not None},
            [mark for mark, token in known.items() if token is None],
            hold,
        )
        self._splitter = Splitter(family.thinking, stage is ThinkingStage.INSIDE)
        self._calls = CallReader(family.tools, tools, ids) if calls else None
        self._whole = Whole()
        self._maybe = 0  # tokens of thinking, if what is held back is no mark
        self.reasoning_tokens = 0

    @property
    def calls(self) -> int:
        """Calls of tools, those that broke off left out."""
        return self._whole.calls

    @property
    def answer(self) -> ChatAnswer:
        """The whole so far."""
        return self._whole.answer(self.reasoning_tokens)

    def push(self, tokens: Iterable[int]) -> list[Delta]:
        """What some tokens add."""
        found = []
        for token in tokens:
            before = self._splitter.inside
            found += self._items(self._lexer.push(token))
            self._count(before)
        return self._told(found)

    def finish(self) -> list[Delta]:
        """What was held back, once nothing follows."""
        found = self._items(self._lexer.finish())
        for part in self._splitter.finish():
            found += self._part(part)
        if self._splitter.inside:
            self.reasoning_tokens += self._maybe
        if self._calls is not None:
            found += self._calls.finish()
        return self._told(found)

    def _count(self, before: bool) -> None:
        """Tokens between the marks of thinking."""
        if not (before and self._splitter.inside):
            self._maybe = 0
        elif self._lexer.holds:
            self._maybe += 1
        else:
            self.reasoning_tokens += 1 + self._maybe
            self._maybe = 0

    def _items(self, items: Iterable[Item]) -> list[Delta]:
        found: list[Delta] = []
        for item in items:
            if self._calls is not None and self._calls.inside:
                found += self._calls.push(item)
            else:
                for part in self._splitter.push(item):
                    found += self._part(part)
        return found

    def _part(self, part: Portion) -> list[Delta]:
        text = part.item.text if isinstance(part.item, Mark) else part.item
        match part.kind:
            case PortionKind.RETRACTED:
                if self._calls is not None:
                    self._calls.forget_blanks()
                return [Delta(DeltaKind.RETRACTED)]
            case PortionKind.THOUGHT:
                return [Delta(DeltaKind.REASONING, text)]
        if self._calls is not None:
            return self._calls.push(part.item)
        return [Delta(DeltaKind.CONTENT, text)]

    def _told(self, deltas: list[Delta]) -> list[Delta]:
        """The deltas, those that go on with the one before joined to it."""
        joined: list[Delta] = []
        for delta in deltas:
            self._whole.push(delta)
            last = joined[-1] if joined else None
            same = last is not None and (last.kind, last.number) == (delta.kind, delta.number)
            if last is not None and same and delta.kind in _GROWS:
                joined[-1] = last._replace(text=last.text + delta.text)
            else:
                joined.append(delta)
        return joined


_GROWS = {DeltaKind.REASONING, DeltaKind.CONTENT, DeltaKind.ARGUMENTS}
