"""Completions on their way, and what those of one request share. Computes no tensors."""

from torch import Tensor

from interlock.engine.base import Request, Vocabulary
from interlock.engine.portable.sampler import Noise
from interlock.records.rl import Completion, FinishReason


class Prompt:
    """A prefilled prompt: what the completions of one request share."""

    def __init__(self, index: int, request: Request, hidden: Tensor, lone: bool = False) -> None:
        self.index = index  # of the request
        self.request = request
        self.hidden = hidden  # [d], of the last token
        self.lone = lone  # kept in the row of its only completion
        self.length = len(request.prompt_tokens)
        self.finished: dict[int, Completion] = {}  # by number

    @property
    def done(self) -> bool:
        return len(self.finished) == self.request.completions

    def completions(self) -> list[Completion]:
        return [self.finished[number] for number in range(self.request.completions)]


class Row:
    """A completion on its way: number `number` of its prompt."""

    def __init__(self, prompt: Prompt, number: int, vocabulary: Vocabulary) -> None:
        request = prompt.request
        self.prompt, self.number, self.sampling = prompt, number, request.sampling
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self._logprobs: list[float] = []
        self._noise = Noise(request.seed, request.problem_id, number)
        self._vocabulary = vocabulary
        self._on_token = request.on_token
        self._stream = vocabulary.stream() if self.sampling.stop else None
        self._streamed = ""
        self._text: str | None = None  # before the stop string, once one was found

    @property
    def stored(self) -> int:
        """Tokens whose keys and values are in the row, before the newest token's."""
        return (self.prompt.length if self.prompt.lone else 0) + len(self.tokens) - 1

    def noise(self) -> tuple[float, float]:
        """The uniforms of the next token."""
        return self._noise.at(len(self.tokens))

    def push(self, token: int, logprob: float) -> None:
        """Take the next token, and set `finish` when it is the last."""
        self.tokens.append(token)
        self._logprobs.append(logprob)
        if self._on_token is not None:
            self._on_token(token)
        if token in self._vocabulary.eos_ids or self._completes_stop(token):
            self.finish = FinishReason.STOP
        elif len(self.tokens) == self.sampling.max_tokens:
            self.finish = FinishReason.LENGTH

    def completion(self, version: int) -> Completion:
        """The record. Its tokens include the one that ended it, its text no stop string."""
        assert self.finish is not None
        text = self._vocabulary.decode(self.tokens) if self._text is None else self._text
        return Completion(self.tokens, self._logprobs, self.finish, text, version)

    def _completes_stop(self, token: int) -> bool:
        if self._stream is None:
            return False
        known = len(self._streamed)
        self._streamed += self._stream.push(token)
        # A stop string that begins before `known - len(stop) + 1` would have been found already.
        found = [
            self._streamed.find(stop, max(0, known - len(stop) + 1)) for stop in self.sampling.stop
        ]
        if max(found) < 0:
            return False
        self._text = self._streamed[: min(place for place in found if place >= 0)]
        return True
