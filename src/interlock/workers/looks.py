"""The time between two looks at the workers, and what of it counts against none of them."""

from typing import NamedTuple, Protocol

_OWN_PAUSE_S = 5.0  # without a look at the workers: this process was stopped, or busy
_MEASURE_S = 1.0  # between two looks at how long they waited for processors


class Excused(Protocol):
    """What is waited for, by deadlines."""

    def excuse(self, seconds: float) -> None: ...

    def excuse_delay(self, passed: float, pid: int | None) -> None: ...


class Passed(NamedTuple):
    """Seconds since the look before, and since waits for processors were last measured."""

    gap: float
    paused: bool  # ours, not theirs: the gap does not count
    measured: float | None  # None: it is too early to measure again

    def excuse(self, worker: Excused) -> None:
        if self.paused:
            worker.excuse(self.gap)

    def excuse_delay(self, worker: Excused, pid: int | None) -> None:
        if self.measured is not None:
            worker.excuse_delay(0.0 if self.paused else self.measured, pid)


class Looks:
    """When the workers were last looked at, and measured."""

    def __init__(self, now: float) -> None:
        self._looked = self._measured = now

    def look(self, now: float) -> Passed:
        gap, self._looked = now - self._looked, now
        paused, since = gap > _OWN_PAUSE_S, now - self._measured
        due = paused or since >= _MEASURE_S
        if due:
            self._measured = now
        return Passed(gap, paused, since if due else None)
