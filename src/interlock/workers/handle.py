"""One worker of a pool as the dispatcher sees it: what it is doing, and what it is believed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from interlock.chips import vendors
from interlock.chips.admission import needs_certificate
from interlock.errors import ConfigError, TrainingError, UserError
from interlock.fleet.base import Spec
from interlock.records.metrics import EventKind, WorkerMetrics, WorkerState
from interlock.records.trust import Stack
from interlock.workers.generators import Work
from interlock.workers.protocol import Open
from interlock.workers.queue import Unit
from interlock.workers.replies import Target

UP = (WorkerState.LOADING, WorkerState.READY, WorkerState.GENERATING)
GONE = (WorkerState.QUARANTINED, WorkerState.RETIRED)
REASON = 300  # characters of what a worker says of a failure
MESSAGE = 1000  # characters of one of ours that quotes it: the remedy stands at its end
_LONGEST_BACKOFF_S = 60.0

Note = Callable[[EventKind, str, str], None]  # kind, message, worker


@dataclass(eq=False)
class WorkerHandle:
    spec: Spec
    open: Open
    facts: WorkerMetrics = field(default_factory=WorkerMetrics)
    deadline: float = 0.0  # of the present state
    heard: float = 0.0  # last sign of life
    idle_until: float = 0.0  # back-off of a live process
    began: float = 0.0  # loading, generating or being qualified
    failures: int = 0  # in a row
    unit: Unit | None = None
    evaluated: list[Work] = field(default_factory=list)  # answered, and not collected
    stack: Stack | None = None
    loading: Target | None = None
    serves: Target | None = None  # None: to be loaded and proven (again)
    proven: Target | None = None  # the last that this process proved
    warned: bool = False  # of its mismatch
    may_return: bool = False  # in quarantine, to be qualified
    accused: float = math.inf  # seconds since 1970 when the last qualification began
    mistake: bool = False  # it was set up in a way that can never work
    reason: str = ""  # of the last failure

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def awaited(self) -> bool:
        """It needs a certificate, has not shown it, and is not known to fail."""
        needs_one = needs_certificate(vendors.kind_of(self.open.settings.device))
        return needs_one and self.facts.state is WorkerState.STARTING and not self.facts.restarts

    def begin(self, state: WorkerState, now: float, limit_s: float) -> None:
        self.facts.state, self.began, self.deadline = state, now, now + limit_s

    def forget_weights(self) -> None:
        """Its process is no more, and with it what it has proven."""
        self.serves = self.proven = self.facts.weight_version = None

    def overdue(self, now: float, silence_s: float) -> tuple[EventKind, str] | None:
        """Kind and reason when a live process is late, or silent for too long."""
        state = self.facts.state
        if state in GONE:
            return None
        if state is not WorkerState.READY and now >= self.deadline:
            return "worker_late", f"still {state} after its deadline"
        if state is not WorkerState.STARTING and now >= self.heard + silence_s:
            return "worker_silent", f"no sign of life for {silence_s:g} s while {state}"
        return None

    def backoff(self, first_s: float) -> float:
        doublings = min(max(0, self.failures - 1), 64)  # more are beyond a float
        return min(_LONGEST_BACKOFF_S, first_s * 2**doublings)


def why_gone(workers: Sequence[WorkerHandle]) -> UserError | TrainingError:
    """What to raise when no worker is left: the user's mistake if none could ever work."""
    names: dict[str, list[str]] = {}
    for worker in workers:
        names.setdefault(worker.reason, []).append(worker.name)
    whys = "; ".join(f"{', '.join(who)}: {why}" for why, who in names.items())
    if all(worker.mistake for worker in workers):
        return ConfigError(f"no generator can run ({whys})")
    return TrainingError(f"no generator is left ({whys})")
