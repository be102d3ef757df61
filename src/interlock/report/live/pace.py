"""How fast a run goes, and what that costs, by its last steps: for what is still to come.

A step takes all of the run's time between its line and the one before, evaluations and checkpoints
included, as the meter counted it; where it did not, what the step itself says.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import fmean

from interlock.records.metrics import StepMetrics

RECENT = 20  # steps


class Pace:
    """Of the last steps of a run that is followed."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._money: deque[dict[str, float]] = deque(maxlen=RECENT)
        self._before: StepMetrics | None = None

    def add(self, steps: Sequence[StepMetrics]) -> None:
        """Lines of the run, in order; of many only the last count."""
        for step in steps[-RECENT - 1 :]:
            self._add(step)

    def seconds(self, steps: int) -> float | None:
        """So many more take; None: nothing tells."""
        return steps * fmean(self._seconds) if self._seconds else None

    def money(self, steps: int) -> dict[str, float]:
        """That they cost, by currency."""
        found: dict[str, float] = defaultdict(float)
        for each in self._money:
            for currency, amount in each.items():
                found[currency] += steps * amount / len(self._money)
        return dict(found)

    def _add(self, step: StepMetrics) -> None:
        before, self._before = self._before, step
        spent = step.cost.hours
        follows = before is not None and (before.stage, before.step + 1) == (step.stage, step.step)
        if before is None or not follows or spent is None or before.cost.hours is None:
            if step.seconds.step is not None:
                self._seconds.append(step.seconds.step)
            return
        self._seconds.append(max(0.0, spent - before.cost.hours) * 3600)
        then = before.cost.money
        now = step.cost.money.items()
        self._money.append({name: max(0.0, amount - then.get(name, 0.0)) for name, amount in now})
