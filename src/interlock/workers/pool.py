"""The workers of a fleet: what each is doing, what it is believed, and what is done when it fails.

               ┌─────────────────── restarting (back-off) <──────────────┐
               v                                                         │ lost, silent, late,
    start ─> starting ──Opened──> ready ──> loading ──Loaded──> ready    │ garbage, unproven
                                   ^  └──> generating ──Finished──> ready┤
                                   └── other weights are loaded first    │
    too many failures in a row ─> retired <──────────────────────────────┘
    numbers that are off ─> quarantined ──> qualifying ──passed──> restarting
                                 ^              │
                                 └── for good ──┘ failed, lost, late

What becomes of the work of a worker that fails stands in queue.py, how one may come back from
quarantine in requalification.py. Every state but ready has a deadline. No threads here: see
dispatcher.py.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from interlock.chips.admission import UNQUALIFIED
from interlock.config.schema import FleetSettings, GuardSettings
from interlock.errors import ConfigError, TrainingError, UserError
from interlock.fleet.base import Event, Fleet, Lost, Spec
from interlock.mismatch import mismatch
from interlock.records.metrics import OUT_OF_USE, EventKind, WorkerMetrics, WorkerState
from interlock.records.rl import Problem
from interlock.text import error_line, one_line
from interlock.workers import protocol
from interlock.workers.admission import admission, hint
from interlock.workers.generators import Forget, Keep, Outcome, Purpose, Work, no_forget, no_keep
from interlock.workers.handle import GONE, MESSAGE, REASON, UP, Note, WorkerHandle, why_gone
from interlock.workers.protocol import (
    Alive,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Prefetch,
    Qualified,
)
from interlock.workers.queue import UnitQueue
from interlock.workers.replies import Target, doubt, refusal
from interlock.workers.requalification import Requalification

_NUMERICS = ("engine-parity",)  # the checks that would tell more of what was seen of a worker
_PROOF = ("stale-weights",)
_GARBAGE = ("forward",)
_OWN_PAUSE_S = 5.0  # without a look at the workers: this process was stopped, or busy


class WorkerPool:
    """All workers, the work that waits, and the outcomes not yet collected."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, tuple[Spec, Open]],
        settings: FleetSettings,
        guard: GuardSettings,
        prompt: Callable[[Problem], list[int]],
        vocab: int,
        note: Note,
        unqualified: bool = False,
    ) -> None:
        """Starts the workers. `prompt` gives the learner's tokens of a problem, `vocab` is how many
        tokens it knows; `unqualified`: those without a certificate are used.
        """
        self.outcomes: dict[Purpose, deque[Outcome]] = defaultdict(deque)
        self.withdrawn: set[int] = set()  # see generators.py
        self.keep: Keep = no_keep
        self.forget: Forget = no_forget
        self.doubts_store = False  # a worker could not fetch the weights
        self._fleet, self._settings, self._guard = fleet, settings, guard
        self._prompt, self._vocab, self._note = prompt, vocab, note
        self._unqualified = unqualified
        self._workers = {name: WorkerHandle(spec, open) for name, (spec, open) in workers.items()}
        self._target: Target | None = None
        self._first: Target | None = None
        self._announce = False
        self._queue = UnitQueue(settings.strikes)
        self._requalification = Requalification(fleet, settings, note)
        self._to_kill: list[str] = []
        self._looked = time.monotonic()
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

    def serve(self, target: Target) -> None:
        """Every worker is to load these weights before its next work."""
        self._first = self._first or target
        self._target, self._announce = target, True

    def order(self, work: Work) -> None:
        self._queue.add(work)
        if work.purpose is Purpose.TRAIN:
            self.withdrawn.difference_update(work.keys)

    def ready(self, purpose: Purpose) -> bool:
        """Whether there is something to collect. Nothing is learned before every chip has shown
        that it may take part, and an evaluation is handed out whole: until then, the part of a
        worker that is put in quarantine can be made again.
        """
        settled = self.admitted if purpose is Purpose.TRAIN else not self._evaluating
        return settled and bool(self.outcomes[purpose])

    def collect(self, purpose: Purpose) -> list[Outcome]:
        found = list(self.outcomes.pop(purpose, ()))
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
        self._withdraw(worker)
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
        self._forgive()
        for name, event in events:
            self._hear(self._workers[name], event)
        for name in killed:
            if self._workers[name].may_return:
                self._requalification.begin(self._workers[name])
        self._look_at_deadlines()
        self._give_out()

    def _start(self, worker: WorkerHandle) -> None:
        worker.facts.state = WorkerState.STARTING
        worker.deadline = time.monotonic() + self._settings.start_s
        try:
            self._fleet.start(worker.spec)
        except ConfigError as error:
            worker.mistake = True
            self._retire(worker, str(error))
            return
        self._send(worker, worker.open)

    def _hear(self, worker: WorkerHandle, event: bytes | Lost) -> None:
        if worker.facts.state in (*GONE, WorkerState.RESTARTING):
            return  # what it said before it was given up
        worker.heard = time.monotonic()
        if isinstance(event, Lost):
            self._restart(worker, "worker_lost", one_line(event.reason, REASON))
            return
        try:
            reply = protocol.reply(event)
        except (ValueError, RecursionError) as error:  # MsgspecError, and what else bytes can do
            self._garbage(worker, f"a message that is none ({error_line(error, REASON)})")
            return
        state = worker.facts.state
        match reply:
            case Alive():
                pass
            case Failed():
                self._failed(worker, reply)
            case Opened() if state is WorkerState.STARTING:
                self._opened(worker, reply)
            case Loaded() if state is WorkerState.LOADING:
                self._loaded(worker, reply)
            case Finished() if state is WorkerState.GENERATING:
                self._finished(worker, reply)
            case Qualified() if state is WorkerState.QUALIFYING:
                self._requalification.judge(worker, reply)
            case _:
                self._garbage(worker, f"{type(reply).__name__} while {state}")

    def _opened(self, worker: WorkerHandle, reply: Opened) -> None:
        facts = worker.facts
        facts.engine, facts.device = one_line(reply.engine, REASON), one_line(reply.device, REASON)
        facts.dtype, worker.stack = one_line(reply.dtype, REASON), reply.stack
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

    def _loaded(self, worker: WorkerHandle, reply: Loaded) -> None:
        facts, target, limit = worker.facts, worker.loading, self._guard.quarantine
        assert target is not None
        facts.seconds_loading += time.monotonic() - worker.began
        facts.fetched_bytes += reply.fetched_bytes
        before = worker.proven or self._first  # a new process may still serve what it opened with
        if why := doubt(reply, target, before, worker.open.canary, limit):
            why = f"{why}; {hint(worker.open.settings, _PROOF)}"
            self._restart(worker, "worker_unproven", why)
            return
        worker.serves = worker.proven = target
        facts.weight_version, facts.state = reply.number, WorkerState.READY
        facts.canary_k3 = mismatch(target.text, reply.text).k3
        figures = f"k3 {facts.canary_k3:.2g} against the learner on the canary"
        if facts.canary_k3 > limit:
            self.quarantine(worker.name, f"{figures}, more than {limit:g}")
        elif facts.canary_k3 > self._guard.warn and not worker.warned:
            worker.warned = True
            limits = f"more than {self._guard.warn:g}"
            self._note("worker_mismatch", f"{worker.name}: {figures}, {limits}", worker.name)

    def _finished(self, worker: WorkerHandle, reply: Finished) -> None:
        unit, facts, serves = worker.unit, worker.facts, worker.serves
        assert unit is not None and serves is not None
        why: str | None = f"an answer to unit {reply.unit} instead of {unit.number}"
        if reply.unit == unit.number:
            prompts = [self._prompt(problem) for problem in unit.work.problems]
            number = serves.version.number
            why = refusal(reply.groups, unit.work, prompts, number, worker.name, self._vocab)
        if why:
            self._garbage(worker, f"{why}; {hint(worker.open.settings, _GARBAGE)}")
            return
        found = [  # the verifier reads the problem: ours, not what the worker made of it
            (key, msgspec.structs.replace(group, problem=problem))
            for key, problem, group in zip(
                unit.work.keys, unit.work.problems, reply.groups, strict=True
            )
        ]
        if unit.work.purpose is Purpose.TRAIN:
            self.keep(found)
        else:
            worker.evaluated.append(unit.work)
        self.outcomes[unit.work.purpose] += [Outcome(key, group) for key, group in found]
        facts.groups += len(found)
        facts.tokens += sum(len(c.tokens) for group in reply.groups for c in group.completions)
        facts.seconds_generating += time.monotonic() - worker.began
        worker.unit, worker.failures, facts.state = None, 0, WorkerState.READY

    def _failed(self, worker: WorkerHandle, reply: Failed) -> None:
        """It is alive, and says that it could not do what it was asked."""
        state, reason = worker.facts.state, one_line(reply.reason, REASON)
        if state is WorkerState.QUALIFYING:
            self._restart(worker, None, reason)
            return
        if state is WorkerState.READY:
            self._garbage(worker, "a failure of nothing that it was asked")
            return
        if reply.permanent and state is not WorkerState.GENERATING:
            worker.mistake = True
            self._retire(worker, reason)
            return
        self._note("worker_failed", f"{worker.name}: {reason}", worker.name)
        self._take_back(worker)
        worker.reason = reason
        if reply.permanent:  # the problem's fault, which is tried elsewhere and then set aside
            worker.facts.state = WorkerState.READY
            return
        worker.failures += 1
        worker.serves = worker.facts.weight_version = None
        self.doubts_store = self.doubts_store or state is WorkerState.LOADING
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
        elif state is WorkerState.STARTING:
            self._restart(worker, None, reason)
        else:
            worker.facts.state = WorkerState.READY
            worker.idle_until = time.monotonic() + worker.backoff(self._settings.backoff_s)

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
        self._take_back(worker)
        worker.forget_weights()
        worker.reason = reason
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
            return
        worker.facts.state = WorkerState.RESTARTING
        worker.deadline = time.monotonic() + worker.backoff(self._settings.backoff_s)

    def _retire(self, worker: WorkerHandle, reason: str) -> None:
        self._end(worker, WorkerState.RETIRED, reason)
        self._note("worker_retired", f"{worker.name} is retired: {reason}", worker.name)

    def _end(self, worker: WorkerHandle, state: WorkerState, reason: str) -> None:
        self._to_kill.append(worker.name)
        self._take_back(worker, struck=False)
        worker.facts.state, worker.reason = state, reason

    def _withdraw(self, worker: WorkerHandle) -> None:
        """What it gave is not to be used: whoever ordered the groups orders them again."""
        self.withdrawn.update(self.forget(worker.name))
        again = {key for work in worker.evaluated for key in work.keys}
        kept = [each for each in self.outcomes[Purpose.EVALUATE] if each.key not in again]
        self.outcomes[Purpose.EVALUATE] = deque(kept)
        for work in worker.evaluated:
            self._queue.add(work)
        worker.evaluated.clear()

    @property
    def _evaluating(self) -> bool:
        units = [worker.unit for worker in self._workers.values() if worker.unit]
        return any(u.work.purpose is Purpose.EVALUATE for u in [*units, *self._queue.waiting])

    def _take_back(self, worker: WorkerHandle, struck: bool = True) -> None:
        """Give the worker's unit out again, or set aside what keeps failing."""
        unit, worker.unit = worker.unit, None
        if unit is None:
            return
        worker.facts.redispatched += 1
        if why := self._queue.give_back(unit, worker.name, struck):
            (key,), (problem,) = unit.work.keys, unit.work.problems
            self.outcomes[unit.work.purpose].append(Outcome(key, None, why))
            message = f"problem {problem.id!r} is set aside: {why}"
            self._note("problem_set_aside", message, worker.name)

    def _forgive(self) -> None:
        now = time.monotonic()
        if (gap := now - self._looked) > _OWN_PAUSE_S:  # ours, not theirs: it does not count
            for worker in self._workers.values():
                worker.deadline += gap
                worker.heard += gap
        self._looked = now

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.facts.state is not WorkerState.RESTARTING:
                if fault := worker.overdue(now, self._settings.silence_s):
                    self._restart(worker, *fault)
            elif now >= worker.deadline:
                worker.facts.restarts += 1
                self._start(worker)

    def _give_out(self) -> None:
        """Weights to whoever holds others, then the most urgent work."""
        target, now = self._target, time.monotonic()
        if target is None:
            return
        version = target.version
        announced, self._announce = self._announce, False
        up = {name for name, worker in self._workers.items() if worker.facts.state in UP}
        for worker in self._workers.values():
            if announced and worker.facts.state is WorkerState.GENERATING:
                self._send(worker, Prefetch(version.number, version.digest))
            if worker.facts.state is not WorkerState.READY or now < worker.idle_until:
                continue
            if worker.serves is not target:
                worker.loading = target
                worker.begin(WorkerState.LOADING, now, self._settings.load_s)
                self._send(worker, Load(version.number, version.digest))
            elif unit := self._queue.pick(worker.name, up):
                worker.unit, work = unit, unit.work
                worker.begin(WorkerState.GENERATING, now, self._settings.unit_s)
                asked = list(work.problems), work.completions, work.sampling, work.seed
                self._send(worker, Generate(unit.number, version.number, *asked))

    def _send(self, worker: WorkerHandle, message: protocol.Request) -> None:
        most = protocol.reply_bytes(message, worker.open.canary)
        self._fleet.send(worker.name, protocol.encode(message), most)
