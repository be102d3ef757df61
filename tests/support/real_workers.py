"""Real workers with real engines in this process, driven turn by turn.

    test ── ask ──> inbox ──> Worker.turn() ──> said
    test ── order, publish ──> WorkerPool ──> InlineFleet ──> the same, several of them

Nothing here depends on time: a turn is a look at the messages and one step of the engine.
"""

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from msgspec.structs import replace

from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.engine.portable.engine import PortableEngine
from interlock.fleet.base import Event, Lost, Spec
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import WeightVersion
from interlock.sync.store import Publisher
from interlock.workers import protocol
from interlock.workers.loading import Fetched
from interlock.workers.pool import WorkerPool
from interlock.workers.protocol import Ask, Canary, Load, Open, Reply
from interlock.workers.reading import Reader
from interlock.workers.replies import Target
from interlock.workers.worker import Worker

SLOTS = 8
CANARY = Canary(list(range(40, 60)), [[1, 2, 3], [4]], 6)
# Nothing is left to a measurement: workers of a test are to have the same bits.
_EXACT = GeneratorSettings(dtype="float32", kernel="torch", fused_attention_above=512)
SETTINGS = replace(_EXACT, slots=SLOTS)


class _Channel:
    def __init__(self, said: list[bytes]) -> None:
        self._said = said

    def receive(self) -> bytes | None:
        threading.Event().wait()  # messages are put into the inbox directly
        return None

    def send(self, message: bytes) -> None:
        self._said.append(message)


class RealWorker:
    """A worker, what it said, and what its engine did."""

    def __init__(self, name: str = "w") -> None:
        self.name = name
        self.raw: list[bytes] = []
        self._fetches: SimpleQueue[Fetched] = SimpleQueue()
        self.busy: list[int] = []  # sequences that got a token, step by step
        self.worker = Worker(_Channel(self.raw))

    @property
    def said(self) -> list[Reply]:
        return [protocol.reply(data) for data in self.raw]

    @property
    def engine(self) -> PortableEngine:
        assert self.worker._generator is not None
        engine = self.worker._generator.engine
        assert isinstance(engine, PortableEngine)
        return engine

    def put(self, data: bytes) -> None:
        self.worker._inbox.put(data)

    def ask(self, *asked: Ask) -> None:
        for each in asked:
            self.put(protocol.encode(each))

    def turn(self, times: int = 1) -> None:
        """Nothing happens when there is nothing to do."""
        for _ in range(times):
            if self.worker._inbox.empty() and not self._working():
                return
            assert self.worker.turn()
            if self.worker._loader is not None:
                self.worker._loader._post = self._fetches.put

    def finish(self, most: int = 2000) -> None:
        for _ in range(most):
            if self.worker._inbox.empty() and not self._working():
                return
            self.turn()
        raise AssertionError("goes on for ever")

    @property
    def fetching(self) -> bool:
        """Weights are on their way, and come when `fetched` is called."""
        loader = self.worker._loader
        return loader is not None and loader.under_way and not loader._requests

    def fetched(self) -> None:
        """Wait for what is being fetched; it is applied in the next turn."""
        self.worker._inbox.put(self._fetches.get(timeout=30))

    def watch(self) -> None:
        """Count, from now on, what every step of the engine computes."""
        step = self.engine.step

        def counted() -> Any:
            progress = step()
            if progress:
                self.busy.append(len(progress))
            return progress

        self.engine.step = counted  # type: ignore[method-assign]

    def _working(self) -> bool:
        worker = self.worker
        working = worker._generator and (worker._waiting or worker._generator.engine.pending)
        return bool(working or worker._brought)


class Weights:
    """Versions of a model's weights, published where workers find them."""

    def __init__(self, model: Path, store: Path) -> None:
        self.model, self.url = model, str(store)
        self.versions: dict[int, WeightVersion] = {}
        self._publisher = Publisher(self.url, 5)
        self.publish(0)

    def decoder(self, number: int) -> Decoder:
        """Version 0 is the model's own; every other differs much."""
        decoder = load_decoder(self.model, torch.float32, torch.device("cpu"))
        noise = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in decoder.parameters() if number else ():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.2)
        return decoder.requires_grad_(False)

    def publish(self, number: int) -> WeightVersion:
        written = self._publisher.publish(number, dict(self.decoder(number).tensors()))
        self.versions[number] = written.version
        return written.version

    def load(self, number: int, ask: int) -> Load:
        version = self._version(number)
        return Load(number, version.digest, id=ask)

    def target(self, number: int) -> Target:
        version = self._version(number)
        engine = PortableEngine(self.decoder(number), Tokenizer.load(self.model), 1)
        return Target(version, engine.score(CANARY.text).logprobs)

    def _version(self, number: int) -> WeightVersion:
        return self.versions[number] if number in self.versions else self.publish(number)

    def open(self, name: str = "w", slots: int = SLOTS) -> Open:
        settings = replace(_EXACT, slots=slots)
        return Open(name, str(self.model), settings, None, self.url, CANARY, id=1)


class InlineFleet:
    """Workers of this process as a pool sees them; see fleet/base.py."""

    def __init__(self) -> None:
        self.workers: dict[str, RealWorker] = {}
        self._told: dict[str, int] = {}

    def start(self, spec: Spec) -> None:
        self.workers[spec.name], self._told[spec.name] = RealWorker(spec.name), 0

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        if name in self.workers:
            self.workers[name].put(message)

    def events(self) -> list[Event]:
        """What the workers said since the last look."""
        found: list[Event] = []
        for name, worker in self.workers.items():
            found += [(name, data) for data in worker.raw[self._told[name] :]]
            self._told[name] = len(worker.raw)
        return found

    def kill(self, name: str) -> None:
        self.workers.pop(name, None)

    def pid(self, name: str) -> int | None:
        return None

    def poll(self, timeout_s: float) -> list[Event]:
        raise AssertionError("the test looks at the events")

    def wake(self) -> None:
        raise AssertionError("the dispatcher wakes")

    def close(self) -> None:
        self.workers.clear()


class House:
    """A pool over real workers; `turn` is some turns of each, and then a look of the pool."""

    def __init__(self, weights: Weights, *names: str, slots: int = SLOTS) -> None:
        self.fleet, self.weights = InlineFleet(), weights
        self.notes: list[tuple[str, str, str]] = []
        tokenizer = Tokenizer.load(weights.model)
        workers = {
            name: (Spec(name, "none", Path("none")), weights.open(name, slots)) for name in names
        }
        reader = Reader(tokenizer, weights.decoder(0).arch.vocab)
        self.pool = WorkerPool(
            self.fleet,
            workers,
            FleetSettings(kind="local"),
            GuardSettings(),
            reader,
            lambda *note: self.notes.append(note),
        )

    def turn(self, times: int = 1) -> None:
        for worker in list(self.fleet.workers.values()):
            worker.turn(times)
        self.pool.attend(self.fleet.events())

    def serve(self, number: int) -> None:
        self.pool.serve(self.weights.target(number))
        self.pool.attend([])

    def lose(self, name: str) -> None:
        """Its process is killed, in the middle of whatever it does."""
        self.fleet.kill(name)
        self.pool.attend([(name, Lost("signal 9"))])

    def ready(self, number: int = 0) -> None:
        """All workers serve and have proven a version."""
        self.serve(number)
        for _ in range(1000):
            if all(facts.weight_version == number for facts in self.pool.facts().values()):
                return
            for worker in self.fleet.workers.values():
                if worker.fetching:
                    worker.fetched()
            self.turn()
        raise AssertionError(self.notes)
