"""Generators as worker processes of a fleet, kept at work while the recipe does something else.

    recipe's thread ── order, publish, collect ──┐  lock   ┌── attend <── poll ── fleet
                                                 └─ pool ──┘   dispatcher's thread

The thread owns the fleet. What happens to a worker stands in pool.py.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing

from torch import Tensor

from interlock.config.schema import FleetSettings, GuardSettings
from interlock.errors import InterlockError, TrainingError
from interlock.fleet.base import Fleet, Spec
from interlock.records.adapters import Adapted
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import OUT_OF_USE, WorkerMetrics
from interlock.records.rl import WeightVersion
from interlock.sync.store import Publisher
from interlock.workers.generators import (
    Beside,
    Forget,
    Keep,
    LearnerScore,
    Outcome,
    Published,
    Purpose,
    Work,
    no_progress,
)
from interlock.workers.handle import Note
from interlock.workers.pool import WorkerPool
from interlock.workers.protocol import Open
from interlock.workers.reading import Reader
from interlock.workers.replies import Target

_PATIENCE_S = 0.5  # between two looks at the deadlines
_REPAIR_S = 5.0  # between two looks at a store that was damaged
_LONGEST_PAUSE_S = 600.0  # and at one that is whole
_OPENING_S = 120.0  # for the fleet itself, not its workers
_CLOSING_S = 30.0
_DENSE = (
    "version {} changed nearly everywhere, so it is published whole ({:.3g} MB), as others like it "
    'will be; learner.dtype = "bfloat16" makes versions half as large, and most of them deltas'
)


class Dispatcher:
    """See workers/generators.py for the methods."""

    def __init__(
        self,
        open_fleet: Callable[[], Fleet],
        workers: Mapping[str, tuple[Spec, Open]],
        settings: FleetSettings,
        guard: GuardSettings,
        publisher: Publisher,
        reader: Reader,
        note: Note,
        unqualified: bool = False,
    ) -> None:
        """`open_fleet` is called on the dispatcher's own thread, `note` on any; `reader` reads
        tokens as the learner does; `unqualified`: workers without a certificate are used. Raises
        UserError when the fleet cannot be had.
        """
        self.progress: Callable[[], None] = no_progress
        self._shown: Counter[Purpose] = Counter()  # of what was not collected
        self._publisher, self._note = publisher, note
        self._publishing = threading.Lock()
        self._mending: threading.Thread | None = None
        self._mend_after, self._pause_s = 0.0, _REPAIR_S
        canary = next(iter(workers.values()))[1].canary
        assert canary is not None
        self._canary = canary
        self.weights: WeightVersion | None = None  # last published
        self._base: WeightVersion | None = None  # that adapters are of
        self._publishes_base: Publisher | None = None
        self._said_dense = False
        self._error: BaseException | None = None
        self._closing = False
        self._changed = threading.Condition()
        opened = threading.Event()

        def work() -> None:
            try:
                with closing(open_fleet()) as self._fleet:
                    given = self._fleet, workers, settings, guard, reader, note, unqualified
                    self._pool = WorkerPool(*given)
                    opened.set()
                    self._work()
            except BaseException as error:  # handed to the recipe's thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
            finally:
                opened.set()

        self._thread = threading.Thread(target=work, name="dispatcher", daemon=True)
        self._thread.start()
        if not opened.wait(_OPENING_S):
            self._closing = True
            raise TrainingError(f"the fleet did not open within {_OPENING_S:g} s")
        if self._error is not None:
            raise self._error

    @property
    def version(self) -> int | None:
        return None if self.weights is None else self.weights.number

    @property
    def size(self) -> int:
        return len(self._pool.facts())

    @property
    def keep(self) -> Keep:
        return self._pool.outcomes.keep

    @keep.setter
    def keep(self, keep: Keep) -> None:
        with self._changed:
            self._pool.outcomes.keep = keep

    @property
    def forget(self) -> Forget:
        return self._pool.outcomes.forget

    @forget.setter
    def forget(self, forget: Forget) -> None:
        with self._changed:
            self._pool.outcomes.forget = forget

    def publish(
        self,
        number: int,
        tensors: Mapping[str, Tensor],
        score: LearnerScore,
        adapter: Beside | None = None,
    ) -> Published:
        with self._publishing:
            size, about = (0, None) if adapter is None else self._stand_beside(adapter)
            written = self._publisher.publish(number, tensors, about)
        self.weights = written.version
        if written.dense and adapter is None and not self._said_dense:
            self._said_dense = True
            self._note("weights_whole", _DENSE.format(number, written.written_bytes / 1e6), "")
        target = Target(written.version, score(self._canary.text))
        with self._changed:
            self._pool.serve(target)
        self._fleet.wake()
        return Published(written.kind, size + written.written_bytes)

    def _stand_beside(self, adapter: Beside) -> tuple[int, Adapted]:
        """Publish the weights that an adapter is of, the first time. -> bytes written"""
        size = 0
        if self._base is None:
            self._publishes_base = self._publisher.of_base()
            whole = self._publishes_base.publish(0, adapter.base())
            self._base, size = whole.version, whole.written_bytes
        return size, Adapted(adapter.form, self._base)

    def order(self, work: Sequence[Work]) -> None:
        with self._changed:
            for each in work:
                self._pool.order(each)
        self._fleet.wake()

    def collect(self, purpose: Purpose, timeout_s: float) -> list[Outcome]:
        with self._changed:
            pool = self._pool
            self._changed.wait_for(
                lambda: pool.ready(purpose) or self._error or pool.all_gone, timeout_s
            )
            if self._error is not None:
                raise self._error
            self._show(purpose)
            if pool.ready(purpose):
                self._shown[purpose] = 0
                return pool.collect(purpose)
            if pool.all_gone:
                raise pool.why_gone()
            return []

    def quarantine(self, worker: str, reason: str, checks: Sequence[str]) -> None:
        with self._changed:
            self._pool.quarantine(worker, reason, checks)
        self._fleet.wake()

    def quarantined(self) -> frozenset[str]:
        return frozenset(name for name, facts in self.facts().items() if facts.state in OUT_OF_USE)

    def withdrawn(self) -> Set[int]:
        with self._changed:
            return frozenset(self._pool.outcomes.withdrawn)

    def dropped(self, worker: str) -> None:
        with self._changed:
            self._pool.dropped(worker)

    def facts(self) -> dict[str, WorkerMetrics]:
        with self._changed:
            return self._pool.facts()

    def peaks(self) -> dict[str, MemoryPeak]:
        with self._changed:
            return self._pool.peaks()

    def close(self) -> None:
        """Kill the workers. Bounded in time."""
        self._closing = True
        self._fleet.wake()
        self._thread.join(_CLOSING_S)

    def _show(self, purpose: Purpose) -> None:
        """Each problem that is done with once, though it may have to be done again."""
        while self._shown[purpose] < len(self._pool.outcomes.uncollected[purpose]):
            self._shown[purpose] += 1
            self.progress()

    def _work(self) -> None:
        while not self._closing:
            events = self._fleet.poll(_PATIENCE_S)
            with self._changed:
                self._pool.attend(events)
                self._changed.notify_all()
            if self._pool.doubts_store and time.monotonic() >= self._mend_after:
                self._pool.doubts_store = False
                self._look_at_store()

    def _look_at_store(self) -> None:
        """Have the store looked at, beside the work: that may take as long as a worker's fetch."""
        if self._mending is None or not self._mending.is_alive():
            self._mending = threading.Thread(target=self._mend_store, daemon=True)
            self._mending.start()

    def _mend_store(self) -> None:
        """Publish the version anew if what a worker could not fetch is not whole.

        The longer it is found whole, the rarer it is looked at: a link that is cut looks the same.
        """
        try:
            with self._publishing:
                mended = self._publisher.repair()
                if mended is None and self._publishes_base is not None:
                    mended = self._publishes_base.repair()
            if mended is None:
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            else:
                self._pause_s = _REPAIR_S
                message = f"version {mended.version.number} was damaged in the store"
                self._note("store_mended", f"{message}: published anew", "")
        except InterlockError as error:
            self._note("store_damaged", f"the store cannot be mended: {error}", "")
        self._mend_after = time.monotonic() + self._pause_s
