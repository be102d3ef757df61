"""What is asked of an engine, and the completions on their way. No tensors are computed here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from interlock.errors import ConfigError
from interlock.records import Completion, FinishReason, Sampling
from interlock.rollout.sampler import Noise

# Called with the index of a request, once all of its completions are there.
OnFinished = Callable[[int, list[Completion]], None]


class TextStream(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token: int) -> str: ...


class Vocabulary(Protocol):
    """What an engine needs of models.tokenizer.Tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def stream(self) -> TextStream: ...


@dataclass(frozen=True)
class Request:
    """`completions` answers to one prompt. Their noise depends on seed and problem_id alone."""

    problem_id: str
    prompt_tokens: list[int]
    completions: int
    sampling: Sampling
    seed: int
    on_token: Callable[[int], None] | None = None  # called with each token as it is drawn


def check(request: Request, vocab: int, context: int) -> None:
    """Raise ConfigError on a request that no engine with this vocabulary and context can serve."""
    name, prompt, sampling = request.problem_id, request.prompt_tokens, request.sampling
    if not prompt:
        raise ConfigError(f"problem {name!r} has an empty prompt; give it at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise ConfigError(
            f"problem {name!r} has a token id outside the model's vocabulary of {vocab}; use the "
            "tokenizer that belongs to the model"
        )
    if len(prompt) + sampling.max_tokens > context:
        raise ConfigError(
            f"problem {name!r} has {len(prompt)} prompt tokens, which with max_tokens = "
            f"{sampling.max_tokens} is more than the model's context of {context}; lower "
            "max_tokens or leave the problem out"
        )
    if request.completions < 1 or sampling.max_tokens < 1:
        raise ConfigError(
            f"problem {name!r} asks for {request.completions} completions of at most "
            f"{sampling.max_tokens} tokens; ask for at least one of each"
        )
    if "" in sampling.stop:
        raise ConfigError("sampling.stop holds an empty string, which ends nothing; remove it")


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
