"""Which weights each replica is to serve: new ones by turns, so that somebody serves always.

    target ──> one replica fetches beside its work ─Brought─> finishes what it has ─> loads, proves
               └── ready again: then the next one
    a version that a broken-off answer needs, and nobody serves any more ──> loaded first

A replica that serves nothing yet waits for no turn.
"""

from collections import Counter
from collections.abc import Sequence

from interlock.fleet.base import Fleet
from interlock.records.rl import WeightVersion
from interlock.records.serving import ReplicaState
from interlock.workers.protocol import Load
from interlock.workers.replicas.desk import Desk, able
from interlock.workers.replicas.jobs import LivePart
from interlock.workers.replicas.parity import CanaryExam
from interlock.workers.replicas.replica import GONE, ReplicaHandle, WeightChange

OWN = WeightVersion(0, "")  # the model directory's own weights, which every replica opens with
_TRIES = 3  # of a version that cannot be fetched


class Changes:
    """`target`: the weights to serve."""

    def __init__(self, fleet: Fleet, desk: Desk, load_s: float, drain_s: float) -> None:
        self.target = OWN
        self.stores: dict[WeightVersion, str] = {}  # where each is
        self.unfit: set[WeightVersion] = set()  # of another model, or torn
        self._fleet, self._desk = fleet, desk
        self._load_s, self._drain_s = load_s, drain_s
        self._misses: Counter[WeightVersion] = Counter()  # times that it could not be fetched
        self._current: WeightVersion | None = None
        self._own = False  # own weights were to be served once

    def current(self, replicas: Sequence[ReplicaHandle]) -> WeightVersion | None:
        """What new generations are drawn from; None: nobody serves anything for them now."""
        self._own = self._own or self.target == OWN
        ready = [each for each in replicas if each.state is ReplicaState.READY]
        served = {each.serves for each in ready if each.serves and not each.put_aside}
        if self.target in served:
            self._current = self.target
        elif self._current not in served:
            # Own weights may be there only for answers that were begun with them.
            own = self._own or self.target in self.unfit
            fit = [each for each in served if each.digest or own]
            newest = max(fit, key=lambda each: each.number, default=None)
            if newest is None:
                return None
            self._current = newest
        return self._current

    @property
    def last(self) -> WeightVersion | None:
        """What new generations were drawn from last."""
        return self._current

    def missed(self, weights: WeightVersion) -> None:
        self._misses[weights] += 1

    def loadable(self, weights: WeightVersion) -> bool:
        fetched = self._misses[weights] < _TRIES or weights == self.target
        return bool(weights.digest) and weights not in self.unfit and fetched

    def plan(self, replicas: Sequence[ReplicaHandle], now: float) -> None:
        """Tell replicas to load, as far as it is their turn."""
        coming = {weights for each in replicas if (weights := _coming(each))}
        served = {each.serves for each in replicas if each.up and not _leaving(each)}
        needed = [part.job.weights for part in self._desk.moving if part.job.weights]
        missing = [each for each in needed if each not in served | coming]
        for replica in replicas:
            if _blank(replica) and now >= replica.change_after:
                first = next((each for each in missing if self._reached(each)), self._wanted)
                missing = [each for each in missing if each != first]
                self._bring(replica, first, now)
        if any(each.serves and (each.change or each.evidence) for each in replicas):
            return
        free = [each for each in replicas if _free(each) and now >= each.change_after]
        starting = any(each.serves is None and each.state not in GONE for each in replicas)
        for weights in missing:
            if free and not starting and self.loadable(weights):
                self._bring(min(free, key=lambda each: each.running), weights, now)
                return
        # By turns: where versions come faster than they are loaded, nobody is left behind.
        for replica in sorted(free, key=lambda each: each.changed):
            others = [e for e in replicas if e is not replica and e.serves == replica.serves]
            kept = replica.serves in needed and not any(map(_free, others))
            if replica.serves != self._wanted and self.loadable(self._wanted) and not kept:
                self._bring(replica, self._wanted, now)
                return

    def drain(self, replicas: Sequence[ReplicaHandle], now: float) -> None:
        """What holds a replica up that is to load goes on elsewhere, if it takes too long."""
        for replica in replicas:
            change = replica.change
            if change is None or not change.brought:
                continue
            if replica.serves is not None:
                busy = bool(replica.held)
                replica.state = ReplicaState.DRAINING if busy else ReplicaState.LOADING
            others = (e for e in replicas if e is not replica and e.serves == replica.serves)
            if replica.held and now >= change.drain_by and any(each.takes for each in others):
                reason = f"it loads version {change.weights.number}"
                self._desk.take_back(replica, reason, False, replicas)

    def hopeless(self, replicas: Sequence[ReplicaHandle]) -> list[tuple[LivePart, str]]:
        """What waits and can never go on, with the reason."""
        if all(each.state in GONE for each in replicas):
            why = "; ".join(f"{each.name}: {each.reason}" for each in replicas)
            reason = f"no replica is left ({why})"
            return [(part, reason) for part in [*self._desk.moving, *self._desk.queue]]
        lost = []
        for part in self._desk.moving:
            weights = part.job.weights
            if not able(part, replicas):
                lost.append((part, part.reason))
            if weights and not any(self._may_serve(each, weights) for each in replicas):
                why = f"no replica serves version {weights.number} any more"
                lost.append((part, f"{why}; {part.reason}"))
        return lost

    def _may_serve(self, replica: ReplicaHandle, weights: WeightVersion) -> bool:
        if replica.state in GONE:
            return False
        if weights in (replica.serves, _coming(replica)) or self.loadable(weights):
            return True
        return weights == OWN and replica.serves is None and replica.change is None

    @property
    def _wanted(self) -> WeightVersion:
        return self._current or OWN if self.target in self.unfit else self.target

    def _reached(self, weights: WeightVersion) -> bool:
        return weights == OWN or self.loadable(weights)

    def _bring(self, replica: ReplicaHandle, weights: WeightVersion, now: float) -> None:
        canary = replica.open.canary
        assert canary is not None
        if weights == OWN:
            examine(replica, self._fleet, weights, now + self._load_s)
            return
        # What it may say counts what is under way.
        replica.change = WeightChange(replica.asked + 1, weights, now + self._load_s)
        replica.ask(
            self._fleet, Load(weights.number, weights.digest, True, self.stores.get(weights))
        )

    def brought(self, replica: ReplicaHandle, now: float) -> None:
        """A replica has fetched the weights."""
        change = replica.change
        assert change is not None
        change.brought, change.drain_by = True, now + self._drain_s
        longest = max((part.job.deadline - now for part in replica.held.values()), default=0.0)
        change.deadline = now + max(self._drain_s, longest) + self._load_s


def examine(replica: ReplicaHandle, fleet: Fleet, weights: WeightVersion, deadline: float) -> None:
    """Have it show that it is the model it should be."""
    canary = replica.open.canary
    assert canary is not None
    replica.exam = exam = CanaryExam(canary, weights, deadline)
    for place, asked in enumerate(exam.prompts()):
        exam.drawing[replica.ask(fleet, asked)] = place


def _coming(replica: ReplicaHandle) -> WeightVersion | None:
    """What it is about to serve."""
    if replica.change is not None:
        return replica.change.weights
    if replica.serves is not None:
        return None
    if replica.exam is not None:
        return replica.exam.weights
    return None if replica.evidence is None else replica.evidence[0]


def _blank(replica: ReplicaHandle) -> bool:
    """Its engine is there, and it is not about to serve anything."""
    return replica.opened and replica.up and replica.serves is None and _coming(replica) is None


def _free(replica: ReplicaHandle) -> bool:
    """It serves, and nothing else is under way."""
    idle = replica.change is None and replica.exam is None and replica.evidence is None
    return replica.state is ReplicaState.READY and idle


def _leaving(replica: ReplicaHandle) -> bool:
    """It serves what it serves for the last time."""
    return replica.change is not None and replica.change.brought
