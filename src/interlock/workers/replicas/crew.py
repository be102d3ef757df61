"""The replicas of a pool: what each is doing, what it is believed, what is done when it fails.

    start ─> starting ──Opened──> certificate ──> canary or Load ──> band ──> ready ─┐
               ^                       │                              │       ^      │ new weights,
               │ back-off              v                              v       └──────┘ one at a time
    restarting <── lost, silent, late, garbage ──┐           refused: it serves nothing more
               └── too often in a row ─> retired

What it was drawing goes on elsewhere (desk.py), whatever befalls it. All that it is asked has a
deadline. No threads here: see pool.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from interlock.chips import vendors
from interlock.chips.admission import UNQUALIFIED
from interlock.config.schema import FleetSettings, GuardSettings
from interlock.errors import ConfigError
from interlock.fleet.base import Event, Fleet, Lost, Spec
from interlock.records.metrics import EventKind
from interlock.records.rl import WeightVersion
from interlock.records.serving import EndKind, ReplicaState
from interlock.text import error_line, one_line
from interlock.workers import protocol
from interlock.workers.admission import admission
from interlock.workers.handle import backoff
from interlock.workers.looks import Looks
from interlock.workers.protocol import (
    Alive,
    Brought,
    Drawn,
    Failed,
    Failure,
    Loaded,
    Open,
    Opened,
    Prompted,
    Room,
    Scored,
    Stretch,
)
from interlock.workers.replicas.changes import OWN, Changes, examine
from interlock.workers.replicas.desk import Desk
from interlock.workers.replicas.parity import CanaryScores, Parity, odd_stretch, rank
from interlock.workers.replicas.replica import GONE, OFF, Note, ReplicaHandle
from interlock.workers.replies import Target, doubt
from interlock.workers.words import REASON, quoted

_SHORTEST_STEP_S = 1e-4  # messages that were read together tell nothing of time


class PoolTerms(msgspec.Struct, frozen=True):
    """What a pool is held to, beside what all fleets are."""

    queue: int = 1024  # sequences that may wait
    examine_s: float = (
        60.0  # between two canaries of a replica that serves, when it has a slot free
    )
    drain_s: float = 30.0  # for what a replica has, before it loads other weights
    stall_s: float = 300.0  # without a token of anything that a replica was given
    unqualified: bool = False  # those without a certificate are used
    reference: str | None = None  # the replica that the others are compared with; see parity.py


TERMS = PoolTerms()


class Crew:
    """All replicas, and the desk with what they are to draw."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, tuple[Spec, Open]],
        settings: FleetSettings,
        band: GuardSettings,
        terms: PoolTerms,
        vocab: int,
        note: Note,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the workers. `vocab`: of the model, where a worker does not tell."""
        self._fleet, self._settings, self._band, self._terms = fleet, settings, band, terms
        self._vocab, self._note, self._clock = vocab, note, clock
        self.desk = Desk(bound=terms.queue, strikes=settings.strikes, fleet=fleet)
        self.changes = Changes(fleet, self.desk, settings.load_s, terms.drain_s)
        self._parity = Parity(band)
        self.replicas = [ReplicaHandle(spec, open) for spec, open in workers.values()]
        for each in self.replicas:
            each.rank = rank(each.name, each.open.settings, terms.reference)
        self._proven: dict[str, Target] = {}  # what each showed last, of which version
        self._looks = Looks(clock())
        for each in self.replicas:
            self._start(each)

    def attend(self, events: Sequence[Event]) -> None:
        """Take in what the fleet saw, look at the deadlines, and give out what can be done."""
        self._pass_time()
        by_name = {each.name: each for each in self.replicas}
        for name, event in events:
            self._hear(by_name[name], event)
        now = self._clock()
        self._look_at_deadlines(now)
        self._judge()
        self.desk.look(now, self.replicas)
        self.changes.drain(self.replicas, now)
        for part, reason in self.changes.hopeless(self.replicas):
            self.desk.end(part.job, EndKind.LOST, reason, self.replicas)
        for each in self.replicas:
            each.tell_drops(self._fleet)
        self.desk.give_out(self.replicas, self.changes.current(self.replicas), now)
        self.changes.plan(self.replicas, now)
        self._examine(now)

    def _start(self, replica: ReplicaHandle) -> None:
        now = self._clock()
        replica.state, replica.deadline = ReplicaState.STARTING, now + self._settings.start_s
        try:
            self._fleet.start(replica.spec)
        except ConfigError as error:
            self._end(replica, ReplicaState.RETIRED, "worker_retired", str(error))
            return
        replica.ask(self._fleet, replica.open)

    def _hear(self, replica: ReplicaHandle, event: bytes | Lost) -> None:
        if replica.state in OFF:
            return  # what it said before it was given up
        replica.heard = self._clock()
        if isinstance(event, Lost):
            self._restart(replica, "worker_lost", quoted(replica.spec, event.reason))
            return
        try:
            reply = protocol.reply(event)
        except ValueError as error:
            self._garbage(replica, f"a message that is none ({error_line(error, REASON)})")
            return
        change, exam = replica.change, replica.exam
        match reply:
            case Alive() | Room():
                pass
            case Failed():
                self._failed(replica, reply)
            case Opened() if not replica.opened and reply.id == replica.asked:
                self._opened(replica, reply)
            case Drawn() if replica.opened:
                self._drawn(replica, reply)
            case Prompted() if replica.opened:
                if odd := self.desk.prompted(replica, reply):
                    self._garbage(replica, odd)
            case Brought() if change and change.ask == reply.id and not change.brought:
                self.changes.brought(replica, self._clock())
            case Loaded() if change and change.ask == reply.id:
                self._loaded(replica, change.weights, reply)
            case Scored() if exam and exam.scoring == reply.id:
                replica.exam, replica.examined = None, self._clock()
                if odd := exam.scored(reply.logprobs):
                    self._garbage(replica, odd)
                elif exam.found is not None:
                    replica.evidence = exam.weights, exam.found
            case _:
                self._garbage(replica, f"{type(reply).__name__} while {replica.state}")

    def _opened(self, replica: ReplicaHandle, reply: Opened) -> None:
        replica.opened = True
        before = replica.facts.trust
        trust, found = admission(replica.open, reply)
        replica.facts = msgspec.structs.replace(
            replica.facts,
            engine=one_line(reply.engine, REASON),
            device=one_line(reply.device, REASON),
            dtype=one_line(reply.dtype, REASON),
            trust=trust,
        )
        settings = replica.open.settings
        kind = vendors.kind_of(settings.device)
        replica.kind = reply.engine, reply.dtype, kind, settings.kernel
        replica.slots = reply.slots if 0 < reply.slots <= settings.slots else settings.slots
        replica.vocab, replica.context = reply.vocab or self._vocab, reply.context
        if found is None:
            return
        why = one_line(found, REASON)
        if not self._terms.unqualified:
            self._refuse(replica, f"it may not serve on {settings.device}: {why}")
        elif before != UNQUALIFIED:
            message = f"{replica.name} serves unqualified on {settings.device}: {why}"
            self._note("unqualified", message, replica.name)

    def _drawn(self, replica: ReplicaHandle, reply: Drawn) -> None:
        now, seconds = self._clock(), self._clock() - replica.drew
        working, replica.drew = bool(replica.held), now
        begun = [
            part
            for each in {stretch.ask: stretch for stretch in reply.stretches}.values()
            if (part := replica.held.get(each.ask)) and not part.advanced
        ]
        prompts = sum(part.prompt_tokens for part in begun)
        prompts -= sum(each.cached for each in reply.stretches)
        for stretch in reply.stretches:
            if odd := self._stretch(replica, stretch, reply.version):
                self._garbage(replica, odd)
                return
        sequences, tokens = len(reply.stretches), sum(len(s.tokens) for s in reply.stretches)
        if not working or seconds < _SHORTEST_STEP_S:
            return
        if begun:
            replica.speed.saw_prompts(prompts, sequences, tokens, seconds)
        elif sequences:
            replica.speed.saw_step(sequences, tokens, seconds)

    def _stretch(self, replica: ReplicaHandle, stretch: Stretch, version: int) -> str | None:
        """Take it. Why it is garbage, if it is."""
        exam = replica.exam
        if exam is None or stretch.ask not in exam.drawing:
            return self.desk.drew(replica, stretch, version, self.replicas)
        drawn = exam.tokens.get(exam.drawing[stretch.ask], [])
        most = exam.canary.tokens - len(drawn)
        if version != exam.weights.number or stretch.number != 0:
            return f"a canary of choice {stretch.number}, version {version}"
        if odd := odd_stretch(stretch, replica.vocab, most):
            return odd
        if exam.drew(stretch):
            exam.scoring = replica.ask(self._fleet, exam.texts())
        return None

    def _loaded(self, replica: ReplicaHandle, weights: WeightVersion, reply: Loaded) -> None:
        canary = replica.open.canary
        assert canary is not None
        text = self._parity.text(weights) or reply.text
        before = self._proven.get(replica.name)
        if why := doubt(reply, Target(weights, text), before, canary, self._band.quarantine):
            self._restart(replica, "worker_unproven", why)
            return
        if told := replica.merges.told(replica.spec, reply.merged):
            self._note("adapter_merged", told, replica.name)
        replica.change, replica.misses = None, 0
        replica.evidence = weights, CanaryScores(reply.text, reply.decode, reply.prefill)

    def _judge(self) -> None:
        """Admit, or refuse, whoever has shown what it is, the reference before the others."""
        for replica in sorted(self.replicas, key=lambda each: each.rank):
            if replica.evidence is None:
                continue
            weights, found = replica.evidence
            first = "" if self._parity.knows(weights) else self._awaited(replica, weights)
            if first:
                replica.reason = f"waits for {first}, which it is compared with"
                continue
            replica.evidence = None
            judged = self._parity.judge(replica.name, weights, found)
            warned = replica.facts.parity.get("warning", "")
            parity = {**judged.facts, "warning": judged.warning}
            replica.facts = msgspec.structs.replace(replica.facts, parity=parity)
            if judged.refused:
                self._refuse(replica, judged.refused)
                continue
            if judged.warning and not warned:
                self._note("worker_mismatch", f"{replica.name}: {judged.warning}", replica.name)
            self._admit(replica, weights, found)

    def _awaited(self, replica: ReplicaHandle, weights: WeightVersion) -> str:
        """Who is to be the reference of these weights before `replica`, and is on its way."""
        for other in sorted(self.replicas, key=lambda each: each.rank):
            if other is replica:
                return ""
            exam, change = other.exam, other.change
            coming = exam is not None and exam.weights == weights
            coming = coming or (change is not None and change.weights == weights)
            starting = other.state is ReplicaState.STARTING and not other.counts["restarts"]
            if coming or (starting and other.serves is None and other.change is None):
                return other.name
        return ""

    def _admit(self, replica: ReplicaHandle, weights: WeightVersion, found: CanaryScores) -> None:
        facts, new = replica.facts, replica.serves != weights
        first = replica.serves is None
        replica.serves, replica.state, replica.reason = weights, ReplicaState.READY, ""
        self._proven[replica.name] = Target(weights, found.text)
        if first:
            what = f"{facts.engine} on {facts.device}, {facts.dtype}"
            reference = facts.parity["reference"]
            against = f"k3 {facts.parity['k3']:.2g} against {reference}"
            figures = "the reference" if reference == replica.name else against
            self._note("worker_started", f"{replica.name} serves: {what}; {figures}", replica.name)
        if new:
            replica.changed = self._clock()
        if new and weights != OWN:
            message = f"{replica.name} serves version {weights.number}"
            self._note("weights_served", message, replica.name)

    def _failed(self, replica: ReplicaHandle, reply: Failed) -> None:
        """It is alive, and says that it could not do what it was asked."""
        reason, mistake = quoted(replica.spec, reply.reason), reply.kind is Failure.MISTAKE
        change = replica.change
        if not replica.opened:
            if mistake:
                self._end(replica, ReplicaState.RETIRED, "worker_retired", reason)
            else:
                self._restart(replica, "worker_failed", reason)
            return
        if change is not None and change.ask in reply.ids and reply.kind is not Failure.FAULT:
            self._unloaded(replica, change.weights, mistake, reason)
            return
        if reply.kind is Failure.MISTAKE and reply.ids:
            for ask in [ask for ask in reply.ids if ask in replica.held]:
                self.desk.mistake(replica, ask, reason, self.replicas)
            exam = replica.exam
            if exam is None or not {*exam.drawing, exam.scoring} & set(reply.ids):
                return
        self._restart(replica, "worker_failed", reason)

    def _unloaded(
        self, replica: ReplicaHandle, weights: WeightVersion, unfit: bool, reason: str
    ) -> None:
        """It goes on with what it has, as nothing has changed."""
        replica.change, replica.misses = None, replica.misses + 1
        pause_s = backoff(self._settings.backoff_s, replica.misses)
        replica.change_after = self._clock() + pause_s
        self._note("worker_failed", f"{replica.name}: {reason}", replica.name)
        if replica.serves is not None:
            replica.state = ReplicaState.READY
        else:
            replica.reason = reason
        self.changes.missed(weights)
        if unfit and weights not in self.changes.unfit:
            self.changes.unfit.add(weights)
            message = f"version {weights.number} is not served: {reason}"
            self._note("weights_unfit", message, replica.name)

    def _garbage(self, replica: ReplicaHandle, what: str) -> None:
        self._restart(replica, "worker_garbage", f"refused: {what}")

    def _restart(self, replica: ReplicaHandle, kind: EventKind, reason: str) -> None:
        """Kill a replica that is lost already, or not to be trusted; start it again later."""
        self._note(kind, f"{replica.name}: {reason}", replica.name)
        replica.failures += 1
        if replica.failures >= self._settings.failures:
            why = f"{replica.failures} failures in a row, last: {reason}"
            self._end(replica, ReplicaState.RETIRED, "worker_retired", why, struck=True)
            return
        self._stop(replica, reason, struck=True)
        replica.state, replica.reason = ReplicaState.RESTARTING, reason
        pause_s = backoff(self._settings.backoff_s, replica.failures)
        replica.deadline = self._clock() + pause_s

    def _refuse(self, replica: ReplicaHandle, reason: str) -> None:
        self._end(replica, ReplicaState.REFUSED, "worker_refused", reason)

    def _end(
        self,
        replica: ReplicaHandle,
        state: ReplicaState,
        kind: EventKind,
        reason: str,
        struck: bool = False,
    ) -> None:
        self._stop(replica, reason, struck)
        replica.state, replica.reason = state, reason
        self._note(kind, f"{replica.name} is {state}: {reason}", replica.name)

    def _stop(self, replica: ReplicaHandle, reason: str, struck: bool) -> None:
        self._fleet.kill(replica.name)
        self.desk.take_back(replica, reason, struck, self.replicas)
        self.desk.seating.forget(replica)
        replica.forget_process()
        self._proven.pop(replica.name, None)

    def _examine(self, now: float) -> None:
        """Canaries while serving, where a slot is free."""
        for each in self.replicas:
            due = each.state is ReplicaState.READY and now >= each.examined + self._terms.examine_s
            busy = each.change or each.exam or each.evidence or each.running >= each.slots
            if due and not busy and each.serves is not None:
                examine(each, self._fleet, each.serves, now + self._settings.load_s)

    def _pass_time(self) -> None:
        passed = self._looks.look(self._clock())
        for each in self.replicas:
            passed.excuse(each)
            if each.state not in GONE:
                passed.excuse_delay(each, self._fleet.pid(each.name))

    def _look_at_deadlines(self, now: float) -> None:
        for each in self.replicas:
            if each.up:
                late = each.overdue(now, self._settings.silence_s, self._terms.stall_s)
                if late is not None:
                    self._restart(each, *late)
            elif each.state is ReplicaState.RESTARTING and now >= each.deadline:
                each.count(restarts=1)
                self._start(each)
