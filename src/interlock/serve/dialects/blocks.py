"""An answer as a row of blocks, one open at a time: thinking, text, calls.

    Delta ──Blocks──> BEGIN(block) ── MORE(text)* ── END(block), the next one's BEGIN, …

/v1/responses and /v1/messages tell answers so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from interlock.records.serving import Piece
from interlock.serve.dialects.chatting import Chat, message_of
from interlock.serve.endpoint import Endpoint
from interlock.serve.reading.deltas import ChatAnswer, Delta, DeltaKind
from interlock.serve.reading.pieces import StopHold
from interlock.serve.reading.reader import AnswerReader


class BlockKind(Enum):
    """What stands in a block."""

    THINKING = "thinking"
    TEXT = "text"
    CALL = "call"


@dataclass
class AnswerBlock:
    """A stretch of an answer that is one thing: thought, said or called."""

    kind: BlockKind
    number: int  # among the answer's blocks
    text: str = ""  # of a call: its arguments' JSON
    call: str = ""  # its id
    name: str = ""
    whole: bool = True  # False: a call that broke off


class BlockEventKind(Enum):
    """What happens to a block."""

    BEGIN = "begin"
    MORE = "more"
    END = "end"


class BlockEvent(NamedTuple):
    """One thing that happens to a block, with what it adds."""

    kind: BlockEventKind
    block: AnswerBlock
    text: str = ""  # what there is more of it


_KINDS = {
    DeltaKind.REASONING: BlockKind.THINKING,
    DeltaKind.CONTENT: BlockKind.TEXT,
    DeltaKind.BROKEN: BlockKind.TEXT,
}


class Blocks:
    """Of one answer that is streamed."""

    def __init__(self) -> None:
        self.all: list[AnswerBlock] = []
        self._open = False

    def push(self, deltas: Iterable[Delta]) -> list[BlockEvent]:
        """What some deltas change."""
        found: list[BlockEvent] = []
        for delta in deltas:
            if delta.kind is DeltaKind.CALL:
                found += self._begin(BlockKind.CALL, delta.id, delta.name)
            elif delta.kind is DeltaKind.ARGUMENTS:
                found += self._more(delta.text)
            elif (kind := _KINDS.get(delta.kind)) is not None:
                if delta.kind is DeltaKind.BROKEN:
                    self.all[-1].whole = False
                if delta.text:
                    if not self._open or self.all[-1].kind is not kind:
                        found += self._begin(kind)
                    found += self._more(delta.text)
        return found

    def finish(self) -> list[BlockEvent]:
        """Nothing follows."""
        if not self._open:
            return []
        self._open = False
        return [BlockEvent(BlockEventKind.END, self.all[-1])]

    def _begin(self, kind: BlockKind, call: str = "", name: str = "") -> list[BlockEvent]:
        ended = self.finish()
        self.all.append(AnswerBlock(kind, len(self.all), call=call, name=name))
        self._open = True
        return [*ended, BlockEvent(BlockEventKind.BEGIN, self.all[-1])]

    def _more(self, text: str) -> list[BlockEvent]:
        self.all[-1].text += text
        return [BlockEvent(BlockEventKind.MORE, self.all[-1], text)]


def blocks_of(answer: ChatAnswer) -> list[AnswerBlock]:
    """Of an answer that was waited for."""
    found: list[AnswerBlock] = []
    if answer.reasoning:
        found.append(AnswerBlock(BlockKind.THINKING, 0, answer.reasoning))
    if answer.content or not (found or answer.calls):
        found.append(AnswerBlock(BlockKind.TEXT, len(found), answer.content or ""))
    for call in answer.calls:
        block = AnswerBlock(BlockKind.CALL, len(found), call.arguments, call.id, call.name)
        found.append(block)
    return found


class BlockReader:
    """Reads the one answer of a request."""

    def __init__(self, chat: Chat, endpoint: Endpoint) -> None:
        stops = chat.generation.sampling.stop
        self.hold = StopHold(stops) if stops else None
        self.reader = AnswerReader(endpoint.form, chat.prompt.stage, chat.tools, self.hold)
        self.blocks = Blocks()
        self.cut = False  # there were no more tokens for it
        self._keeper = chat.keeper

    def push(self, piece: Piece) -> list[BlockEvent]:
        """What a piece changes."""
        if self._keeper is not None:
            self._keeper.take(piece)
        deltas = self.reader.push(piece.tokens)
        if piece.finish is None:
            return self.blocks.push(deltas)
        self.cut = piece.finish == "length"
        deltas += self.reader.finish()
        if self._keeper is not None:
            answer = self.reader.answer
            self._keeper.answered(piece.number, message_of(answer), answer.content or "")
        return [*self.blocks.push(deltas), *self.blocks.finish()]
