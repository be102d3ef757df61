"""One sequence on its way: what was drawn so far, and whether that ends it. Computes no tensors.

    token ──Ending──> why the answer ends with it, if it does, and its text

Engines find the end of what they draw with it, and whoever is given tokens by a worker reads them
with it once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from interlock.engine.base import Progress, Request
from interlock.engine.budget import ThinkingMeter
from interlock.engine.vocabulary import Vocabulary
from interlock.errors import ConfigError
from interlock.records.replay import KeptTokens
from interlock.records.rl import Completion, FinishReason, Sampling, Segment
from interlock.records.serving import Alternatives


class Ending:
    """Finds where an answer ends, token by token."""

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: Vocabulary,
        stop_ids: frozenset[int] = frozenset(),
        ignore_eos: bool = False,
    ) -> None:
        """`stop_ids`: as those of a Request; `ignore_eos`: the model's own end tokens end nothing,
        those still do.
        """
        self._sampling, self._vocabulary = sampling, vocabulary
        self._end_ids = stop_ids if ignore_eos else vocabulary.eos_ids | stop_ids
        self._tokens: list[int] = []
        self._stream = vocabulary.stream() if sampling.stop else None
        self._streamed = ""
        self._text: str | None = None  # before the stop string, once one was found

    @property
    def text(self) -> str:
        """Of the tokens so far, without special tokens and stop strings."""
        return self._vocabulary.decode(self._tokens) if self._text is None else self._text

    def push(self, token: int) -> FinishReason | None:
        """Take the next token. Why the answer ends with it, if it does."""
        self._tokens.append(token)
        if token in self._end_ids or self._completes_stop(token):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self._tokens) == self._sampling.max_tokens else None

    def _completes_stop(self, token: int) -> bool:
        if self._stream is None:
            return False
        known = len(self._streamed)
        self._streamed += self._stream.push(token)
        # A stop string that begins before `known - len(stop) + 1` would have been found already.
        stops: Sequence[str] = self._sampling.stop
        found = [self._streamed.find(stop, max(0, known - len(stop) + 1)) for stop in stops]
        if max(found) < 0:
            return False
        self._text = self._streamed[: min(place for place in found if place >= 0)]
        return True


class TokenReplay(NamedTuple):
    """What a request asks to be told of a token (records/replay.py)."""

    kept: bytes = b""  # the set it was drawn from, as kept_ids writes it
    route: bytes = b""  # of the token before it, as it was read to draw this one


NOT_TOLD = TokenReplay()


@dataclass
class _Drawn:
    """What one weight version drew, for as long as it did; None: it was given."""

    version: int | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    told: list[TokenReplay] = field(default_factory=list)  # of each token

    @property
    def segment(self) -> Segment:
        kept = KeptTokens.of([each.kept for each in self.told])
        routes = b"".join(each.route for each in self.told)
        return Segment(self.tokens, self.logprobs, self.version, kept, routes)


class LiveSequence:
    """Completion `number` of the request that was added under `name`.

    `tokens` is all that was drawn, here or before; `finish` why it ended, None while it runs.
    Raises ConfigError where what was drawn before has ended it already.
    """

    def __init__(self, name: str, request: Request, number: int, vocabulary: Vocabulary) -> None:
        self.name, self.request, self.number = name, request, number
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.cut = False  # its grammar gave up: it breaks off with the next token
        self.prompt_routes = b""  # see Completion
        self._drawn: list[_Drawn] = []
        assert request.budget is None or not request.rules.guided
        self._meter = None if request.budget is None else ThinkingMeter(request.budget, vocabulary)
        self._ending = Ending(
            request.sampling, vocabulary, request.stop_ids, request.rules.ignore_eos
        )
        for segment in request.drawn:
            for each in zip(segment.tokens, _logprobs(segment), _told(segment), strict=True):
                if self._take(*each, segment.weight_version) is not None:
                    raise ConfigError(
                        f"what was drawn of problem {request.problem_id!r} ends with its token "
                        f"{len(self.tokens)}; nothing goes on behind that"
                    )

    @property
    def routes(self) -> list[bytes]:
        """Of the token before each of `tokens`, all by one version; []: by several."""
        versions = {own.version for own in self._drawn} - {None}
        return [each.route for own in self._drawn for each in own.told if len(versions) == 1]

    @property
    def owed(self) -> Sequence[int]:
        """What it is to be given before it draws on: the end of its thinking."""
        return () if self._meter is None else self._meter.owed

    def push(
        self,
        token: int,
        logprob: float,
        version: int,
        top: Alternatives | None = None,
        told: TokenReplay = NOT_TOLD,
    ) -> Progress:
        """Take the next token, drawn from the weights of `version`; the last one sets `finish`.

        `top`: its alternatives, where they are to be told. Where something is owed, that is taken
        instead, and what was drawn is forgotten.
        """
        assert self.finish is None
        if self.owed:
            return self._next(self.owed[0], 0.0, told._replace(kept=b""), None, None)
        return self._next(token, logprob, told, version, top)

    def route(self, rows: Sequence[bytes]) -> None:
        """Tell, late, the routes of its prompt and of all that it has so far: `rows` of both."""
        before = len(self.request.prompt_tokens) - 1
        if self.number == self.request.first:
            self.prompt_routes = b"".join(rows[:before])
        each = iter(rows[before:])
        for own in self._drawn:
            own.told = [told._replace(route=next(each)) for told in own.told]

    def give(self) -> Progress:
        """Take all that is owed, instead of drawing it."""
        made = self._next(self.owed[0], 0.0, NOT_TOLD, None, None)
        while self.owed and self.finish is None:
            more = self._next(self.owed[0], 0.0, NOT_TOLD, None, None)
            made = more._replace(
                tokens=made.tokens + more.tokens, logprobs=made.logprobs + more.logprobs
            )
        return made

    def _next(
        self,
        token: int,
        logprob: float,
        told: TokenReplay,
        version: int | None,
        top: Alternatives | None,
    ) -> Progress:
        self.finish = self._take(token, logprob, told, version)
        if self.cut:
            self.finish = FinishReason.BROKEN
        completion = None if self.finish is None else self._completion(self.finish)
        tops = () if top is None else [top]
        return Progress(self.name, self.number, [token], [logprob], completion, tops)

    def _take(
        self, token: int, logprob: float, told: TokenReplay, version: int | None
    ) -> FinishReason | None:
        self.tokens.append(token)
        if not self._drawn or self._drawn[-1].version != version:
            self._drawn.append(_Drawn(version))
        self._drawn[-1].tokens.append(token)
        if version is not None:
            self._drawn[-1].logprobs.append(logprob)
        self._drawn[-1].told.append(told)
        if self._meter is not None:
            self._meter.push(token)
        return self._ending.push(token)

    def _completion(self, finish: FinishReason) -> Completion:
        """The record. Its tokens include the one that ended it, its text no stop string."""
        segments = [own.segment for own in self._drawn]
        return Completion(segments, finish, self._ending.text, self.prompt_routes)


def _logprobs(segment: Segment) -> list[float]:
    return segment.logprobs if segment.sampled else [0.0] * len(segment.tokens)


def _told(segment: Segment) -> list[TokenReplay]:
    count = len(segment.tokens)
    sets = segment.kept.sets() if segment.kept else [b""] * count
    width = len(segment.routes) // count
    return [
        TokenReplay(kept, segment.routes[place * width : (place + 1) * width])
        for place, kept in enumerate(sets)
    ]
