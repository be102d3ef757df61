"""The generations of a pool: who waits, who is drawn where, and what is told of it.

    accept ──> FairQueue ──give_out──> a replica ──drew──> Piece, …, Ended
                              ^            │ take_back: it is lost, refused or loads other weights
                 moving ──────┘<───────────┘ each choice behind what it has, under the same weights

Nothing is told from in here: what is to be told is in `told`, in order, until somebody takes it.
"""

import math
from collections.abc import Sequence

from interlock.errors import ConfigError, Overloaded
from interlock.fleet.base import Fleet
from interlock.records.rl import FinishReason, WeightVersion
from interlock.records.serving import Ended, EndKind, Generation, Piece, PromptScores, Told
from interlock.text import one_line
from interlock.workers.protocol import Complete, Prompted, Stretch
from interlock.workers.replicas.base import Take, Ticket
from interlock.workers.replicas.jobs import LiveGeneration, LivePart, sequences
from interlock.workers.replicas.parity import odd_stretch
from interlock.workers.replicas.placement import Seating
from interlock.workers.replicas.queue import FairQueue
from interlock.workers.replicas.replica import GONE, ReplicaHandle
from interlock.workers.replies import odd_logprobs
from interlock.workers.words import REASON

_KEEP = 0.95  # of what was seen of earlier generations, with every one that ends
_UNTOLD = "the engine tells no alternatives of its tokens; ask without logprobs of others"
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0


