"""The generator of a small run: in the learner's own process, called directly."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence, Set

from torch import Tensor

from interlock.models.adapters import merged
from interlock.records.adapters import AdapterForm
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import WorkerMetrics, WorkerState
from interlock.workers.generator import Generator
from interlock.workers.generators import (
    Beside,
    Forget,
    Keep,
    LearnerScore,
    Outcome,
    Published,
    Purpose,
    Work,
    no_forget,
    no_keep,
    no_progress,
)


class Inline:
    """See workers/generators.py for the methods. Work is done while `collect` waits for it, a unit
    at a time, so all of it is exact.
    """

    size = 1

    def __init__(self, generator: Generator, trust: str = "cpu", shares: bool = False) -> None:
        """`shares`: it holds no weights of its own but those of the learner, adapters apart."""
        self.keep: Keep = no_keep
        self.forget: Forget = no_forget
        self.progress: Callable[[], None] = no_progress
        self.version: int | None = None
        self._generator = generator
        self._has_base = shares
        self._waiting: dict[Purpose, deque[Work]] = defaultdict(deque)
        engine = generator.engine
        told = engine.description, engine.device, engine.dtype
        self._facts = WorkerMetrics(WorkerState.READY, *told, trust)

    def publish(
        self,
        number: int,
        tensors: Mapping[str, Tensor],
        score: LearnerScore,
        adapter: Beside | None = None,
    ) -> Published:
        began = time.monotonic()
        if adapter is None:
            self._generator.load(number, tensors)
        elif self.merges(adapter.form):
            whole = merged(adapter.base().items(), tensors, adapter.form)
            self._generator.load(number, dict(whole))
        else:
            if not self._has_base:
                self._generator.load(number, adapter.base())
                self._has_base = True
            self._generator.load_adapter(number, tensors, adapter.form)
        spent = time.monotonic() - began
        self._facts.seconds_loading += spent
        self._facts.seconds_busy += spent
        self.version = self._facts.weight_version = number
        return Published()

    def merges(self, form: AdapterForm) -> str:
        """As of its engine."""
        return self._generator.engine.merges(form)

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
            replay=unit.replay,
        )
        spent = time.monotonic() - began
        self._facts.seconds_generating += spent
        self._facts.seconds_busy += spent
        self._facts.threads = self._generator.engine.threads
        self._facts.groups += len(groups)
        self._facts.tokens += sum(sum(c.mask) for group in groups for c in group.completions)
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

    def peaks(self) -> dict[str, MemoryPeak]:
        return {}  # it has no process of its own

    def close(self) -> None:
        pass
