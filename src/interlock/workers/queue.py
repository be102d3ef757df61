"""The units that wait for a worker, and what becomes of one on which workers fail.

    add ──> waiting ──pick──> a worker ──answered
               ^                  │ give_back, without what was answered
               ├── together ──────┤
               ├── split ─────────┤ to find the problem at fault
               └── alone: set aside

A unit belongs to one worker at a time.
"""

from bisect import insort
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from interlock.workers.generators import Purpose, Work


@dataclass(eq=False)
class Unit:
    """Work on its way. `avoid`: workers that failed it, given another only if there is one."""

    work: Work
    strikes: int = 0
    avoid: set[str] = field(default_factory=set)

    @property
    def urgency(self) -> tuple[bool, int]:
        """Evaluations first, then the oldest problem."""
        return self.work.purpose is not Purpose.EVALUATE, self.work.keys[0]


class UnitQueue:
    """Units that nobody works on, the most urgent first; those that workers failed on come back."""

    def __init__(self, strikes: int) -> None:
        """`strikes`: failures of workers on a problem, after which it is set aside."""
        self._strikes = strikes
        self.waiting: list[Unit] = []  # the most urgent first

    def add(self, work: Work, strikes: int = 0, avoid: Set[str] = frozenset()) -> None:
        self._put(Unit(work, strikes, set(avoid)))

    def pick(self, worker: str, up: Set[str], fits: Callable[[Work], bool]) -> Unit | None:
        """The most urgent unit that `fits` the worker now.

        One that it failed, only if no other of `up` can take it. None is taken past an exact unit,
        for which the worker must become free first.
        """
        for unit in self.waiting:
            if worker in unit.avoid and not up <= unit.avoid:
                continue
            if fits(unit.work):
                self.waiting.remove(unit)
                return unit
            if unit.work.exact:
                return None
        return None

    def give_back(self, unit: Unit, worker: str, struck: bool) -> str | None:
        """`worker` did not answer it, by its own or the unit's fault (`struck`) or by neither's.

        Why its only problem is set aside; None: it waits, together or in parts.
        """
        unit.avoid.add(worker)
        unit.strikes += struck
        alone = len(unit.work.keys) == 1
        if unit.strikes >= self._strikes and alone:
            return f"{unit.strikes} workers failed on it, {worker} last"
        if struck and unit.strikes >= self._strikes - 1 and not alone:
            for place in range(len(unit.work.keys)):
                strikes = min(unit.strikes, self._strikes - 1)
                self.add(unit.work.part([place]), strikes, unit.avoid)
        else:
            self._put(unit)
        return None

    def _put(self, unit: Unit) -> None:
        insort(self.waiting, unit, key=lambda each: each.urgency)