class Desk:
    """Jobs by ticket, and their parts that no replica has."""

    def __init__(self, fleet: Fleet, bound: int, strikes: int) -> None:
        """`bound`: sequences that may wait; `strikes`: replicas that fail on a part before it is
        given up.
        """
        self.told: list[tuple[LiveGeneration, Told]] = []
        self.queue = FairQueue()
        self.moving: list[LivePart] = []  # were given to a replica before, the oldest first
        self.seating = Seating()
        self.jobs: dict[Ticket, LiveGeneration] = {}
        self._fleet, self._bound, self._strikes = fleet, bound, strikes
        self._tickets = 0
        self._length = 0.0  # tokens of a choice, as they were lately

    @property
    def waiting(self) -> int:
        """Sequences that no replica has."""
        return self.queue.sequences + sequences(self.moving)

    def accept(
        self, generation: Generation, take: Take, deadline: float, replicas: Sequence[ReplicaHandle]
    ) -> Ticket:
        """Raises Overloaded when more than may wait would."""
        free = sum(max(0, each.slots - each.running) for each in replicas if each.takes)
        waiting = self.waiting
        if waiting and waiting + generation.choices > self._bound + free:
            raise Overloaded(
                f"{waiting} answers wait already; ask again later", self.retry_s(replicas)
            )
        self._tickets += 1
        job = LiveGeneration(self._tickets, generation, take, deadline)
        self.jobs[job.ticket] = job
        self.queue.add(job.parts[0])
        return job.ticket

    def retry_s(self, replicas: Sequence[ReplicaHandle]) -> float:
        """By when what waits now will have been given out, as far as it can be told."""
        speed = sum(each.speed.at(each.slots) for each in replicas if each.up)
        seconds = self.waiting * self._length / speed if speed else _SHORTEST_RETRY_S
        return float(min(_LONGEST_RETRY_S, max(_SHORTEST_RETRY_S, math.ceil(seconds))))

    def cancel(self, ticket: Ticket, replicas: Sequence[ReplicaHandle]) -> None:
        """Forget it, wherever it is."""
        if (job := self.jobs.pop(ticket, None)) is not None:
            job.forgotten = True
            self._withdraw(job, replicas)

    def give_out(
        self, replicas: Sequence[ReplicaHandle], current: WeightVersion | None, now: float
    ) -> None:
        """All that can be. `current`: what is drawn from by those that have no weights yet."""
        for part in list(self.moving):
            weights = part.job.weights or current
            found = weights and self.seating.choose(part, replicas, weights)
            if weights and found:
                self.moving.remove(part)
                self._give(part, found, weights, now)
        while current and (fresh := self.queue.first()) is not None:
            replica = self.seating.choose(fresh, replicas, current)
            if replica is None:
                return
            self.queue.take(fresh)
            self._give(fresh, replica, current, now)

    def _give(
        self, part: LivePart, replica: ReplicaHandle, weights: WeightVersion, now: float
    ) -> None:
        if not replica.held:
            replica.drew = now
        part.advanced = False
        # Reserved first, as what it may say counts all that it holds.
        replica.held[replica.asked + 1] = part
        replica.ask(self._fleet, Complete(weights.number, part.generation))
        if not part.job.choices[part.numbers[0]].tokens:
            replica.count(prompt_tokens=len(part.job.generation.prompt))
        self.seating.gave(part, replica)

    def prompted(self, replica: ReplicaHandle, said: Prompted) -> str | None:
        """What a replica says of a prompt. Why it is garbage, if it is."""
        part = replica.held.get(said.id)
        if part is None:
            return None  # nobody waits for it any more
        asked = part.job.generation
        count, top_k = len(asked.prompt) - 1, asked.prompt_logprobs
        if len(said.logprobs) != count or len(said.top) != count:
            return f"{len(said.logprobs)} scores for a prompt of {count + 1} tokens"
        if odd := odd_logprobs(said.logprobs):
            return odd
        if top_k is not None and not part.job.scored:
            part.job.scored, part.job.weights = True, replica.serves
            top = said.top if top_k else []
            self.told.append((part.job, PromptScores(said.logprobs, top)))
        return None

    def drew(
        self,
        replica: ReplicaHandle,
        stretch: Stretch,
        version: int,
        replicas: Sequence[ReplicaHandle],
    ) -> str | None:
        """Take what a replica drew. Why it is garbage, if it is."""
        part = replica.held.get(stretch.ask)
        if part is None:
            ours = 0 < stretch.ask <= replica.asked
            return None if ours else f"tokens of {stretch.ask}, which was not asked"
        job, number = part.job, stretch.number
        if number not in part or job.choices[number].ended:
            return f"tokens of choice {number}, where {part.left} are open"
        if replica.serves is None or version != replica.serves.number:
            return f"tokens of version {version}, which was not asked for"
        choice, asked = job.choices[number], job.generation
        begun = sum(len(segment.tokens) for segment in asked.drawn) + len(choice.tokens)
        if odd := odd_stretch(stretch, replica.vocab, asked.sampling.max_tokens - begun):
            return odd
        if asked.rules.top_logprobs and len(stretch.top) != len(stretch.tokens):
            if part.advanced:
                return "no alternatives, which were asked for and told before"
            replica.dropped.append(stretch.ask)
            self.mistake(replica, stretch.ask, _UNTOLD, replicas)  # another engine may tell them
            return None
        if stretch.finish is FinishReason.BROKEN:
            if not asked.rules.grammar:
                return "an end by a grammar, where there is none"
            self.end(job, EndKind.MISTAKE, _broken(begun + len(stretch.tokens)), replicas)
            return None
        self._take(replica, part, stretch)
        return None

    def _take(self, replica: ReplicaHandle, part: LivePart, stretch: Stretch) -> None:
        """Tell what a replica drew of one of its parts, and whether that ends it."""
        job, choice = part.job, part.job.choices[stretch.number]
        assert replica.serves is not None
        first = not choice.tokens
        choice.tokens += stretch.tokens
        choice.logprobs += stretch.logprobs
        choice.ended = stretch.finish is not None
        job.weights, part.origin = replica.serves, replica.kind
        part.advanced, part.strikes = True, 0
        replica.count(generated_tokens=len(stretch.tokens), cached_tokens=stretch.cached)
        piece = Piece(
            stretch.number,
            stretch.tokens,
            stretch.logprobs,
            stretch.top if job.generation.rules.top_logprobs else [],
            replica.serves.number,
            stretch.finish,
            replica.name,
            stretch.cached if first else 0,
        )
        self.told.append((job, piece))
        if choice.ended and not part.left:
            del replica.held[stretch.ask]
            job.parts.remove(part)
        if choice.ended and job.done:
            replica.failures = 0
            replica.count(served=1)
            self._ended(job)

    def mistake(
        self, replica: ReplicaHandle, ask: int, reason: str, replicas: Sequence[ReplicaHandle]
    ) -> None:
        """A replica says that it can never be served: another engine is asked, if there is one."""
        part = replica.held.pop(ask)
        part.unable.add(replica.engine)
        part.reason = f"{replica.name}: {reason}"
        if able(part, replicas):
            self.moving.append(part)
        else:
            self.end(part.job, EndKind.MISTAKE, reason, replicas)

    def take_back(
        self, replica: ReplicaHandle, reason: str, struck: bool, replicas: Sequence[ReplicaHandle]
    ) -> None:
        """All that it has goes on elsewhere. `struck`: it failed, perhaps because of one of them.

        One that has been drawn since it was given is none of those that made it fail.
        """
        held = [replica.drop(ask) for ask in list(replica.held)]
        for part in held:
            part.reason = f"{replica.name}: {one_line(reason, REASON)}"
            if struck:
                part.avoid.add(replica.name)
                part.strikes += not part.advanced
            job = part.job
            job.parts.remove(part)
            if part.strikes >= self._strikes:
                why = f"{part.strikes} replicas failed on it; last, {part.reason}"
                self.end(job, EndKind.LOST, why, replicas)
            if job.ticket not in self.jobs:
                continue
            job.moved += 1
            parts = part.split()
            job.parts += parts
            self.moving += parts
        self.moving.sort(key=lambda part: part.job.ticket)

    def look(self, now: float, replicas: Sequence[ReplicaHandle]) -> None:
        """End what is late."""
        for job in [job for job in self.jobs.values() if now >= job.deadline]:
            self.end(job, EndKind.LATE, "it was not done by its deadline", replicas)

    def end(
        self, job: LiveGeneration, kind: EndKind, reason: str, replicas: Sequence[ReplicaHandle]
    ) -> None:
        """Nothing more comes of it, whoever has parts of it."""
        if self.jobs.pop(job.ticket, None) is not None:
            self._withdraw(job, replicas)
            self.told.append((job, Ended(kind, reason, job.moved)))

    def _ended(self, job: LiveGeneration) -> None:
        for choice in job.choices.values():
            keep = _KEEP if self._length else 0.0
            self._length = keep * self._length + (1 - keep) * len(choice.tokens)
        del self.jobs[job.ticket]
        self.told.append((job, Ended(EndKind.DONE, "", job.moved)))

    def _withdraw(self, job: LiveGeneration, replicas: Sequence[ReplicaHandle]) -> None:
        self.moving = [part for part in self.moving if part.job is not job]
        for part in [part for part in self.queue if part.job is job]:
            self.queue.remove(part)
        for replica in replicas:
            for ask in [ask for ask, part in replica.held.items() if part.job is job]:
                replica.drop(ask)


