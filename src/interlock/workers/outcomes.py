"""Groups, from when a worker answered until whoever ordered them has collected them.

Answered ──> durable (training), handed on one by one or, of an exact unit, together ──> collect
the worker fails ──> what it did not answer is given out again, or set aside
the worker is quarantined ──> what it answered is withdrawn
"""

from collections import defaultdict, deque
from collections.abc import Sequence

from interlock.records.rl import Group
from interlock.workers.generators import Forget, Keep, Outcome, Purpose, no_forget, no_keep
from interlock.workers.handle import HeldUnit, Note, WorkerHandle
from interlock.workers.queue import UnitQueue


class Outcomes:
    """`uncollected` are those that can be collected, `withdrawn` keys: see generators.py."""

    def __init__(self, queue: UnitQueue, note: Note) -> None:
        self.keep: Keep = no_keep
        self.forget: Forget = no_forget
        self.withdrawn: set[int] = set()
        self.uncollected: dict[Purpose, deque[Outcome]] = defaultdict(deque)
        self._queue, self._note = queue, note

    def take(self, worker: WorkerHandle, held: HeldUnit, place: int, group: Group) -> None:
        """A problem of a unit is answered."""
        held.groups[place] = group
        if not held.unit.work.exact:
            self._hand_on(worker, held, [place])
        elif not held.missing:
            # Together, so that a ledger has all of the unit or nothing: a resumed run orders the
            # problems without a group, and only the same unit gives the same bits.
            self._hand_on(worker, held, sorted(held.groups))

    def take_back(self, worker: WorkerHandle, held: HeldUnit, struck: bool) -> None:
        """Have done again what the worker did not answer, or set aside what keeps failing."""
        unit = held.unit
        if not unit.work.exact:
            unit.work = unit.work.part(held.missing)
        worker.facts.redispatched += 1
        if why := self._queue.give_back(unit, worker.name, struck):
            (key,), (problem,) = unit.work.keys, unit.work.problems
            self.uncollected[unit.work.purpose].append(Outcome(key, None, why))
            message = f"problem {problem.id!r} is set aside: {why}"
            self._note("problem_set_aside", message, worker.name)

    def withdraw(self, worker: WorkerHandle) -> None:
        """What it gave is not to be used: whoever ordered the groups orders them again."""
        self.withdrawn.update(self.forget(worker.name))
        again = {key for work in worker.evaluated for key in work.keys}
        kept = [each for each in self.uncollected[Purpose.EVALUATE] if each.key not in again]
        self.uncollected[Purpose.EVALUATE] = deque(kept)
        for work in worker.evaluated:
            self._queue.add(work)
        worker.evaluated.clear()

    def collect(self, purpose: Purpose) -> list[Outcome]:
        return list(self.uncollected.pop(purpose, ()))

    def _hand_on(self, worker: WorkerHandle, held: HeldUnit, places: Sequence[int]) -> None:
        work, facts = held.unit.work, worker.facts
        found = [(work.keys[place], held.groups[place]) for place in places]
        if work.purpose is Purpose.TRAIN:
            self.keep(found)
        else:
            worker.evaluated.append(work.part(places))
        self.uncollected[work.purpose] += [Outcome(key, group) for key, group in found]
        facts.groups += len(found)
        facts.tokens += sum(sum(c.mask) for _, group in found for c in group.completions)
