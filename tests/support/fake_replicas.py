"""Replicas that draw what a test says, on a thread of their own, and stop where it says."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from interlock.engine.base import Limits
from interlock.engine.sequence import Ending
from interlock.errors import ConfigError, Overloaded, Unserved
from interlock.models.tokenizer import Tokenizer
from interlock.records.serving import (
    Ended,
    EndKind,
    Generation,
    Piece,
    PromptScores,
    ReplicaFacts,
    ReplicaState,
)
from interlock.workers.replicas.base import Take

# What a choice of a generation is to say, with the end token where it ends by itself.
Script = Callable[[Generation, int], list[int]]
DEADLINE = 20


@dataclass
class _Live:
    generation: Generation
    take: Take
    script: list[list[int]]
    endings: list[Ending | None]
    at: int = 0
    begun: bool = False
    versions: int = 0


@dataclass
class FakeReplicas:
    """`hold()` keeps it from drawing; `step()` lets one step happen, `go()` all."""

    tokenizer: Tokenizer
    script: Script
    context: int = 512
    overloaded: bool = False
    state: ReplicaState = ReplicaState.READY
    version: int = 3
    pinned: list[int | None] = field(default_factory=list)
    asked: list[Generation] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    closed: float | None = None

    def __post_init__(self) -> None:
        self._live: dict[int, _Live] = {}
        self._lock = threading.Condition(threading.RLock())
        self._next, self._steps, self._ends = 0, 1 << 60, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # What the endpoint sees.

    @property
    def limits(self) -> Limits:
        return Limits(self.tokenizer.vocab_size, self.context, 64)

    def begin(self, generation: Generation, take: Take, deadline_s: float) -> int:
        if self.state is ReplicaState.DRAINING:
            raise Unserved("all replicas are drained; let one serve again", 10.0)
        if self.overloaded:
            raise Overloaded("1024 sequences wait; ask again", 2.0)
        script = [self.script(generation, n) for n in range(generation.choices)]
        stops = frozenset(generation.stop_ids)
        endings: list[Ending | None] = [
            Ending(generation.sampling, self.tokenizer, stops) for _ in script
        ]
        with self._lock:
            self._next += 1
            self._live[self._next] = _Live(generation, take, script, endings)
            self.asked.append(generation)
            self._lock.notify_all()
            return self._next

    def cancel(self, ticket: int) -> None:
        with self._lock:
            if self._live.pop(ticket, None) is not None:
                self.cancelled.append(ticket)
            self._lock.notify_all()

    def facts(self) -> list[ReplicaFacts]:
        trust = {"trust": "generate", "engine": "fake", "device": "cpu", "slots": 64}
        parity = {"k3": 1e-5}
        return [ReplicaFacts("a", self.state, version=self.version, parity=parity, **trust)]

    @property
    def waiting(self) -> int:
        return 0

    def drain(self, name: str, on: bool) -> None:
        if name != "a":
            raise ConfigError(f"replica {name!r} is unknown; there is a")
        self.state = ReplicaState.DRAINING if on else ReplicaState.READY

    def pin(self, version: int | None) -> None:
        self.pinned.append(version)

    def close(self, drain_s: float) -> None:
        with self._lock:
            self.closed, self._ends = drain_s, True
            self._lock.notify_all()
        self._thread.join(DEADLINE)

    # What a test does.

    @property
    def running(self) -> int:
        with self._lock:
            return len(self._live)

    def wait_until(self, said: Callable[[], bool]) -> None:
        """For something that a request makes true."""
        with self._lock:
            assert self._lock.wait_for(said, DEADLINE)

    def wait_idle(self) -> None:
        self.wait_until(lambda: not self._live)

    def hold(self) -> None:
        with self._lock:
            self._steps = 0

    def step(self, steps: int = 1) -> None:
        with self._lock:
            self._steps += steps
            self._lock.notify_all()

    def go(self) -> None:
        self.step(1 << 60)

    def end_all(self, ended: Ended) -> None:
        """As when every replica dies."""
        with self._lock:
            live, self._live = self._live, {}
            self._lock.notify_all()
        for each in live.values():
            each.take(ended)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._ends or (self._steps and self._live))
                if self._ends:
                    return
                self._steps -= 1
                live = list(self._live.items())
            for ticket, each in live:
                if self._advance(each):
                    with self._lock:
                        self._live.pop(ticket, None)
                        self._lock.notify_all()

    def _advance(self, live: _Live) -> bool:
        """One token for each choice. -> whether all have ended"""
        generation = live.generation
        if not live.begun:
            live.begun = True
            if generation.prompt_logprobs is not None:
                live.take(scores_of(generation))
        for number, ending in enumerate(live.endings):
            if ending is None:
                continue
            script = live.script[number]
            token = script[live.at % len(script)]
            finish = ending.push(token)
            if finish is not None:
                live.endings[number] = None
            count = generation.rules.top_logprobs
            top = [(token, -0.5), *((n, -2.0 - n) for n in range(count) if n != token)][:count]
            cached = 2 if live.at == 0 else 0
            piece = Piece(number, [token], [-0.5], [top] if count else [], 3, finish, "a", cached)
            live.take(piece)
        live.at += 1
        if any(live.endings):
            return False
        live.take(Ended(EndKind.DONE))
        return True


def scores_of(generation: Generation) -> PromptScores:
    """-0.25 for the second token, -0.5 for the third, …; each the likeliest of its place."""
    rest, count = generation.prompt[1:], generation.prompt_logprobs or 0
    logprobs = [-0.25 * (n + 1) for n in range(len(rest))]
    tops = [[(token, value)] if count else [] for token, value in zip(rest, logprobs, strict=True)]
    return PromptScores(logprobs, tops)
