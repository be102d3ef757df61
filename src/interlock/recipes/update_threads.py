"""How many threads a step's update computes on: as many as other processes left in the one before.

An update's sums are split among the threads, so their last bits hang on how many there are. The
number is therefore settled before an update and holds until its end, and every change is an event
of the run, durable before it is used: a resumed run repeats what it had done on the same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from interlock.chips import threads
from interlock.learner.learner import Learner
from interlock.processes.others import Others
from interlock.recipes.sinks import Sink
from interlock.rundir import RunDir


class UpdateThreads:
    """torch's, of one stage's updates; `with update_threads(step): …` is one of them."""

    def __init__(self, stage: int, learner: Learner, run: RunDir, sinks: Sink) -> None:
        self._stage, self._run, self._sinks = stage, run, sinks
        # Ranks wait for one another: one with fewer threads than the others would hold up all.
        self._fixed = threads.are_given(learner.device) or learner.ranks.size > 1
        self._all = self._next = self._last = torch.get_num_threads()
        if self._fixed:
            return
        self._changes = {
            int(event.facts["step"]): int(event.facts["threads"])
            for event in run.events()
            if event.kind == "threads_changed" and event.facts.get("stage") == str(stage)
        }
        logged = [line.step for line in run.metrics() if line.stage == stage]
        self._repeated = max(logged, default=-1) + 1  # the one after may have been at work

    @contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        """The step's number is torch's; afterwards it is what it was before."""
        if self._fixed:
            yield
            return
        before = torch.get_num_threads()  # fewer where an engine is at work around it
        torch.set_num_threads(self._settle(step))
        others = Others()
        try:
            yield
        finally:
            torch.set_num_threads(before)
        if others.seconds >= threads.WINDOW_S:
            self._next = threads.beside(others, self._all)

    def _settle(self, step: int) -> int:
        if step <= self._repeated:
            changes = [change for change in self._changes if change <= step]
            number = self._changes[max(changes)] if changes else self._all
            self._next = min(number, self._all)  # which are fewer on another machine
        number = self._next
        if step > self._repeated and number != self._last:
            why = "again" if number == self._all else "as other processes hold processors"
            message = f"step {step}: the update takes {number} of {self._all} threads {why}"
            facts = {"stage": str(self._stage), "step": str(step), "threads": str(number)}
            self._sinks.event(self._run.event("threads_changed", message, None, **facts))
        self._last = number
        return number
