"""How many of torch's threads compute while other processes hold processors.

Every operator waits for the slowest of its threads. Beside as many busy processes as there are
processors, that is one that has half of one: fewer threads, each with a processor to itself, are
faster. While an engine draws tokens on a CPU their number follows what others leave, down to a half
of what there was (with less, whoever is alone among many would get next to nothing). A number that
the user has set is kept. Updates, whose bits a resumed run repeats, take a number that is recorded
(recipes/update_threads.py).
"""

import math
import os
import time

import torch

from interlock.processes.others import Others
from interlock.processes.run_delay import processors

WINDOW_S = 0.5  # that is looked at before anything changes
_CALM = 4  # windows in a row that must allow more threads
_LITTLE = 0.25  # of a processor, which is not worth a thread
_USERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # where one of these is set, it is taken


class Threads:
    """torch's, of this process; `rest` gives it all of them again.

    Example:
        while engine.pending:
            threads.follow()
            draw()
        threads.rest()
    """

    def __init__(self, place: torch.device) -> None:
        """`place`: where it is computed; on what is no CPU nothing is changed."""
        self._fixed = are_given(place)
        self._all = self._now = self.fewest = torch.get_num_threads()
        self._others: Others | None = None
        self._calm = 0

    def follow(self) -> None:
        """Before every step, and quick: take as many threads as others leave processors."""
        if self._fixed:
            return
        if self._others is None:
            self._begin()
        elif self._others.seconds >= WINDOW_S:
            self._take(beside(self._others, self._all))
            self._others = Others()

    def rest(self) -> None:
        """Nothing is computed: what comes next has all threads."""
        if self._others is not None:
            self._others = None
            torch.set_num_threads(self._all)

    def _begin(self) -> None:
        """As many as were right the last time."""
        self._all = torch.get_num_threads()
        self._now = self.fewest = min(self._now, self._all)
        torch.set_num_threads(self._now)
        self._others = Others()

    def _take(self, fit: int) -> None:
        self._calm = self._calm + 1 if fit > self._now else 0
        if fit < self._now or self._calm >= _CALM:
            self._now, self._calm = fit, 0
            self.fewest = min(self.fewest, fit)
            torch.set_num_threads(fit)


def are_given(place: torch.device) -> bool:
    """Whether their number is not ours to change: the user set it, or `place` is no CPU."""
    return place.type != "cpu" or any(name in os.environ for name in _USERS)


def now(place: torch.device) -> int:
    """How many of torch's threads have a processor each; looks for WINDOW_S, in which the caller
    computes nothing, where they are ours to choose."""
    every = torch.get_num_threads()
    if are_given(place) or every == 1:
        return every
    others = Others()
    time.sleep(WINDOW_S)
    return beside(others, every)


def beside(others: Others, threads: int) -> int:
    """How many of `threads` have a processor each while others hold what these were seen to."""
    return fitting(threads, processors() - others.held())


def fitting(threads: int, left: float) -> int:
    """How many of `threads` have a processor each where `left` are left; half at the least."""
    return min(threads, max(math.ceil(threads / 2), math.floor(left + _LITTLE)))
