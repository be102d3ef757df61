"""One request on its way: what was told of it, counted, until every choice has its end.

generations ──begin──> Hearing ──next──> pieces and scores of the prompt, by their generation
                                   └───> Spent (usage), Provenance: versions, replicas, moves
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlock.records.serving import Ended, EndKind, Generation, Piece, PromptScores
from interlock.serve.endpoint import Endpoint, log
from interlock.serve.http.refusals import Refusal, refusal_of_end
from interlock.serve.metrics import Timing
from interlock.text import one_line

_SHOWN = 10_000  # characters of a prompt in the log
Heard = list[tuple[int, Piece | PromptScores]]


@dataclass
class Spent:
    """Tokens of a request."""

    prompt: int = 0
    drawn: int = 0
    cached: int = 0
    reasoning: int = 0

    @property
    def tree(self) -> dict[str, Any]:
        """OpenAI's usage."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.drawn,
            "total_tokens": self.prompt + self.drawn,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass
class Provenance:
    """Which weights drew an answer, and where."""

    version: int | None = None
    replicas: dict[str, None] = field(default_factory=dict)  # in the order they came in
    moved: int = 0

    @property
    def tree(self) -> dict[str, Any]:
        """As answers tell it."""
        return {"version": self.version, "replicas": list(self.replicas), "moved": self.moved}


class Answering:
    """Made by `begin`; `over` is called once, however it ends."""

    def __init__(
        self,
        endpoint: Endpoint,
        generations: Sequence[Generation],
        name: str,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Raises Refusal. `name` is the request's; `then` is called once it is over, or refused."""
        self._then = then
        self._endpoint, self.name, self._key = endpoint, name, generations[0].key
        self._watch = Timing(endpoint.measured)
        self._finished: list[str] = []
        self._choices = sum(each.choices for each in generations)
        self._failed: Ended | None = None
        self._cached = dict.fromkeys(range(len(generations)), 0)
        self.spent = Spent(prompt=sum(len(each.prompt) for each in generations))
        self.provenance = Provenance()
        try:
            self.hearing = endpoint.begin(generations)
        except BaseException:
            if then is not None:
                then()
            raise
        endpoint.measured.prompt_tokens.inc(self.spent.prompt)
        if endpoint.settings.log_prompts:
            for each in generations:
                text = endpoint.tokenizer.decode(each.prompt, skip_special=False)
                log.info("%s %s: asks %s", name, self._key or "-", one_line(text, _SHOWN))

    async def next(self) -> Heard:
        """What was drawn since the last call; [] once all of it was. Raises ClientGone, and Refusal
        when some generation ended before its answer did.
        """
        while True:
            if self._failed is not None:
                raise refusal_of_end(self._failed)
            if not self.hearing.waits:
                return []
            heard: Heard = []
            for index, told in await self.hearing.heard():
                if type(told) is Ended:
                    self._ended(told)
                    continue
                heard.append((index, told))  # type: ignore[arg-type]
                if type(told) is Piece:
                    self._drew(index, told)
            if heard:
                return heard

    @property
    def all_drawn(self) -> bool:
        """Whether nothing more comes, so that what `provenance` says is final."""
        return not self.hearing.waits

    def over(self, error: BaseException | None = None) -> None:
        """Let go of what still runs, and note how it went."""
        self._endpoint.end(self.hearing)
        if self._then is not None:
            self._then()
        missing = self._choices - len(self._finished)
        failed = self._failed is not None or isinstance(error, Exception)
        kind = "error" if failed else "abort"
        for reason in self._finished + [kind] * missing:
            self._endpoint.measured.finished(reason)
        seconds = self._watch.ended()
        if log.isEnabledFor(logging.INFO):
            of, spent = self.provenance, self.spent
            log.info(
                "%s %s: %d + %d tokens, %.3f s, version %s, %s; %s",
                self.name,
                self._key or "-",
                spent.prompt,
                spent.drawn,
                seconds,
                of.version,
                "+".join(of.replicas) or "no replica",
                kind if missing else ",".join(sorted(set(self._finished))),
            )

    def _drew(self, index: int, piece: Piece) -> None:
        spent, of = self.spent, self.provenance
        spent.drawn += len(piece.tokens)
        if piece.cached > self._cached[index]:
            spent.cached += piece.cached - self._cached[index]
            self._cached[index] = piece.cached
        if of.version is None:
            of.version = piece.version
        if piece.replica not in of.replicas:
            of.replicas[piece.replica] = None
        if piece.finish is not None:
            self._finished.append(piece.finish)
        self._watch.drew((index, piece.number), len(piece.tokens))

    def _ended(self, ended: Ended) -> None:
        self.provenance.moved += ended.moved
        if ended.kind is not EndKind.DONE:
            self._failed = ended


def gone() -> Refusal:
    """What a handler ends with when nobody hears it any more."""
    return Refusal(499, "the client closed the connection", code="client_gone")
