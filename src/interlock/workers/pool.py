"""The workers of a fleet: what each is doing, what it is believed, and what is done when it fails.

               ┌─────────────────── restarting (back-off) <──────────────┐
               v                                                         │ lost, silent, late,
    start ─> starting ──Opened──> ready ── loading ──Loaded──> serving   │ garbage, unproven
                                       └── generating ──Answered ────────┤
    too many failures in a row ─> retired <──────────────────────────────┘
    numbers that are off ─> quarantined ──> qualifying ──passed──> restarting
                                 ^              │
                                 └── for good ──┘ failed, lost, late

A worker that is up loads new weights beside generating, unless it computes an exact unit, which has
the worker to itself. Who is given what stands in placement.py, what becomes of units and groups in
queue.py and outcomes.py, how a worker may come back from quarantine in requalification.py. All that
a worker is asked has a deadline; what a process on this machine waits for processors that others
hold does not count, up to four fifths of the time. No threads here: see dispatcher.py.
"""

import time
from collections.abc import Mapping, Sequence

import msgspec

from interlock.chips.admission import UNQUALIFIED
from interlock.config.schema import FleetSettings, GuardSettings
from interlock.errors import ConfigError, TrainingError, UserError
from interlock.fleet.base import Event, Fleet, Lost, Spec
from interlock.mismatch import mismatch
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import OUT_OF_USE, EventKind, WorkerMetrics, WorkerState
from interlock.records.rl import Completion, Group
from interlock.text import error_line, one_line
from interlock.workers import protocol
from interlock.workers.admission import admission, hint
from interlock.workers.generators import Outcome, Purpose, Work
from interlock.workers.handle import (
    GONE,
    MESSAGE,
    UP,
    HeldUnit,
    Note,
    WorkerHandle,
    backoff,
    why_gone,
)
from interlock.workers.looks import Looks
from interlock.workers.outcomes import Outcomes
from interlock.workers.placement import Placement
from interlock.workers.protocol import (
    Alive,
    Answered,
    Failed,
    Failure,
    Loaded,
    Open,
    Opened,
    Qualified,
    Room,
)
from interlock.workers.queue import UnitQueue
from interlock.workers.reading import Reader
from interlock.workers.replies import Target, doubt, refusal
from interlock.workers.requalification import Requalification
from interlock.workers.words import REASON, quoted

_NUMERICS = ("engine-parity",)  # the checks that would tell more of what was seen of a worker
_PROOF = ("stale-weights",)
_GARBAGE = ("forward",)


