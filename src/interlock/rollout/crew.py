"""The workers of a fleet: what each is doing, what it is believed, and what is done when it fails.

               ┌─────────────────── restarting (back-off) <──────────────┐
               v                                                         │ lost, silent, late,
    start ─> starting ──Opened──> ready ──> loading ──Loaded──> ready    │ garbage, unproven
                                   ^  └──> generating ──Finished──> ready┤
                                   └── other weights are loaded first    │
    too many failures in a row ─> retired <──────────────────────────────┘
    numbers that are off ─> quarantined

A unit of work belongs to one worker at a time and is given out again whole when that worker fails.
Every state but ready has a deadline. No threads here: see dispatcher.py.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from interlock import config
from interlock.errors import ConfigError, TrainingError, UserError
from interlock.fleet.base import Event, Fleet, Lost, Spec
from interlock.records import Problem
from interlock.rollout import protocol
from interlock.rollout.generators import Keep, Outcome, Purpose, State, Work, WorkerFacts, no_keep
from interlock.rollout.judge import Target, doubt, mean_k3, refusal
from interlock.rollout.protocol import (
    Alive,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Prefetch,
)

_LONGEST_BACKOFF_S = 60.0
_REASON = 300  # characters of what a worker says of a failure
_OWN_PAUSE_S = 5.0  # without a look at the workers: this process was stopped, or busy
_UP = (State.LOADING, State.READY, State.GENERATING)
_GONE = (State.QUARANTINED, State.RETIRED)

Note = Callable[[str, str, str], None]  # kind, message, worker


def _brief(text: str) -> str:
    """What a worker says, as one line of plain text for events and terminals."""
    plain = "".join(c if c.isprintable() else " " for c in text[:_REASON])
    return " ".join(plain.split())


@dataclass(eq=False)
class _Unit:
    """Work on its way. `avoid`: workers that failed it, given another only if there is one."""

    number: int
    work: Work
    strikes: int = 0
    avoid: set[str] = field(default_factory=set)

    @property
    def urgency(self) -> tuple[bool, int]:
        """Evaluations first, then the oldest problem."""
        return self.work.purpose is not Purpose.EVALUATE, self.work.keys[0]


@dataclass(eq=False)
class _Worker:
    spec: Spec
    open: Open
    facts: WorkerFacts = field(default_factory=WorkerFacts)
    deadline: float = 0.0  # of the present state
    heard: float = 0.0  # last sign of life
    idle_until: float = 0.0  # back-off of a live process
    began: float = 0.0  # loading or generating
    failures: int = 0  # in a row
    unit: _Unit | None = None
    loading: Target | None = None
    serves: Target | None = None  # None: to be loaded and proven (again)
    proven: Target | None = None  # the last that this process proved
    warned: bool = False  # of its mismatch
    mistake: bool = False  # it was set up in a way that can never work
    reason: str = ""  # of the last failure

    @property
    def name(self) -> str:
        return self.spec.name


class Crew:
    """All workers, the work that waits, and the outcomes not yet collected."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, tuple[Spec, Open]],
        settings: config.Fleet,
        guard: config.Guard,
        prompt: Callable[[Problem], list[int]],
        vocab: int,
        note: Note,
    ) -> None:
        """Starts the workers. `prompt` gives the learner's tokens of a problem, `vocab` is how many
        tokens it knows.
        """
        self.outcomes: dict[Purpose, deque[Outcome]] = defaultdict(deque)
        self.keep: Keep = no_keep
        self.doubts_store = False  # a worker could not fetch the weights
        self._fleet, self._settings, self._guard = fleet, settings, guard
        self._prompt, self._vocab, self._note = prompt, vocab, note
        self._workers = {name: _Worker(spec, open) for name, (spec, open) in workers.items()}
        self._target: Target | None = None
        self._first: Target | None = None
        self._announce = False
        self._waiting: list[_Unit] = []
        self._units = 0
        self._condemned: list[str] = []  # to be killed
        self._looked = time.monotonic()
        for worker in self._workers.values():
            self._start(worker)

    @property
    def all_gone(self) -> bool:
        return all(worker.facts.state in _GONE for worker in self._workers.values())

    def why_gone(self) -> UserError | TrainingError:
        """What to raise when no worker is left: the user's mistake if none could ever work."""
        names: dict[str, list[str]] = defaultdict(list)
        for worker in self._workers.values():
            names[worker.reason].append(worker.name)
        whys = "; ".join(f"{', '.join(who)}: {why}" for why, who in names.items())
        if all(worker.mistake for worker in self._workers.values()):
            return ConfigError(f"no generator can run ({whys})")
        return TrainingError(f"no generator is left ({whys})")

    def facts(self) -> dict[str, WorkerFacts]:
        return {n: msgspec.structs.replace(worker.facts) for n, worker in self._workers.items()}

    def serve(self, target: Target) -> None:
        """Every worker is to load these weights before its next work."""
        self._first = self._first or target
        self._target, self._announce = target, True

    def order(self, work: Work) -> None:
        self._enqueue(work)

    def quarantine(self, name: str, reason: str) -> None:
        """Never use a worker again. Like all but `attend`, touches no process."""
        worker = self._workers[name]
        if worker.facts.state is not State.QUARANTINED:  # a retired one's groups go as well
            self._end(worker, State.QUARANTINED, reason)
            self._note("worker_quarantined", f"{name} is quarantined: {reason}", name)

    def dropped(self, name: str) -> None:
        if name in self._workers:  # a group from the ledger may be of one that is no more
            self._workers[name].facts.dropped += 1

    def attend(self, events: Sequence[Event]) -> None:
        """Take in what the fleet saw, look at the deadlines, and give out what can be done."""
        for name in self._condemned:
            self._fleet.kill(name)
        self._condemned.clear()
        self._forgive()
        for name, event in events:
            self._hear(self._workers[name], event)
        self._look_at_deadlines()
        self._give_out()

    def _start(self, worker: _Worker) -> None:
        worker.facts.state = State.STARTING
        worker.deadline = time.monotonic() + self._settings.start_s
        try:
            self._fleet.start(worker.spec)
        except ConfigError as error:
            worker.mistake = True
            self._retire(worker, str(error))
            return
        self._send(worker, worker.open)

    def _hear(self, worker: _Worker, event: bytes | Lost) -> None:
        if worker.facts.state in (*_GONE, State.RESTARTING):
            return  # what it said before it was given up
        worker.heard = time.monotonic()
        if isinstance(event, Lost):
            self._restart(worker, "worker_lost", _brief(event.reason))
            return
        try:
            reply = protocol.reply(event)
        except (ValueError, RecursionError) as error:  # MsgspecError, and what else bytes can do
            self._garbage(worker, f"a message that is none ({_brief(str(error))})")
            return
        state = worker.facts.state
        match reply:
            case Alive():
                pass
            case Failed():
                self._failed(worker, reply)
            case Opened() if state is State.STARTING:
                self._opened(worker, reply)
            case Loaded() if state is State.LOADING:
                self._loaded(worker, reply)
            case Finished() if state is State.GENERATING:
                self._finished(worker, reply)
            case _:
                self._garbage(worker, f"{type(reply).__name__} while {state}")

    def _opened(self, worker: _Worker, reply: Opened) -> None:
        facts = worker.facts
        facts.engine, facts.device = _brief(reply.engine), _brief(reply.device)
        facts.dtype = _brief(reply.dtype)
        facts.state = State.READY
        what = f"{facts.engine} on {facts.device}, {facts.dtype}"
        self._note("worker_started", f"{worker.name} is up: {what}", worker.name)

    def _loaded(self, worker: _Worker, reply: Loaded) -> None:
        facts, target, limit = worker.facts, worker.loading, self._guard.quarantine
        assert target is not None
        facts.seconds_loading += time.monotonic() - worker.began
        facts.fetched_bytes += reply.fetched_bytes
        before = worker.proven or self._first  # a new process may still serve what it opened with
        if why := doubt(reply, target, before, worker.open.canary, limit):
            self._restart(worker, "worker_unproven", why)
            return
        worker.serves = worker.proven = target
        facts.weight_version, facts.state = reply.number, State.READY
        facts.canary_k3 = mean_k3(target.text, reply.text)
        figures = f"k3 {facts.canary_k3:.2g} against the learner on the canary"
        if facts.canary_k3 > limit:
            self.quarantine(worker.name, f"{figures}, more than {limit:g}")
        elif facts.canary_k3 > self._guard.warn and not worker.warned:
            worker.warned = True
            limits = f"more than {self._guard.warn:g}"
            self._note("worker_mismatch", f"{worker.name}: {figures}, {limits}", worker.name)

    def _finished(self, worker: _Worker, reply: Finished) -> None:
        unit, facts, serves = worker.unit, worker.facts, worker.serves
        assert unit is not None and serves is not None
        why: str | None = f"an answer to unit {reply.unit} instead of {unit.number}"
        if reply.unit == unit.number:
            prompts = [self._prompt(problem) for problem in unit.work.problems]
            number = serves.version.number
            why = refusal(reply.groups, unit.work, prompts, number, worker.name, self._vocab)
        if why:
            self._garbage(worker, why)
            return
        found = [  # the verifier reads the problem: ours, not what the worker made of it
            (key, msgspec.structs.replace(group, problem=problem))
            for key, problem, group in zip(
                unit.work.keys, unit.work.problems, reply.groups, strict=True
            )
        ]
        if unit.work.purpose is Purpose.TRAIN:
            self.keep(found)
        self.outcomes[unit.work.purpose] += [Outcome(key, group) for key, group in found]
        facts.groups += len(found)
        facts.tokens += sum(len(c.tokens) for group in reply.groups for c in group.completions)
        facts.seconds_generating += time.monotonic() - worker.began
        worker.unit, worker.failures, facts.state = None, 0, State.READY

    def _failed(self, worker: _Worker, reply: Failed) -> None:
        """It is alive, and says that it could not do what it was asked."""
        state, reason = worker.facts.state, _brief(reply.reason)
        if state is State.READY:
            self._garbage(worker, "a failure of nothing that it was asked")
            return
        if reply.permanent and state is not State.GENERATING:
            worker.mistake = True
            self._retire(worker, reason)
            return
        self._note("worker_failed", f"{worker.name}: {reason}", worker.name)
        self._take_back(worker)
        worker.reason = reason
        if reply.permanent:  # the problem's fault, which is tried elsewhere and then set aside
            worker.facts.state = State.READY
            return
        worker.failures += 1
        worker.serves = worker.facts.weight_version = None
        self.doubts_store = self.doubts_store or state is State.LOADING
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
        elif state is State.STARTING:
            self._restart(worker, "", reason)
        else:
            worker.facts.state = State.READY
            worker.idle_until = time.monotonic() + self._backoff(worker)

    def _garbage(self, worker: _Worker, what: str) -> None:
        worker.facts.refused += 1
        self._restart(worker, "worker_garbage", f"refused: {what}")

    def _restart(self, worker: _Worker, kind: str, reason: str) -> None:
        """Kill a worker that is lost already, or not to be trusted; start it again later."""
        self._fleet.kill(worker.name)
        if kind:
            self._note(kind, f"{worker.name}: {reason}", worker.name)
            worker.failures += 1
        self._take_back(worker)
        worker.serves = worker.proven = worker.facts.weight_version = None
        worker.reason = reason
        if worker.failures >= self._settings.failures:
            self._retire(worker, f"{worker.failures} failures in a row, last: {reason}")
            return
        worker.facts.state = State.RESTARTING
        worker.deadline = time.monotonic() + self._backoff(worker)

    def _backoff(self, worker: _Worker) -> float:
        doublings = min(max(0, worker.failures - 1), 64)  # more are beyond a float
        return min(_LONGEST_BACKOFF_S, self._settings.backoff_s * 2**doublings)

    def _retire(self, worker: _Worker, reason: str) -> None:
        self._end(worker, State.RETIRED, reason)
        self._note("worker_retired", f"{worker.name} is retired: {reason}", worker.name)

    def _end(self, worker: _Worker, state: State, reason: str) -> None:
        self._condemned.append(worker.name)
        self._take_back(worker, struck=False)
        worker.facts.state, worker.reason = state, reason

    def _take_back(self, worker: _Worker, struck: bool = True) -> None:
        """Give the worker's unit out again; problems that keep failing are set aside."""
        unit, worker.unit = worker.unit, None
        if unit is None:
            return
        worker.facts.redispatched += 1
        unit.avoid.add(worker.name)
        unit.strikes += struck
        last, alone = self._settings.strikes, len(unit.work.keys) == 1
        if unit.strikes >= last and alone:
            self._set_aside(unit, worker)
        elif struck and unit.strikes >= last - 1 and not alone:
            for index in range(len(unit.work.keys)):  # to find the one
                strikes = min(unit.strikes, last - 1)
                self._enqueue(unit.work.part(index), strikes, unit.avoid)
        else:
            self._waiting.append(unit)

    def _set_aside(self, unit: _Unit, worker: _Worker) -> None:
        (key,), (problem,) = unit.work.keys, unit.work.problems
        why = f"{unit.strikes} workers failed on it, {worker.name} last"
        self.outcomes[unit.work.purpose].append(Outcome(key, None, why))
        self._note("problem_set_aside", f"problem {problem.id!r} is set aside: {why}", worker.name)

    def _enqueue(self, work: Work, strikes: int = 0, avoid: Set[str] = frozenset()) -> None:
        self._units += 1
        self._waiting.append(_Unit(self._units, work, strikes, set(avoid)))

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
            state = worker.facts.state
            if state is State.RESTARTING:
                if now >= worker.deadline:
                    worker.facts.restarts += 1
                    self._start(worker)
            elif state in _GONE:
                continue
            elif state is not State.READY and now >= worker.deadline:
                self._restart(worker, "worker_late", f"still {state} after its deadline")
            elif state is not State.STARTING and now >= worker.heard + self._settings.silence_s:
                silence = f"no sign of life for {self._settings.silence_s:g} s while {state}"
                self._restart(worker, "worker_silent", silence)

    def _give_out(self) -> None:
        """Weights to whoever holds others, then the most urgent work."""
        target, now = self._target, time.monotonic()
        if target is None:
            return
        version = target.version
        announced, self._announce = self._announce, False
        self._waiting.sort(key=lambda unit: unit.urgency)
        for worker in self._workers.values():
            if announced and worker.facts.state is State.GENERATING:
                self._send(worker, Prefetch(version.number, version.digest))
            if worker.facts.state is not State.READY or now < worker.idle_until:
                continue
            if worker.serves is not target:
                worker.loading = target
                self._begin(worker, State.LOADING, self._settings.load_s)
                self._send(worker, Load(version.number, version.digest))
            elif unit := self._pick(worker):
                worker.unit, work = unit, unit.work
                self._begin(worker, State.GENERATING, self._settings.unit_s)
                asked = list(work.problems), work.completions, work.sampling, work.seed
                self._send(worker, Generate(unit.number, version.number, *asked))

    def _pick(self, worker: _Worker) -> _Unit | None:
        """The most urgent unit; one that this worker failed, only if no other is up to take it."""
        up = {w.name for w in self._workers.values() if w.facts.state in _UP}
        for unit in self._waiting:
            if worker.name not in unit.avoid or up <= unit.avoid:
                self._waiting.remove(unit)
                return unit
        return None

    def _begin(self, worker: _Worker, state: State, limit_s: float) -> None:
        worker.facts.state, worker.began = state, time.monotonic()
        worker.deadline = worker.began + limit_s

    def _send(self, worker: _Worker, message: protocol.Request) -> None:
        self._fleet.send(worker.name, protocol.encode(message))
