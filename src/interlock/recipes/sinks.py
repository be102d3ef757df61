"""Who is told of a run while it goes on: the terminal, trackers, whoever is given to `train`.

    recipes ── step, event, phase, … ──> Sinks ──> every Sink
                                           └── one raised ──> event of the run, shown once

A sink sees; it decides nothing. What is told stands in the run directory as well.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from interlock.errors import RunError
from interlock.records.metrics import Event, StepMetrics, WorkerMetrics
from interlock.records.rl import Score
from interlock.rundir import RunDir
from interlock.text import described


class Sink:
    """Override what you want to hear of: a tracker `step`, `event` and `done`, a screen the rest.

    A call may come from any thread, but one comes at a time. It holds up the run: be quick, and
    leave what takes long to a thread of your own. One that raises is noted, and called again.
    """

    def step(self, metrics: StepMetrics) -> None:
        """One step is done and logged. Step 0 is the evaluation before the first."""

    def event(self, event: Event) -> None:
        """Something happened: a step was skipped, a worker was lost."""

    def done(self) -> None:
        """The run has ended, well or not: nothing more will come."""

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        """A stage of `steps` begins; `done` of them are behind it when it is resumed."""

    def phase(self, name: str, total: int = 0) -> None:
        """The run now does `name`, made of `total` parts (0: unknown)."""

    def advance(self) -> None:
        """One part of the phase is done."""

    def evaluated(self, step: int, score: Score) -> None:
        """What answers to held-out problems are worth after `step` updates."""

    def workers(self, facts: Mapping[str, WorkerMetrics]) -> None:
        """What every generator is doing, by name, about once a second."""

    def note(self, message: str) -> None:
        """Worth a line, though no event of the run: a model is fetched."""


class Sinks(Sink):
    """All of them as one. A run goes on whatever they do."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._run: RunDir | None = None
        self._failures: Counter[int] = Counter()  # by place among the sinks
        self._lock = threading.RLock()

    @contextmanager
    def of(self, run: RunDir) -> Iterator[None]:
        """What sinks do wrong in the block is kept as events of this run."""
        self._run = run
        try:
            yield
        finally:
            self._run = None
            for place, count in self._failures.items():
                if count > 1:
                    with suppress(RunError):  # it must not hide what the block raised
                        run.event("sink_failed", f"{self._name(place)} raised {count} times")

    def step(self, metrics: StepMetrics) -> None:
        self._tell(lambda sink: sink.step(metrics))

    def event(self, event: Event) -> None:
        self._tell(lambda sink: sink.event(event))

    def done(self) -> None:
        self._tell(lambda sink: sink.done())

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        self._tell(lambda sink: sink.stage(index, kind, done, steps))

    def phase(self, name: str, total: int = 0) -> None:
        self._tell(lambda sink: sink.phase(name, total))

    def advance(self) -> None:
        self._tell(lambda sink: sink.advance())

    def evaluated(self, step: int, score: Score) -> None:
        self._tell(lambda sink: sink.evaluated(step, score))

    def workers(self, facts: Mapping[str, WorkerMetrics]) -> None:
        self._tell(lambda sink: sink.workers(facts))

    def note(self, message: str) -> None:
        self._tell(lambda sink: sink.note(message))

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        with self._lock:
            for place, sink in enumerate(self._sinks):
                try:
                    tell(sink)
                except Exception as error:
                    self._failures[place] += 1
                    if self._failures[place] == 1:
                        self._complain(f"{self._name(place)} raised {described(error)}")

    def _complain(self, message: str) -> None:
        """To all, the one that raised included: the next time it is only counted."""
        if self._run is None:
            self.note(message)
        else:
            self.event(self._run.event("sink_failed", message))

    def _name(self, place: int) -> str:
        return f"the sink {type(self._sinks[place]).__name__}"
