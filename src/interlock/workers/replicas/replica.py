"""One replica as the pool sees it: what it does, what it serves, how fast it is."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from interlock.fleet.base import Fleet, Spec
from interlock.processes.child import UNASKED_BYTES
from interlock.processes.deadline import MOST_TIMES
from interlock.processes.run_delay import RunDelay
from interlock.records.metrics import EventKind
from interlock.records.rl import WeightVersion
from interlock.records.serving import ReplicaFacts, ReplicaState
from interlock.workers import protocol, sizes
from interlock.workers.protocol import Abort, Open
from interlock.workers.replicas.jobs import LivePart, sequences
from interlock.workers.replicas.parity import CanaryExam, CanaryScores
from interlock.workers.replicas.speed import ReplicaSpeed
from interlock.workers.words import MergeNotice

GONE = (ReplicaState.REFUSED, ReplicaState.RETIRED)
OFF = (*GONE, ReplicaState.RESTARTING)  # no process of it runs

Note = Callable[[EventKind, str, str], None]  # kind, message, replica


@dataclass(eq=False)
class WeightChange:
    """Weights that a replica was told to load, and has not proven."""

    ask: int
    weights: WeightVersion
    deadline: float
    brought: bool = False  # they are there; what it has is finished first
    drain_by: float = 0.0  # then what it has goes on elsewhere


@dataclass(eq=False)
class ReplicaHandle:
    """One replica as the pool knows it."""

    spec: Spec
    open: Open
    rank: tuple[bool, bool] = (True, True)  # see parity.py
    state: ReplicaState = ReplicaState.STARTING
    reason: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # of its facts
    facts: ReplicaFacts = field(default_factory=lambda: ReplicaFacts("", ReplicaState.STARTING))
    kind: tuple[str, ...] = ()  # replicas of one kind draw the same tokens
    vocab: int = 0
    context: int = 0
    slots: int = 1
    deadline: float = 0.0  # of starting; or when it is to be started again
    heard: float = 0.0  # last sign of life
    drew: float = 0.0  # last tokens, or when it was given something and had nothing
    failures: int = 0  # in a row
    asked: int = 0  # number of the last ask
    held: dict[int, LivePart] = field(default_factory=dict)  # by the number of the ask
    dropped: list[int] = field(default_factory=list)  # asks that it is to be told to forget
    opened: bool = False  # its engine is there
    serves: WeightVersion | None = None  # proven; None: nothing yet
    changed: float = 0.0  # when it began to serve these
    change: WeightChange | None = None
    change_after: float = 0.0  # back-off of one that could not fetch its weights
    misses: int = 0  # in a row, of weights that could not be fetched
    exam: CanaryExam | None = None
    examined: float = 0.0  # when the last one was over
    evidence: tuple[WeightVersion, CanaryScores] | None = (
        None  # not judged: it waits for the reference
    )
    put_aside: bool = False  # somebody wants it drained
    merges: MergeNotice = field(default_factory=MergeNotice)
    speed: ReplicaSpeed = field(default_factory=ReplicaSpeed)
    delay: RunDelay = field(default_factory=partial(RunDelay, []))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def engine(self) -> str:
        """Its name with its version; "": not known yet."""
        return self.kind[0] if self.kind else ""

    @property
    def admitted(self) -> bool:
        """It has shown once that it may serve."""
        return bool(self.facts.parity)

    @property
    def up(self) -> bool:
        """Whether its worker runs."""
        return self.state not in OFF

    @property
    def running(self) -> int:
        """Sequences that it has."""
        return sequences(list(self.held.values()))

    @property
    def outstanding(self) -> int:
        """Tokens that it was given and has not drawn, prompts included."""
        held = self.held.values()
        return sum(part.prompt_tokens * (not part.advanced) + part.room for part in held)

    @property
    def takes(self) -> bool:
        """Whether it may be given anything."""
        ready = self.state is ReplicaState.READY and not self.put_aside
        if not ready or self.running >= self.slots:
            return False
        return not any(part.suspect and not part.advanced for part in self.held.values())

    def work_s(self, speed: float, prompt_s: float) -> float:
        """Seconds for all that it has, at so many tokens a second."""
        prompts = sum(part.prompt_tokens for part in self.held.values() if not part.advanced)
        return sum(part.room for part in self.held.values()) / speed + prompts * prompt_s

    def ask(self, fleet: Fleet, message: protocol.Ask) -> int:
        """Send it under the next number, which it returns."""
        self.asked += 1
        numbered = msgspec.structs.replace(message, id=self.asked)
        fleet.send(self.name, protocol.encode(numbered), self._reply_bytes(message))
        return self.asked

    def drop(self, ask: int) -> LivePart:
        """It need not draw this any more; it is told with the next `tell_drops`."""
        self.dropped.append(ask)
        return self.held.pop(ask)

    def tell_drops(self, fleet: Fleet) -> None:
        """On the fleet's own thread. What it may say stays as it was."""
        for ask in self.dropped:
            fleet.send(self.name, protocol.encode(Abort(id=ask)))
        self.dropped.clear()

    def _reply_bytes(self, message: protocol.Ask) -> int:
        """The longest that it may say from now on: all it has may be told in one message."""
        canary = self.open.canary
        own = sizes.reply_bytes(message, canary)
        steps = sum(sizes.step_bytes(part.job.generation) for part in self.held.values())
        if self.exam is not None and canary is not None:
            own += sum(sizes.step_bytes(each.generation) for each in self.exam.prompts())
            own = max(own, sizes.reply_bytes(self.exam.longest(), canary))
        if self.change is not None:
            own = max(own, sizes.reply_bytes(protocol.Load(0, ""), canary))
        return max(own + steps, UNASKED_BYTES)

    def forget_process(self) -> None:
        """Its process is no more, and with it what it has proven."""
        self.serves = self.change = self.exam = self.evidence = None
        self.opened, self.change_after = False, 0.0
        self.held.clear()
        self.dropped.clear()

    def excuse(self, seconds: float) -> None:
        """Time has passed that does not count against it."""
        self.heard += seconds
        self.drew += seconds
        if not self.opened:
            self.deadline += seconds
        if self.change:
            self.change.deadline += seconds
        if self.exam:
            self.exam.deadline += seconds

    def excuse_delay(self, passed: float, pid: int | None) -> None:
        """Do not count what its process waited for processors in the last `passed` seconds, as
        workers/handle.py does it.
        """
        self.excuse(min(self.delay.seconds, (1 - 1 / MOST_TIMES) * passed))
        self.delay = RunDelay([] if pid is None else [pid])

    def overdue(self, now: float, silence_s: float, stall_s: float) -> tuple[EventKind, str] | None:
        """Kind and reason when a live process is late, or silent for too long."""
        if not self.opened:
            late = now >= self.deadline
            return ("worker_late", "still starting after its deadline") if late else None
        if self.change and now >= self.change.deadline:
            number = self.change.weights.number
            return "worker_late", f"still loading version {number} after its deadline"
        if self.exam and now >= self.exam.deadline:
            return "worker_late", "no answer to its canary"
        if self.held and now >= self.drew + stall_s:
            return "worker_late", f"no token for {stall_s:g} s"
        if now >= self.heard + silence_s:
            return "worker_silent", f"no sign of life for {silence_s:g} s"
        return None

    def shown(self) -> ReplicaFacts:
        draining = self.state is ReplicaState.READY and self.put_aside
        return msgspec.structs.replace(
            self.facts,
            name=self.name,
            state=ReplicaState.DRAINING if draining else self.state,
            reason=self.reason,
            version=None if self.serves is None else self.serves.number,
            slots=self.slots,
            running=self.running,
            outstanding_tokens=self.outstanding,
            tokens_per_s=self.speed.tokens_per_s,
            **self.counts,
        )

    def count(self, **more: int) -> None:
        """Add to figures of its facts."""
        for name, value in more.items():
            self.counts[name] += value
