"""A pool of real worker processes as a test sees it: what it told, and what it noted."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock.config.schema import FleetSettings, GeneratorSettings
from interlock.records.rl import Sampling
from interlock.records.serving import (
    Ended,
    Generation,
    Piece,
    ReplicaFacts,
    ReplicaState,
    Rules,
    Told,
)
from interlock.workers.replicas.opening import open_pool
from interlock.workers.replicas.pool import Pool

DEADLINE_S = 200.0  # of every wait of a test
_LOOK_S = 0.02
# Nothing is left to a measurement: replicas of a test are to have the same bits.
EXACT = GeneratorSettings(
    dtype="float32",
    kernel="torch",
    fused_attention_above=512,
    slots=16,
    env={
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)]
        ),
    },
)
FLEET = FleetSettings(kind="local", backoff_s=0.1, start_s=100, load_s=100)


class Stream:
    """A generation, and what was told of it."""

    def __init__(self, watch: threading.Condition) -> None:
        self.told: list[Told] = []
        self.ticket = 0
        self._watch = watch

    def take(self, told: Told) -> None:
        with self._watch:
            self.told.append(told)
            self._watch.notify_all()

    @property
    def pieces(self) -> list[Piece]:
        return [each for each in self.told if isinstance(each, Piece)]

    def tokens(self, number: int = 0) -> list[int]:
        return [t for piece in self.pieces if piece.number == number for t in piece.tokens]

    @property
    def end(self) -> Ended | None:
        return self.told[-1] if self.told and isinstance(self.told[-1], Ended) else None

    @property
    def versions(self) -> set[int]:
        return {piece.version for piece in self.pieces}


class LivePool:
    """A pool of real workers, what it noted, and the streams it was asked for."""

    def __init__(
        self, model: Path, logs: Path, replicas: dict[str, GeneratorSettings], **given: Any
    ) -> None:
        self.watch = threading.Condition()
        self.notes: list[tuple[str, str, str]] = []
        self.pool: Pool = open_pool(model, replicas, FLEET, logs, self._note, **given)

    def _note(self, *note: str) -> None:
        with self.watch:
            self.notes.append((note[0], note[1], note[2]))
            self.watch.notify_all()

    def until(self, met: Callable[[], object]) -> None:
        """Wait until something that was told or noted, or the state of a replica, makes it so."""
        end = time.monotonic() + DEADLINE_S
        with self.watch:
            while not met():
                assert time.monotonic() < end, (self.notes, self.pool.facts())
                self.watch.wait(_LOOK_S)  # of a state nothing is told

    def facts(self, name: str) -> ReplicaFacts:
        return next(each for each in self.pool.facts() if each.name == name)

    def ready(self, *names: str) -> "LivePool":
        self.until(lambda: all(self.facts(n).state is ReplicaState.READY for n in names))
        return self

    def noted(self, kind: str, name: str = "") -> int:
        return sum(note[0] == kind and name in ("", note[2]) for note in self.notes)

    def ask(self, seed: int, max_tokens: int = 40, **asked: Any) -> Stream:
        stream = Stream(self.watch)
        prompt = asked.pop("prompt", [1 + seed % 200, 2, 3])
        generation = Generation(
            prompt, Sampling(max_tokens=max_tokens), seed, rules=Rules(ignore_eos=True), **asked
        )
        stream.ticket = self.pool.begin(generation, stream.take, DEADLINE_S)
        return stream
