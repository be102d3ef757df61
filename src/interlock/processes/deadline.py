"""A moment by which something must be over, and what a busy machine moves it by."""

import time
from collections.abc import Iterable

from interlock.processes.run_delay import RunDelay

MOST_TIMES = 5  # what a process is allowed, that a wait for it lasts at most on a busy machine
_BUSY = 0.25  # of what is allowed, spent waiting for processors: more than a quiet machine takes
_GRAIN = 0.01  # of what is allowed: to wait on for less is not worth it


class Deadline:
    """`seconds` from now, on a clock that nobody sets.

    Example:
        deadline = Deadline(10.0)
        while not done() and not deadline.over:
            wait(deadline.left)
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self._at - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._at


class ProcessDeadline(Deadline):
    """`seconds` of time that processes have for themselves.

    What they wait for processors that others hold is added once they are late, up to MOST_TIMES of
    what they are allowed in all: a busy machine is told from a hang, and every wait ends. As text
    it is what they were given: "30 s", or more where the machine was busy.
    """

    def __init__(self, seconds: float, pids: Iterable[int]) -> None:
        """`pids`: of the processes; what these start belongs to them."""
        super().__init__(seconds)
        self._began, self._allowed = time.monotonic(), seconds
        self._delay = RunDelay(pids)
        self._waited = self._granted = 0.0
        self._ended = False

    @property
    def over(self) -> bool:
        if not self._ended and super().over:
            self._waited = self._delay.seconds
            granted = min(self._waited, (MOST_TIMES - 1) * self._allowed)
            if granted - self._granted <= _GRAIN * self._allowed:
                self._ended = True
            else:
                self._granted = granted
                self._at = self._began + self._allowed + granted
                return super().over
        return self._ended

    @property
    def busy(self) -> bool:
        """Whether, once it is over, the machine was too busy to call it a hang."""
        return self._waited > _BUSY * self._allowed

    @property
    def starved(self) -> bool:
        """Whether, once it is over, the processes did not even have what they are allowed."""
        return self._waited > (MOST_TIMES - 1) * self._allowed

    def __str__(self) -> str:
        if not self.busy:
            return f"{self._allowed:g} s"
        own = max(0.0, MOST_TIMES * self._allowed - self._waited) if self.starved else self._allowed
        return (
            f"{own:.3g} s of its own and {self._waited:.3g} s of waiting for processors that "
            "others held: the machine is too busy"
        )