def _broken(tokens: int) -> str:
    return (
        f"the grammar or JSON schema came to its limits with token {tokens} of the answer; "
        "simplify it, or bound what it lets follow"
    )


def able(part: LivePart, replicas: Sequence[ReplicaHandle]) -> list[ReplicaHandle]:
    """Who may yet serve it, now or later."""
    left = (each for each in replicas if each.state not in GONE)
    return [each for each in left if each.engine not in part.unable]


def check(generation: Generation, vocab: int, context: int) -> None:
    """Raise ConfigError on what no replica of this model can serve."""
    prompt, sampling = generation.prompt, generation.sampling
    if not prompt:
        raise ConfigError("the prompt is empty; give at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise ConfigError(
            f"the prompt has a token id outside the model's vocabulary of {vocab}; use the "
            "tokenizer that belongs to the model"
        )
    if len(prompt) + sampling.max_tokens > context:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens, which with max_tokens = {sampling.max_tokens} "
            f"is more than the model's context of {context}; shorten it or lower max_tokens"
        )
    if generation.choices < 1:
        raise ConfigError(f"choices = {generation.choices}; ask for at least one")
    if generation.drawn and generation.choices > 1:
        raise ConfigError(f"choices = {generation.choices} behind drawn tokens; ask for one")
    if odd := [token for token in generation.rules.logit_bias if not 0 <= token < vocab]:
        raise ConfigError(
            f"logit_bias names token {odd[0]}, but the model's vocabulary ends before {vocab}"
        )
