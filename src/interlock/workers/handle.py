"""One worker of a pool as the dispatcher sees it: what it is doing, and what it is believed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from interlock.chips import vendors
from interlock.chips.admission import needs_certificate
from interlock.errors import ConfigError, TrainingError, UserError
from interlock.fleet.base import Spec
from interlock.processes.deadline import MOST_TIMES
from interlock.processes.run_delay import RunDelay
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import EventKind, WorkerMetrics, WorkerState
from interlock.records.rl import Group
from interlock.records.trust import Stack
from interlock.text import one_line
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Open, Opened, Room
from interlock.workers.queue import Unit
from interlock.workers.replies import Target
from interlock.workers.words import REASON, MergeNotice

UP = (WorkerState.LOADING, WorkerState.READY, WorkerState.GENERATING)
GONE = (WorkerState.QUARANTINED, WorkerState.RETIRED)
MESSAGE = 1000  # characters of one of ours that quotes it: the remedy stands at its end
_LONGEST_BACKOFF_S = 60.0

Note = Callable[[EventKind, str, str], None]  # kind, message, worker


@dataclass(eq=False)
class HeldUnit:
    """A unit that a worker was given, and has not answered in full."""

    unit: Unit
    deadline: float
    served: int  # weight version, when it was given
    groups: dict[int, Group] = field(default_factory=dict)  # that came, by place in the unit

    @property
    def missing(self) -> list[int]:
        return [place for place in range(len(self.unit.work.keys)) if place not in self.groups]


@dataclass(eq=False)
class PendingLoad:
    """Weights that a worker was told to serve, and has not proven."""

    id: int  # of the Load
    target: Target
    fetch_by: float  # from then on its proof gets the first free slot
    deadline: float


@dataclass(eq=False)
class WorkerHandle:
    spec: Spec
    open: Open
    facts: WorkerMetrics = field(default_factory=WorkerMetrics)
    deadline: float = 0.0  # of a state that has one for all that is done in it
    heard: float = 0.0  # last sign of life
    idle_until: float = 0.0  # back-off of a live process
    load_after: float = 0.0  # back-off of one that could not fetch its weights
    cut_off: bool = False  # it could not fetch them, and has not since
    failures: int = 0  # in a row
    asked: int = 0  # number of the last ask
    reply_bytes: int = 0  # of the longest message that may answer what is open
    held: dict[int, HeldUnit] = field(default_factory=dict)  # by the number of the ask
    loading: PendingLoad | None = None
    room: int = 0  # sequences that it could take, as it says
    delay: RunDelay = field(default_factory=partial(RunDelay, []))  # since it was last measured
    delayed_s: float = 0.0  # that it waited for processors since it was last idle
    workless_s: float = 0.0  # that it has been without work, and has asked for none
    evaluated: list[Work] = field(default_factory=list)  # answered, and not collected
    stack: Stack | None = None
    serves: Target | None = None  # None: to be loaded and proven (again)
    proven: list[Target] = field(default_factory=list)  # by this process, in order; see `prove`
    warned: bool = False  # of its mismatch
    merges: MergeNotice = field(default_factory=MergeNotice)
    may_return: bool = False  # in quarantine, to be qualified
    accused: float = math.inf  # seconds since 1970 when the last qualification began
    mistake: bool = False  # it was set up in a way that can never work
    reason: str = ""  # of the last failure
    peak: MemoryPeak = field(default_factory=MemoryPeak)  # of its memory, since that was taken

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def awaited(self) -> bool:
        """It needs a certificate, has not shown it, and is not known to fail."""
        needs_one = needs_certificate(vendors.kind_of(self.open.settings.device))
        return needs_one and self.facts.state is WorkerState.STARTING and not self.facts.restarts

    @property
    def busy(self) -> bool:
        """Something that it was asked is open."""
        return bool(self.held) or self.loading is not None

    @property
    def exact(self) -> bool:
        """It is computing an exact unit, beside which there may be nothing else."""
        return any(held.unit.work.exact for held in self.held.values())

    @property
    def free(self) -> bool:
        """Whether it may take anything at all."""
        return self.serves is not None and not self.exact and (self.room > 0 or not self.held)

    def wants(self, target: Target, now: float) -> bool:
        """Whether it is to be told to load this. What it holds goes on, unless that is exact."""
        free = not self.loading and not self.exact and now >= self.load_after
        return free and self.serves is not target

    def takes(self, work: Work, target: Target) -> bool:
        """Whether it can be given this now. An evaluation is of the target's weights."""
        if work.exact:
            return self.serves is target and not self.held
        if work.purpose is Purpose.EVALUATE and self.serves is not target:
            return False
        fresh = self.serves is not None and self.serves.version.number >= work.since
        return fresh and self.room > 0

    def versions_since(self, served: int) -> list[int]:
        """What may have sampled a unit that was given when version `served` was."""
        numbers = (target.version.number for target in self.proven)
        return [number for number in numbers if number >= served]

    def prove(self, target: Target) -> None:
        """It has shown that it serves this. Kept of older ones is what may be in what it holds."""
        oldest = min((held.served for held in self.held.values()), default=target.version.number)
        self.proven = [each for each in self.proven if each.version.number >= oldest]
        self.proven.append(target)
        self.loading, self.serves, self.cut_off = None, target, False

    def number(self) -> int:
        """Of the next ask."""
        self.asked += 1
        return self.asked

    def settle(self) -> None:
        """What a worker that is up is seen to do; it may load beside generating."""
        if self.facts.state in UP:
            busy = WorkerState.LOADING if self.loading else WorkerState.READY
            self.facts.state = WorkerState.GENERATING if self.held else busy

    def describe(self, reply: Opened) -> None:
        """Take in what it says of its engine and its chip."""
        facts, stack = self.facts, reply.stack
        facts.engine, facts.device = one_line(reply.engine, REASON), one_line(reply.device, REASON)
        facts.dtype, self.stack = one_line(reply.dtype, REASON), stack
        facts.chip = one_line(stack.chip, REASON) if stack else ""
        facts.serial = one_line(stack.serial, REASON) if stack else ""

    def begin(self, state: WorkerState, deadline: float) -> None:
        self.facts.state, self.deadline = state, deadline

    def has_room(self, reply: Room) -> None:
        """What was given to it after it said so takes from the room."""
        later = [held.unit.work for number, held in self.held.items() if number > reply.after]
        self.room = reply.sequences - sum(work.sequences for work in later)

    def take_peak(self) -> MemoryPeak:
        """What it told of its memory since this was last asked."""
        found, self.peak = self.peak, MemoryPeak()
        return found

    def forget_process(self) -> None:
        """Its process is no more, and with it what it has proven."""
        self.serves = self.facts.weight_version = self.loading = None
        self.proven.clear()
        self.cut_off, self.load_after, self.room = False, 0.0, 0

    def elapse(self, seconds: float) -> None:
        """Time has passed in what it does."""
        if self.held:
            self.facts.seconds_generating += seconds
        if self.loading:
            self.facts.seconds_loading += seconds
        if self.busy:
            self.facts.seconds_busy += seconds
        workless = self.serves is not None and not self.busy and self.room <= 0
        self.workless_s = self.workless_s + seconds if workless else 0.0

    def excuse(self, seconds: float) -> None:
        """Time has passed that does not count against it."""
        self.deadline += seconds
        self.heard += seconds
        self.workless_s = max(0.0, self.workless_s - seconds)
        if self.loading:
            self.loading.fetch_by += seconds
            self.loading.deadline += seconds
        for held in self.held.values():
            held.deadline += seconds

    def excuse_delay(self, passed: float, pid: int | None) -> None:
        """Do not count what its process waited for processors in the last `passed` seconds.

        At most so much that no wait becomes longer than MOST_TIMES of what it would have been.
        """
        waited = min(self.delay.seconds, (1 - 1 / MOST_TIMES) * passed)
        self.excuse(waited)
        idle = self.facts.state in UP and not self.busy
        self.delayed_s = 0.0 if idle else self.delayed_s + waited
        self.delay = RunDelay([] if pid is None else [pid])

    def overdue(self, now: float, silence_s: float) -> tuple[EventKind, str] | None:
        """Kind and reason when a live process is late, or silent for too long."""
        state = self.facts.state
        if state in GONE:
            return None
        late = state not in UP and now >= self.deadline
        if self.loading and now >= self.loading.deadline:
            late, state = True, WorkerState.LOADING
        if any(now >= held.deadline for held in self.held.values()):
            late, state = True, WorkerState.GENERATING
        waited = f"{self.delayed_s:.0f} s of waiting for processors that others held"
        beside = f", besides {waited}" if self.delayed_s >= 1 else ""
        if late:
            return "worker_late", f"still {state} after its deadline{beside}"
        if state is not WorkerState.STARTING and now >= self.heard + silence_s:
            return "worker_silent", f"no sign of life for {silence_s:g} s{beside} while {state}"
        if self.workless_s >= silence_s:
            return "worker_silent", f"without work, it asked for none for {silence_s:g} s"
        return None


def backoff(first_s: float, failures: int) -> float:
    """Seconds before the next try; they double, up to a minute."""
    doublings = min(max(0, failures - 1), 64)  # more are beyond a float
    return float(min(_LONGEST_BACKOFF_S, first_s * 2**doublings))


def why_gone(workers: Sequence[WorkerHandle]) -> UserError | TrainingError:
    """What to raise when no worker is left: the user's mistake if none could ever work."""
    names: dict[str, list[str]] = {}
    for worker in workers:
        names.setdefault(worker.reason, []).append(worker.name)
    whys = "; ".join(f"{', '.join(who)}: {why}" for why, who in names.items())
    if all(worker.mistake for worker in workers):
        return ConfigError(f"no generator can run ({whys})")
    return TrainingError(f"no generator is left ({whys})")
