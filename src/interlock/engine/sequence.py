"""One sequence on its way: what was drawn so far, and whether that ends it. Computes no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from interlock.engine.base import Progress, Request, Vocabulary
from interlock.records.rl import Completion, FinishReason, Segment


@dataclass
class _Drawn:
    """What one weight version drew, for as long as it did."""

    version: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LiveSequence:
    """Completion `number` of the request that was added under `name`.

    `tokens` is all that was drawn, `finish` why it ended, None while it runs.
    """

    def __init__(self, name: str, request: Request, number: int, vocabulary: Vocabulary) -> None:
        self.name, self.request, self.number = name, request, number
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self._drawn: list[_Drawn] = []
        self._vocabulary = vocabulary
        self._stream = vocabulary.stream() if request.sampling.stop else None
        self._streamed = ""
        self._text: str | None = None  # before the stop string, once one was found

    def push(self, token: int, logprob: float, version: int) -> Progress:
        """Take the next token, drawn from the weights of `version`; the last one sets `finish`."""
        assert self.finish is None
        self.tokens.append(token)
        if not self._drawn or self._drawn[-1].version != version:
            self._drawn.append(_Drawn(version))
        self._drawn[-1].tokens.append(token)
        self._drawn[-1].logprobs.append(logprob)
        ends = token in self._vocabulary.eos_ids or token in self.request.stop_ids
        if ends or self._completes_stop(token):
            self.finish = FinishReason.STOP
        elif len(self.tokens) == self.request.sampling.max_tokens:
            self.finish = FinishReason.LENGTH
        completion = None if self.finish is None else self._completion(self.finish)
        return Progress(self.name, self.number, [token], [logprob], completion)

    def _completion(self, finish: FinishReason) -> Completion:
        """The record. Its tokens include the one that ended it, its text no stop string."""
        text = self._vocabulary.decode(self.tokens) if self._text is None else self._text
        segments = [Segment(own.tokens, own.logprobs, own.version) for own in self._drawn]
        return Completion(segments, finish, text)

    def _completes_stop(self, token: int) -> bool:
        if self._stream is None:
            return False
        known = len(self._streamed)
        self._streamed += self._stream.push(token)
        # A stop string that begins before `known - len(stop) + 1` would have been found already.
        stops: Sequence[str] = self.request.sampling.stop
        found = [self._streamed.find(stop, max(0, known - len(stop) + 1)) for stop in stops]
        if max(found) < 0:
            return False
        self._text = self._streamed[: min(place for place in found if place >= 0)]
        return True
