"""The work that waits for a worker, and what becomes of work on which workers fail.

    add ──> waiting ──pick──> a worker ──answered
               ^                  │ give_back
               ├── whole ─────────┤
               ├── split ─────────┤ to find the problem at fault
               └── alone: set aside

A unit belongs to one worker at a time and is given out again whole when that worker fails.
"""

from collections.abc import Set
from dataclasses import dataclass, field

from interlock.workers.generators import Purpose, Work


@dataclass(eq=False)
class Unit:
    """Work on its way. `avoid`: workers that failed it, given another only if there is one."""

    number: int
    work: Work
    strikes: int = 0
    avoid: set[str] = field(default_factory=set)

    @property
    def urgency(self) -> tuple[bool, int]:
        """Evaluations first, then the oldest problem."""
        return self.work.purpose is not Purpose.EVALUATE, self.work.keys[0]


class UnitQueue:
    def __init__(self, strikes: int) -> None:
        """`strikes`: failures of workers on a problem, after which it is set aside."""
        self._strikes = strikes
        self.waiting: list[Unit] = []
        self._units = 0

    def add(self, work: Work, strikes: int = 0, avoid: Set[str] = frozenset()) -> None:
        self._units += 1
        self.waiting.append(Unit(self._units, work, strikes, set(avoid)))

    def pick(self, worker: str, up: Set[str]) -> Unit | None:
        """The most urgent unit; one that `worker` failed, only if no other of `up` can take it."""
        self.waiting.sort(key=lambda unit: unit.urgency)
        for unit in self.waiting:
            if worker not in unit.avoid or up <= unit.avoid:
                self.waiting.remove(unit)
                return unit
        return None

    def give_back(self, unit: Unit, worker: str, struck: bool) -> str | None:
        """`worker` did not answer it, by its own or the unit's fault (`struck`) or by neither's.

        Why its only problem is set aside; None: it waits, whole or in parts.
        """
        unit.avoid.add(worker)
        unit.strikes += struck
        alone = len(unit.work.keys) == 1
        if unit.strikes >= self._strikes and alone:
            return f"{unit.strikes} workers failed on it, {worker} last"
        if struck and unit.strikes >= self._strikes - 1 and not alone:
            for index in range(len(unit.work.keys)):
                strikes = min(unit.strikes, self._strikes - 1)
                self.add(unit.work.part(index), strikes, unit.avoid)
        else:
            self.waiting.append(unit)
        return None
