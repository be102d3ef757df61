"""Replicas with scripted workers and a clock of the test's own.

    test ── ask, cancel ──> Crew ── start, send, kill ──> ScriptedFleet
         ── up, draw, hear, wait ──^ (what the workers say, and the time)

No process runs. What a scripted worker draws is a function of seed, choice and position, as an
engine's is, so what went on elsewhere can be told from what was drawn anew.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.records.rl import FinishReason, Sampling, WeightVersion
from interlock.records.serving import Ended, Generation, Piece, PromptScores, ReplicaFacts, Told
from interlock.records.trust import Stack
from interlock.workers import protocol
from interlock.workers.protocol import (
    Abort,
    Alive,
    Ask,
    Brought,
    Canary,
    Complete,
    Drawn,
    Failed,
    Failure,
    Load,
    Loaded,
    Open,
    Opened,
    Prompted,
    Reply,
    Scored,
    ScoreTexts,
    Stretch,
)
from interlock.workers.replicas.crew import Crew, PoolTerms

VOCAB, CONTEXT, SLOTS = 100, 1000, 4
CANARY = Canary(text=[1, 2, 3], prompts=[[4]], tokens=2)
SETTINGS = FleetSettings(
    kind="local", start_s=100, load_s=50, silence_s=30, backoff_s=1, failures=5, strikes=3
)
TERMS = PoolTerms(queue=16, examine_s=1e6, drain_s=20, stall_s=60)
CPU = Stack("cpu", "a chip", "", "", "", "2.13.0", "", "0.1")


def token_at(seed: int, number: int, position: int) -> int:
    return (31 * seed + 13 * number + 7 * position) % VOCAB


def answer_of(seed: int, number: int, count: int) -> list[int]:
    return [token_at(seed, number, position) for position in range(count)]


class ScriptedFleet:
    """Worker processes that exist only as what was sent to them."""

    def __init__(self, refuses: Sequence[str]) -> None:
        self.alive: set[str] = set()
        self.starts: dict[str, int] = defaultdict(int)
        self.asked: dict[str, dict[int, Ask]] = defaultdict(dict)  # open, by number
        self.drawn: dict[tuple[str, int, int], int] = {}  # tokens, by worker, ask and choice
        self.aborts: list[tuple[str, int]] = []
        self.limit: dict[str, int | None] = {}
        self._refuses = refuses
        self._last: dict[str, int] = defaultdict(int)

    def start(self, spec: Spec) -> None:
        assert spec.name not in self.alive, f"{spec.name} runs already"
        if spec.name in self._refuses:
            raise ConfigError(f"no interpreter for {spec.name}")
        self.alive.add(spec.name)
        self.starts[spec.name] += 1

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        if name not in self.alive:
            return
        asked = protocol.ask(message)
        if isinstance(asked, Abort):
            self.aborts.append((name, asked.id))
            self.asked[name].pop(asked.id, None)
            return
        assert asked.id > self._last[name], "a number again"
        self._last[name] = asked.id
        self.asked[name][asked.id] = asked
        self.limit[name] = reply_bytes

    def kill(self, name: str) -> None:
        self.alive.discard(name)
        self.asked[name].clear()

    def pid(self, name: str) -> int | None:
        return None

    def poll(self, timeout_s: float) -> list[Event]:
        raise AssertionError("the test looks at the events")

    def wake(self) -> None:
        raise AssertionError("the pool wakes")

    def close(self) -> None:
        self.alive.clear()


class Replicas:
    """A crew over scripted workers; see the module's docstring."""

    def __init__(
        self,
        *names: str,
        refuses: Sequence[str] = (),
        terms: PoolTerms = TERMS,
        target: WeightVersion | None = None,
        **settings: GeneratorSettings,
    ) -> None:
        self.now = 1000.0
        self.fleet = ScriptedFleet(refuses)
        self.notes: list[tuple[str, str, str]] = []
        self.told: dict[int, list[Told]] = defaultdict(list)
        plain = GeneratorSettings(dtype="float32", slots=SLOTS)
        workers = {
            name: (
                Spec(name, "none", Path("none")),
                Open(name, "", settings.get(name, plain), None, "store", CANARY),
            )
            for name in names
        }
        self.crew = Crew(
            self.fleet,
            workers,
            SETTINGS,
            GuardSettings(),
            terms,
            VOCAB,
            lambda *note: self.notes.append(note),
            lambda: self.now,
        )
        if target is not None:
            self.crew.changes.target = target
        self.texts: dict[str, float] = {}  # a replica's error of the canary's text
        self.merged: dict[str, str] = {}  # why it merges adapters
        self.engines: dict[str, str] = {}  # other than "torch 2"

    def attend(self, *events: Event) -> None:
        self.crew.attend(events)
        told, self.crew.desk.told = self.crew.desk.told, []
        for job, what in told:
            if not job.forgotten:
                job.take(what)

    def hear(self, name: str, *said: Reply | Lost | bytes) -> None:
        for each in said:
            if isinstance(each, Lost):
                self.fleet.kill(name)
            raw = each if isinstance(each, bytes | Lost) else protocol.encode(each)
            self.attend((name, raw))

    def wait(self, seconds: float, *alive: str) -> None:
        """Time passes; the replicas named give signs of life all along."""
        while seconds > 0:
            self.now += min(4.0, seconds)
            seconds -= 4.0
            self.attend(*((name, protocol.encode(Alive())) for name in alive))

    def open(self, *names: str) -> None:
        for name in names:
            (number,) = (n for n, a in self.fleet.asked[name].items() if isinstance(a, Open))
            del self.fleet.asked[name][number]
            facts = (
                self.engines.get(name, "torch 2"),
                "cpu",
                "float32",
                CPU,
                None,
                VOCAB,
                CONTEXT,
                SLOTS,
            )
            self.hear(name, Opened(*facts, id=number))

    def canary(self, *names: str) -> None:
        """Each shows what it is."""
        for name in names:
            self.draw(name, canary=True)
            self.draw(name, canary=True)
            for number, asked in list(self.fleet.asked[name].items()):
                if isinstance(asked, ScoreTexts):
                    del self.fleet.asked[name][number]
                    error = self.texts.get(name, 0.0)
                    scores = [[-1.0 - error] * (len(each) - 1) for each in asked.texts]
                    scores[1:] = [[-0.5] * (len(each) - 1) for each in asked.texts[1:]]
                    self.hear(name, Scored(scores, id=number))

    def up(self, *names: str) -> "Replicas":
        self.open(*names)
        self.canary(*names)
        return self

    def load(self, name: str) -> None:
        """It has fetched what it was told to load, and loads it as soon as it has nothing else."""
        asked = self.loading(name)
        if not self.brought(name):
            self.hear(name, Brought(id=asked.id))
        if not self.streams(name):
            del self.fleet.asked[name][asked.id]
            text, drawn = [-1.0 - self.texts.get(name, 0.0)] * 2, [-0.5] * 2
            proof = Loaded(asked.number, asked.digest, text, drawn, drawn, 0, id=asked.id)
            self.hear(name, msgspec.structs.replace(proof, merged=self.merged.get(name, "")))

    def brought(self, name: str) -> bool:
        change = self.handle(name).change
        return change is not None and change.brought

    def loading(self, name: str) -> Load:
        (asked,) = self.loads(name)
        return asked

    def loads(self, name: str) -> list[Load]:
        return [each for each in self.fleet.asked[name].values() if isinstance(each, Load)]

    def handle(self, name: str):  # type: ignore[no-untyped-def]
        return next(each for each in self.crew.replicas if each.name == name)

    def facts(self, name: str) -> ReplicaFacts:
        return self.handle(name).shown()  # type: ignore[no-any-return]

    def ask(self, seed: int = 1, deadline_s: float = 1e5, **asked: object) -> int:
        """-> ticket"""
        most = asked.pop("max_tokens", 4)
        assert isinstance(most, int)
        prompt = asked.pop("prompt", [1, 2, 3])
        assert isinstance(prompt, list)
        sampling = Sampling(max_tokens=most)
        generation = msgspec.convert(
            {"prompt": prompt, "sampling": sampling, "seed": seed, **asked}, Generation
        )
        box: list[int] = []
        ticket = self.crew.desk.accept(
            generation,
            lambda told: self.told[box[0]].append(told),
            self.now + deadline_s,
            self.crew.replicas,
        )
        box.append(ticket)
        self.attend()
        return ticket

    def cancel(self, ticket: int) -> None:
        self.crew.desk.cancel(ticket, self.crew.replicas)
        self.attend()

    def streams(self, name: str) -> dict[int, Complete]:
        """What it was asked to draw, and has not drawn to its end."""
        return {
            number: each
            for number, each in self.fleet.asked[name].items()
            if isinstance(each, Complete) and not each.generation.noise.startswith("canary")
        }

    def seeds(self, name: str) -> list[int]:
        return [each.generation.seed for each in self.streams(name).values()]

    def draw(self, name: str, times: int = 1, canary: bool = False, version: int = 0) -> None:
        """So many steps: each gives all that it was asked a token, in one message."""
        for _ in range(times):
            stretches: list[Stretch] = []
            for number, asked in list(self.fleet.asked[name].items()):
                if isinstance(asked, Complete):
                    is_canary = asked.generation.noise.startswith("canary")
                    if is_canary == canary:
                        version = asked.number
                        stretches += self._step(name, number, asked.generation)
            if stretches:
                self.now += 0.1
                self.hear(name, Drawn(version, stretches))

    def _step(self, name: str, ask: int, asked: Generation) -> list[Stretch]:
        found = []
        begun = sum(len(segment.tokens) for segment in asked.drawn)
        numbers = range(asked.first, asked.first + asked.choices)
        if asked.prompt_logprobs is not None and not self.fleet.drawn.get((name, ask, numbers[0])):
            count = len(asked.prompt) - 1
            self.hear(name, Prompted([-2.0] * count, [[]] * count, id=ask))
        for number in numbers:
            position = begun + self.fleet.drawn.get((name, ask, number), 0)
            if position >= asked.sampling.max_tokens:
                continue
            self.fleet.drawn[name, ask, number] = position - begun + 1
            last = position + 1 == asked.sampling.max_tokens
            finish = FinishReason.LENGTH if last else None
            found.append(
                Stretch(ask, number, [token_at(asked.seed, number, position)], [-0.5], finish)
            )
        if all(
            begun + self.fleet.drawn.get((name, ask, number), 0) >= asked.sampling.max_tokens
            for number in numbers
        ):
            del self.fleet.asked[name][ask]
        return found

    def pieces(self, ticket: int) -> list[Piece]:
        return [each for each in self.told[ticket] if isinstance(each, Piece)]

    def tokens(self, ticket: int, number: int = 0) -> list[int]:
        return [t for each in self.pieces(ticket) if each.number == number for t in each.tokens]

    def ended(self, ticket: int) -> Ended | None:
        *_, last = self.told[ticket] or [None]
        return last if isinstance(last, Ended) else None

    def scores(self, ticket: int) -> list[PromptScores]:
        return [each for each in self.told[ticket] if isinstance(each, PromptScores)]

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.notes]

    def fail(self, name: str, *asks: int, kind: Failure = Failure.FAULT) -> None:
        for ask in asks:
            self.fleet.asked[name].pop(ask, None)
        self.hear(name, Failed("it broke", kind, list(asks)))
