"""Replicas as worker processes of a fleet, behind the seam that the endpoint uses (base.py).

    the endpoint's threads ── begin, cancel, facts ──┐  lock   ┌── attend <── poll ── fleet
                           <─ take(Told) ────────────└─ Crew ──┘   the pool's thread
    a store of weight versions <── polled ── another thread ── target

The pool's thread owns the fleet, and calls `take` when it holds no lock. What happens to a replica
stands in crew.py, to a generation in desk.py.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from interlock.config.schema import FleetSettings, GuardSettings
from interlock.engine.base import Limits
from interlock.errors import ConfigError, InterlockError, TrainingError, Unserved
from interlock.fleet.base import Fleet, Spec
from interlock.records.metrics import EventKind
from interlock.records.rl import WeightVersion
from interlock.records.serving import EndKind, Generation, ReplicaFacts
from interlock.text import error_line
from interlock.workers.protocol import Open
from interlock.workers.replicas.base import Take, Ticket
from interlock.workers.replicas.changes import OWN
from interlock.workers.replicas.crew import TERMS, Crew, PoolTerms
from interlock.workers.replicas.desk import check
from interlock.workers.replicas.replica import GONE, Note
from interlock.workers.words import REASON

if TYPE_CHECKING:
    from interlock.sync.newest import StoreView

_PATIENCE_S = 0.5  # between two looks at the deadlines
_OPENING_S = 120.0  # for the fleet itself, not its workers
_CLOSING_S = 30.0
_STORES = 256  # versions of which it is remembered where they are


class Pool:
    """See workers/replicas/base.py for the methods. Example: `open_pool` in opening.py."""

    def __init__(
        self,
        open_fleet: Callable[[], Fleet],
        workers: Mapping[str, tuple[Spec, Open]],
        settings: FleetSettings,
        band: GuardSettings,
        limits: Limits,
        note: Note,
        terms: PoolTerms = TERMS,
        store: "StoreView | None" = None,
        poll_s: float = 2.0,
    ) -> None:
        """`open_fleet` is called on the pool's own thread, `note` on any; `limits`: of the model,
        before a replica tells its own; `store`: its newest version is served, looked for every
        `poll_s`. Raises UserError when the fleet cannot be had, InterlockError when the store
        cannot be read.
        """
        self._note, self._limits, self._store, self._poll_s = note, limits, store, poll_s
        self._notes: list[tuple[EventKind, str, str]] = []  # to be told without the lock
        self._lock = threading.RLock()
        self._pinned: WeightVersion | None = None
        newest = None if store is None else store.newest()
        self._newest = OWN if newest is None else newest.version
        self._closing = threading.Event()  # nothing more is taken
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._idle = threading.Condition(self._lock)
        self._opened = threading.Event()

        def crew(fleet: Fleet) -> Crew:
            given = fleet, workers, settings, band, terms, limits.vocab
            made = Crew(*given, lambda *said: self._notes.append(said))
            made.changes.target = self._newest
            if newest is not None:
                made.changes.stores[newest.version] = newest.url
            return made

        self._thread = threading.Thread(
            target=self._run, args=(open_fleet, crew), name="replicas", daemon=True
        )
        self._thread.start()
        if not self._opened.wait(_OPENING_S):
            self._ending.set()
            raise TrainingError(f"the fleet did not open within {_OPENING_S:g} s")
        if self._error is not None:
            raise self._error
        if store is not None:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def _run(self, open_fleet: Callable[[], Fleet], crew: Callable[[Fleet], Crew]) -> None:
        """The pool's own thread, from the fleet's opening to its end."""
        try:
            with closing(open_fleet()) as self._fleet:
                self._crew = crew(self._fleet)
                self._opened.set()
                self._work()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._lose_all()
            self._opened.set()

    @property
    def limits(self) -> Limits:
        with self._lock:
            known = [each for each in self._crew.replicas if each.up and each.context]
            serving = sum(each.slots for each in known if each.state.serves)
            context = min([self._limits.context, *(each.context for each in known)])
            vocab = min([self._limits.vocab, *(each.vocab for each in known)])
            return Limits(vocab, context, serving)

    @property
    def version(self) -> int:
        with self._lock:
            changes = self._crew.changes
            served = changes.current(self._crew.replicas) or changes.last or changes.target
            return served.number

    @property
    def waiting(self) -> int:
        with self._lock:
            return self._crew.desk.waiting

    def begin(self, generation: Generation, take: Take, deadline_s: float) -> Ticket:
        vocab, context, _ = self.limits
        check(generation, vocab, context)
        with self._lock:
            self._check_open()
            deadline = time.monotonic() + deadline_s
            desk, replicas = self._crew.desk, self._crew.replicas
            ticket = desk.accept(generation, take, deadline, replicas)
        self._fleet.wake()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._lock:
            self._crew.desk.cancel(ticket, self._crew.replicas)
            self._idle.notify_all()
        self._fleet.wake()

    def facts(self) -> list[ReplicaFacts]:
        with self._lock:
            return [each.shown() for each in self._crew.replicas]

    def drain(self, name: str, on: bool) -> None:
        with self._lock:
            names = [each.name for each in self._crew.replicas]
            if name not in names:
                raise ConfigError(f"replica {name!r} is unknown; there are {', '.join(names)}")
            self._crew.replicas[names.index(name)].put_aside = on
        self._fleet.wake()

    def pin(self, version: int | None) -> None:
        pinned = None if version is None else self._version(version)
        with self._lock:
            self._pinned = pinned
            self._aim()
        self._fleet.wake()

    def close(self, drain_s: float) -> None:
        self._closing.set()
        with self._lock:
            self._idle.wait_for(lambda: not self._crew.desk.jobs, max(0.0, drain_s))
        self._ending.set()
        self._fleet.wake()
        self._thread.join(_CLOSING_S)

    def _check_open(self) -> None:
        """Raise Unserved unless somebody serves, or will in a moment."""
        if self._closing.is_set() or self._error is not None:
            raise Unserved("the server is closing; ask another one", 1.0)
        replicas = self._crew.replicas
        if all(each.state in GONE for each in replicas):
            why = "; ".join(f"{each.name} is {each.state}: {each.reason}" for each in replicas)
            raise Unserved(f"no replica serves ({why})", 60.0)
        # One that restarts or loads weights is waited for, one that never served is not.
        known = [each for each in replicas if each.state not in GONE and each.admitted]
        if not known:
            raise Unserved("no replica is up yet; ask again in a moment", 1.0)
        if all(each.put_aside for each in known):
            raise Unserved("all replicas are drained; let one serve again", 10.0)

    def _version(self, number: int) -> WeightVersion:
        """Raises ConfigError when it cannot be had."""
        with self._lock:
            serves = (each.serves for each in self._crew.replicas)
            served = [each for each in serves if each is not None and each.number == number]
        if served:
            return served[0]
        if self._store is None:
            raise ConfigError(f"version {number} is not served, and no run is followed; pin 0")
        try:
            found = self._store.version(number)
        except InterlockError as error:
            raise ConfigError(f"version {number} cannot be had: {error_line(error)}") from None
        with self._lock:
            self._crew.changes.stores[found.version] = found.url
        return found.version

    def _aim(self) -> None:
        self._crew.changes.target = self._pinned or self._newest

    def _follow(self) -> None:
        """Look for newer versions until the pool ends."""
        assert self._store is not None
        told = ""
        while not self._ending.wait(self._poll_s):
            try:
                found, why = self._store.newest(), ""
            except InterlockError as error:
                found, why = None, error_line(error, REASON)
            if why and why != told:
                self._note("store_damaged", f"no newer version can be looked for: {why}", "")
            told = why
            if found is not None and found.version != self._newest:
                with self._lock:
                    self._newest = found.version
                    stores = self._crew.changes.stores
                    stores[found.version] = found.url
                    for old in list(stores)[:-_STORES]:
                        del stores[old]
                    self._aim()
                self._fleet.wake()

    def _work(self) -> None:
        while not self._ending.is_set():
            events = self._fleet.poll(_PATIENCE_S)
            with self._lock:
                self._crew.attend(events)
            self._tell()

    def _tell(self) -> None:
        """Call every `take` and `note` that is due, without the lock."""
        desk = self._crew.desk
        while True:
            with self._lock:
                told, desk.told = desk.told, []
                notes, self._notes = self._notes, []
                if not told and not notes:
                    self._idle.notify_all()
                    return
            for each in notes:
                self._note(*each)
            for job, what in told:
                if not job.forgotten:
                    job.take(what)

    def _lose_all(self) -> None:
        """The pool ends: nobody is left waiting."""
        if not hasattr(self, "_crew"):
            return
        self._closing.set()
        with self._lock:
            desk = self._crew.desk
            for job in list(desk.jobs.values()):
                desk.end(job, EndKind.LOST, "the server is closing", [])
        self._tell()
