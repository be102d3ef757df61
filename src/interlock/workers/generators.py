"""The generators as a recipe sees them: work goes in, groups come out, weights are published.

    order(work) ──> Generators ──> collect(purpose) ──> outcomes, problem by problem
    publish(version, tensors) ──^

`Inline` is the one generator of a small run, called directly; `Dispatcher` (dispatcher.py) has any
number of worker processes. What the recipe does is the same.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor

from interlock.records.metrics import WorkerMetrics, WorkerState
from interlock.records.rl import Group, Problem, Sampling
from interlock.workers.generator import Generator


class Purpose(StrEnum):
    TRAIN = "train"
    EVALUATE = "evaluate"  # goes before training


@dataclass(frozen=True)
class Work:
    """Problems that one worker answers together: the unit of dispatch, and of repetition.

    What a worker computes together rounds together, so a unit that is repeated whole gives the same
    bits; `keys` are the caller's numbers for the problems.
    """

    purpose: Purpose
    keys: tuple[int, ...]
    problems: tuple[Problem, ...]
    completions: int
    sampling: Sampling
    seed: int

    def part(self, index: int) -> "Work":
        """One problem alone."""
        return Work(
            self.purpose,
            self.keys[index : index + 1],
            self.problems[index : index + 1],
            self.completions,
            self.sampling,
            self.seed,
        )


class Outcome(NamedTuple):
    """What became of one problem: its group, or why it was set aside."""

    key: int
    group: Group | None
    reason: str = ""


class Published(NamedTuple):
    """What publishing a weight version cost; zeros where nothing was written."""

    kind: str = ""
    bytes: int = 0


Keep = Callable[[Sequence[tuple[int, Group]]], None]  # makes training groups durable, by key
Forget = Callable[[str], Sequence[int]]  # undoes that for what a worker made, if unused -> keys
Score = Callable[[list[int]], list[float]]  # the learner's logprobs of tokens[1:]


class Generators(Protocol):
    keep: Keep  # called with training groups before they are handed out
    forget: Forget  # called with a worker when it is put in quarantine
    progress: Callable[[], None]  # called for every problem that is done with

    @property
    def version(self) -> int | None:
        """Of the weights last published."""

    @property
    def size(self) -> int:
        """How many workers the recipe asks for."""

    def publish(self, number: int, tensors: Mapping[str, Tensor], score: Score) -> Published:
        """From now on, answer with these weights. Work that is under way is finished with the old.

        Raises SyncError or RunError when they cannot be stored.
        """

    def order(self, work: Sequence[Work]) -> None:
        """Have it done, by whichever worker."""

    def collect(self, purpose: Purpose, timeout_s: float) -> list[Outcome]:
        """What came back since the last call; waits for the first at most `timeout_s`. What is
        ordered for an evaluation comes back together.

        Raises TrainingError when no generator is left, ConfigError when none could ever work.
        """

    def quarantine(self, worker: str, reason: str, checks: Sequence[str]) -> None:
        """Do not use a worker, unless it is qualified anew. `checks` would tell more."""

    def quarantined(self) -> frozenset[str]: ...

    def withdrawn(self) -> Set[int]:
        """Keys of training groups that were made by a worker before its quarantine and not used
        by then. They may not be used, wherever it is now; until they are ordered again.
        """

    def dropped(self, worker: str) -> None:
        """Count a group of this worker that will not be used."""

    def facts(self) -> dict[str, WorkerMetrics]: ...

    def close(self) -> None: ...


def no_keep(_: Sequence[tuple[int, Group]]) -> None:
    """For whoever has no ledger."""


def no_forget(_: str) -> Sequence[int]:
    """For whoever has no ledger."""
    return ()


def no_progress() -> None:
    """For when nobody looks."""


class Inline:
    """One generator in this process. Its work is done while `collect` waits for it."""

    size = 1

    def __init__(self, generator: Generator, trust: str = "cpu") -> None:
        self.keep: Keep = no_keep
        self.forget: Forget = no_forget
        self.progress: Callable[[], None] = no_progress
        self.version: int | None = None
        self._generator = generator
        self._waiting: dict[Purpose, deque[Work]] = defaultdict(deque)
        engine = generator.engine
        told = engine.description, engine.device, engine.dtype
        self._facts = WorkerMetrics(WorkerState.READY, *told, trust)

    def publish(self, number: int, tensors: Mapping[str, Tensor], score: Score) -> Published:
        began = time.monotonic()
        self._generator.load(number, tensors)
        self._facts.seconds_loading += time.monotonic() - began
        self.version = self._facts.weight_version = number
        return Published()

    def order(self, work: Sequence[Work]) -> None:
        for unit in work:
            self._waiting[unit.purpose].append(unit)

    def collect(self, purpose: Purpose, timeout_s: float) -> list[Outcome]:
        if not self._waiting[purpose]:
            return []
        unit = self._waiting[purpose].popleft()
        began = time.monotonic()
        groups = self._generator.generate(
            unit.problems,
            unit.completions,
            unit.sampling,
            unit.seed,
            on_group=lambda _: self.progress(),
        )
        self._facts.seconds_generating += time.monotonic() - began
        self._facts.groups += len(groups)
        self._facts.tokens += sum(len(c.tokens) for group in groups for c in group.completions)
        found = list(zip(unit.keys, groups, strict=True))
        if purpose is Purpose.TRAIN:
            self.keep(found)
        return [Outcome(key, group) for key, group in found]

    def quarantine(self, worker: str, reason: str, checks: Sequence[str]) -> None:
        """There is nothing to put in its place: the caller decides what becomes of the run."""
        self._facts.state = WorkerState.QUARANTINED

    def quarantined(self) -> frozenset[str]:
        out = self._facts.state is WorkerState.QUARANTINED
        return frozenset({self._generator.name}) if out else frozenset()

    def withdrawn(self) -> Set[int]:
        return frozenset()

    def dropped(self, worker: str) -> None:
        self._facts.dropped += 1

    def facts(self) -> dict[str, WorkerMetrics]:
        return {self._generator.name: self._facts}

    def close(self) -> None:
        pass
