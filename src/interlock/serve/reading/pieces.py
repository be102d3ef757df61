"""Text of one choice, from its tokens: whole characters, and nothing of a stop string.

    Piece ──tokens──> Detokenizer ──text──> what may begin a stop string is held back ──> Bit

The engine says where an answer ends; here its text is cut at the same place.
"""

from collections.abc import Sequence
from typing import NamedTuple

from interlock.engine.vocabulary import Vocabulary
from interlock.records.rl import FinishReason
from interlock.records.serving import Alternatives, Piece


class DrawnToken(NamedTuple):
    """A token with what is told of it; `offset`: characters of the answer before it."""

    token: int
    logprob: float
    top: Alternatives
    offset: int


class Bit(NamedTuple):
    """What may be shown since the last one."""

    text: str
    tokens: list[DrawnToken]  # whose text it is, where they were asked for
    finish: FinishReason | None


class StopHold:
    """Text without stop strings: what may be the beginning of one waits for what follows."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.over = False
        self.found: str | None = None  # the stop string that ended it

    def push(self, text: str) -> str:
        """What of the text so far may be shown."""
        if not self._stops:
            return text
        if self.over:
            return ""
        held = self._held + text
        places = [(place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            self.over, self._held = True, ""
            return held[:place]
        kept = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def rest(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class ChoiceText:
    """One choice on its way."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str], told: bool) -> None:
        """`told`: its tokens are shown beside the text."""
        self._stream, self._hold, self._told = vocabulary.stream(), StopHold(stops), told
        self._waiting: list[DrawnToken] = []
        self._length = 0  # characters decoded
        self._shown = 0
        self.tokens = 0

    def push(self, piece: Piece) -> Bit:
        """What a piece lets show; its finish is the answer's."""
        self.tokens += len(piece.tokens)
        push, hold = self._stream.push, self._hold.push
        shown = ""
        for n, token in enumerate(piece.tokens):
            if self._told:
                top = piece.top[n] if n < len(piece.top) else []
                drawn = DrawnToken(token, piece.logprobs[n], top, self._length)
                self._waiting.append(drawn)
            if text := push(token):
                self._length += len(text)
                shown += hold(text)
        if piece.finish is not None:
            shown += self._hold.rest()
        self._shown += len(shown)
        return Bit(shown, self._released(piece.finish), piece.finish)

    def _released(self, finish: FinishReason | None) -> list[DrawnToken]:
        """The tokens whose text is shown; of those that a stop string cuts off, none."""
        if not self._waiting:
            return []
        if finish is not None and not self._hold.over:
            released, self._waiting = self._waiting, []
            return released
        count = 0
        while count < len(self._waiting) and self._waiting[count].offset < self._shown:
            count += 1
        released, self._waiting = self._waiting[:count], self._waiting[count:]
        return released