class WorkerPool:
    """All workers, the units that wait, and the outcomes not yet collected."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, tuple[Spec, Open]],
        settings: FleetSettings,
        guard: GuardSettings,
        reader: Reader,
        note: Note,
        unqualified: bool = False,
    ) -> None:
        """Starts the workers. `reader` reads tokens as the learner does; `unqualified`: those
        without a certificate are used.
        """
        self.doubts_store = False  # a worker could not fetch the weights
        self._fleet, self._settings, self._guard = fleet, settings, guard
        self._reader, self._note = reader, note
        self._unqualified = unqualified
        self._workers = {name: WorkerHandle(spec, open) for name, (spec, open) in workers.items()}
        self._target: Target | None = None
        self._first: Target | None = None
        self._queue = UnitQueue(settings.strikes)
        self.outcomes = Outcomes(self._queue, note)
        self._placement = Placement(fleet, settings, self._queue)
        self._requalification = Requalification(fleet, settings, note)
        self._to_kill: list[str] = []
        self._looks = Looks(time.monotonic())
        for worker in self._workers.values():
            self._start(worker)

    @property
    def all_gone(self) -> bool:
        workers = self._workers.values()
        return all(w.facts.state in GONE and not w.may_return for w in workers)

    @property
    def admitted(self) -> bool:
        """Whether all that need a certificate have shown it, or failed before they could."""
        return not any(worker.awaited for worker in self._workers.values())

    def why_gone(self) -> UserError | TrainingError:
        """What to raise when no worker is left."""
        return why_gone(list(self._workers.values()))

    def facts(self) -> dict[str, WorkerMetrics]:
        return {n: msgspec.structs.replace(worker.facts) for n, worker in self._workers.items()}

    def peaks(self) -> dict[str, MemoryPeak]:
        return {name: worker.take_peak() for name, worker in self._workers.items()}

    def serve(self, target: Target) -> None:
        """Every worker is to load these weights, as soon as it may."""
        self._first = self._first or target
        self._target = target

    def order(self, work: Work) -> None:
        self._queue.add(work)
        if work.purpose is Purpose.TRAIN:
            self.outcomes.withdrawn.difference_update(work.keys)

    def ready(self, purpose: Purpose) -> bool:
        """Whether there is something to collect. Nothing is learned before every chip has shown
        that it may take part, and an evaluation is handed out whole: until then, the part of a
        worker that is put in quarantine can be made again.
        """
        settled = self.admitted if purpose is Purpose.TRAIN else not self._evaluating
        return settled and bool(self.outcomes.uncollected[purpose])

    def collect(self, purpose: Purpose) -> list[Outcome]:
        found = self.outcomes.collect(purpose)
        if purpose is Purpose.EVALUATE:
            for worker in self._workers.values():
                worker.evaluated.clear()
        return found

    def quarantine(self, name: str, reason: str, checks: Sequence[str] = _NUMERICS) -> None:
        """Use a worker no more, unless it is qualified anew; `checks` would tell more.

        Like all but `attend`, touches no process.
        """
        worker = self._workers[name]
        if worker.facts.state in OUT_OF_USE:
            return
        again = worker.facts.requalified < self._settings.requalify
        # A retired one's groups go as well, but it does not come back.
        worker.may_return = again and worker.facts.state is not WorkerState.RETIRED
        self._end(worker, WorkerState.QUARANTINED, reason)
        self.outcomes.withdraw(worker)
        message = f"{name} is quarantined: {reason}; {hint(worker.open.settings, checks)}"
        self._note("worker_quarantined", message, name)

    def dropped(self, name: str) -> None:
        if name in self._workers:  # a group from the ledger may be of one that is no more
            self._workers[name].facts.dropped += 1

    def attend(self, events: Sequence[Event]) -> None:
        """Take in what the fleet saw, look at the deadlines, and give out what can be done."""
        killed, self._to_kill = self._to_kill, []
        for name in killed:
            self._fleet.kill(name)
        self._pass_time()
        for name, event in events:
            self._hear(self._workers[name], event)
        for name in killed:
            if self._workers[name].may_return:
                self._requalification.begin(self._workers[name])
        self._look_at_deadlines()
        if self._target is not None:
            self._placement.give_out(list(self._workers.values()), self._target)
        for worker in self._workers.values():
            worker.settle()

    def _start(self, worker: WorkerHandle) -> None:
        worker.begin(WorkerState.STARTING, time.monotonic() + self._settings.start_s)
        try:
            self._fleet.start(worker.spec)
        except ConfigError as error:
            worker.mistake = True
            self._retire(worker, str(error))
            return
        self._placement.ask(worker, worker.open)

    def _hear(self, worker: WorkerHandle, event: bytes | Lost) -> None:
        if worker.facts.state in (*GONE, WorkerState.RESTARTING):
            return  # what it said before it was given up
        worker.heard = time.monotonic()
        if isinstance(event, Lost):
            self._restart(worker, "worker_lost", quoted(worker.spec, event.reason))
            return
        try:
            reply = protocol.reply(event)
        except ValueError as error:
            self._garbage(worker, f"a message that is none ({error_line(error, REASON)})")
            return
        worker.settle()
        state, loading = worker.facts.state, worker.loading
        match reply:
            case Alive():
                worker.peak |= reply.peak
            case Failed():
                self._failed(worker, reply)
            case Opened() if state is WorkerState.STARTING and reply.id == worker.asked:
                self._opened(worker, reply)
            case Room() if state in UP:
                worker.has_room(reply)
            case Loaded() if loading is not None and loading.id == reply.id:
                self._loaded(worker, loading.target, reply)
            case Answered() if reply.id in worker.held:
                self._answered(worker, worker.held[reply.id], reply)
            case Qualified() if state is WorkerState.QUALIFYING:
                self._requalification.judge(worker, reply)
            case _:
                self._garbage(worker, f"{type(reply).__name__} while {state}")

    def _opened(self, worker: WorkerHandle, reply: Opened) -> None:
        facts = worker.facts
        worker.describe(reply)
        if not self._admit(worker, reply):
            return
        facts.state = WorkerState.READY
        what = f"{facts.engine} on {facts.device}, {facts.dtype}"
        self._note("worker_started", f"{worker.name} is up: {what}", worker.name)

    def _admit(self, worker: WorkerHandle, reply: Opened) -> bool:
        """Whether its chip may generate. Raises ConfigError on the first start of one that may not:
        the run was set up that way.
        """
        facts, device = worker.facts, worker.open.settings.device
        before, (facts.trust, found) = facts.trust, admission(worker.open, reply)
        if found is None:
            return True
        why = one_line(found, MESSAGE)
        if self._unqualified:
            if before != UNQUALIFIED:
                message = f"{worker.name} generates unqualified on {device}: {why}"
                self._note("unqualified", message, worker.name)
            return True
        worker.mistake = True
        self._retire(worker, why)
        if not facts.restarts:
            raise ConfigError(f"{worker.name} may not generate on {device}: {why}")
        return False

    def _loaded(self, worker: WorkerHandle, target: Target, reply: Loaded) -> None:
        facts, limit, canary = worker.facts, self._guard.quarantine, worker.open.canary
        assert canary is not None
        facts.fetched_bytes += reply.fetched_bytes
        # A new process may still serve what it opened with.
        before = worker.proven[-1] if worker.proven else self._first
        if why := doubt(reply, target, before, canary, limit):
            why = f"{why}; {hint(worker.open.settings, _PROOF)}"
            self._restart(worker, "worker_unproven", why)
            return
        worker.prove(target)
        if told := worker.merges.told(worker.spec, reply.merged):
            self._note("adapter_merged", told, worker.name)
        facts.weight_version = reply.number
        facts.canary_k3 = mismatch(target.text, reply.text).k3
        figures = f"k3 {facts.canary_k3:.2g} against the learner on the canary"
        if facts.canary_k3 > limit:
            self.quarantine(worker.name, f"{figures}, more than {limit:g}")
        elif facts.canary_k3 > self._guard.warn and not worker.warned:
            worker.warned = True
            limits = f"more than {self._guard.warn:g}"
            self._note("worker_mismatch", f"{worker.name}: {figures}, {limits}", worker.name)

    def _answered(self, worker: WorkerHandle, held: HeldUnit, reply: Answered) -> None:
        work, place = held.unit.work, reply.index
        read: list[Completion] | None = None
        why: str | None = f"an answer to problem {place} of those missing: {held.missing}"
        if place in held.missing:
            problem = work.problems[place]
            versions = worker.versions_since(held.served)
            why = refusal(reply, work, self._reader.prompt(problem), versions, self._reader.vocab)
            if why is None:
                read = self._reader.read(reply.completions, work.sampling, problem)
                why = None if read else f"{problem.id!r:.80}: tokens behind its end, or no end"
        if why or read is None:
            self._garbage(worker, f"{why}; {hint(worker.open.settings, _GARBAGE)}")
            return
        # The verifier reads problem and text: ours, not what the worker made of them.
        opening = self._reader.opening(work.problems[place])
        group = Group(work.problems[place], reply.prompt_tokens, read, worker.name, opening)
        self.outcomes.take(worker, held, place, group)
        if not held.missing:
            del worker.held[reply.id]
            if not worker.cut_off:
                worker.failures = 0

    def _failed(self, worker: WorkerHandle, reply: Failed) -> None:
        """It is alive, and says that it could not do what it was asked."""
        state, reason = worker.facts.state, quoted(worker.spec, reply.reason)
        if state is WorkerState.QUALIFYING:
            self._restart(worker, None, reason)
            return
        mistake = reply.kind is Failure.MISTAKE
        loading = worker.loading if worker.loading and worker.loading.id in reply.ids else None
        units = [number for number in worker.held if number in reply.ids]
        if state is not WorkerState.STARTING and not (loading or units):
            self._garbage(worker, "a failure of nothing that it was asked")
            return
        if mistake and (loading or not units):
            worker.mistake = True
            self._retire(worker, reason)
            return
        self._note("worker_failed", f"{worker.name}: {reason}", worker.name)
        worker.reason = reason
        self._take_back(worker, units)
        if mistake:  # the problem's fault, which is tried elsewhere and then set aside
            return
        worker.failures += 1
        if loading is not None:
            worker.loading = None
        again = time.monotonic() + backoff(self._settings.backoff_s, worker.failures)
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
        elif state is WorkerState.STARTING:
            self._restart(worker, None, reason)
        elif reply.kind is Failure.LINK:  # it goes on with the weights that it has
            self.doubts_store = worker.cut_off = True
            worker.load_after = again
        else:
            worker.serves = worker.facts.weight_version = None
            worker.idle_until = again

    def _garbage(self, worker: WorkerHandle, what: str) -> None:
        worker.facts.refused += 1
        self._restart(worker, "worker_garbage", f"refused: {what}")

    def _restart(self, worker: WorkerHandle, kind: EventKind | None, reason: str) -> None:
        """Kill a worker that is lost already, or not to be trusted; start it again later."""
        self._fleet.kill(worker.name)
        if worker.facts.state is WorkerState.QUALIFYING:
            self._requalification.keep_out(worker, f"it could not be qualified: {reason}")
            return
        if kind:
            self._note(kind, f"{worker.name}: {reason}", worker.name)
            worker.failures += 1
        self._take_back(worker, list(worker.held))
        worker.forget_process()
        worker.reason = reason
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
            return
        now = time.monotonic()
        worker.begin(
            WorkerState.RESTARTING, now + backoff(self._settings.backoff_s, worker.failures)
        )

    def _retire(self, worker: WorkerHandle, reason: str) -> None:
        self._end(worker, WorkerState.RETIRED, reason)
        self._note("worker_retired", f"{worker.name} is retired: {reason}", worker.name)

    def _end(self, worker: WorkerHandle, state: WorkerState, reason: str) -> None:
        self._to_kill.append(worker.name)
        self._take_back(worker, list(worker.held), struck=False)
        worker.loading = None
        worker.facts.state, worker.reason = state, reason

    @property
    def _evaluating(self) -> bool:
        given = [held.unit for worker in self._workers.values() for held in worker.held.values()]
        return any(u.work.purpose is Purpose.EVALUATE for u in [*given, *self._queue.waiting])

    def _take_back(self, worker: WorkerHandle, numbers: Sequence[int], struck: bool = True) -> None:
        for number in numbers:
            self.outcomes.take_back(worker, worker.held.pop(number), struck)

    def _pass_time(self) -> None:
        passed = self._looks.look(time.monotonic())
        for worker in self._workers.values():
            worker.elapse(passed.gap)
            passed.excuse(worker)
            passed.excuse_delay(worker, self._fleet.pid(worker.name))

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.facts.state is not WorkerState.RESTARTING:
                if fault := worker.overdue(now, self._settings.silence_s):
                    self._restart(worker, *fault)
            elif now >= worker.deadline:
                worker.facts.restarts += 1
                self._start(worker)
