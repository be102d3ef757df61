"""Problems drawn by how often they are solved, those that are known to be solved no more.

    column of the data ─┐
    groups of the steps ─┴─ learn ─> pass rate of each ── p (1 - p), floor ──> draw without repeats
                                     solved `retire` times in a row ──> retired

What a step draws is a function of (seed, number of the draw, what was learned before). Successive
draws without replacement are made by keys: of -log(u) / chance, u uniform, the smallest
(Efraimidis and Spirakis, Information Processing Letters 97, 2006).
"""

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from math import log
from pathlib import Path
from random import Random
from typing import NamedTuple

from interlock.config.drawing import DrawSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.metrics import PoolMetrics
from interlock.records.rl import Problem
from interlock.tasks.columns import pass_rate
from interlock.tasks.rows import Row
from interlock.tasks.sources import PooledSource

_COLUMN = "pass_rate"
_UNTRIED = 0.25  # the weight of a pass rate of 1/2
_FEWEST = 2  # answers of a group that say something of its problem
# Of pass rates, as they are counted; what lies between two of them is of the second.
_RANGES = {"0%": 0.0, "to 25%": 0.25, "to 50%": 0.5, "to 75%": 0.75, "below 100%": 1.0, "100%": 1.0}


class GroupOutcome(NamedTuple):
    """What one group says of its problem."""

    problem: str  # id
    task: str
    right: int
    answers: int  # that count


class RatesTold:
    """The pass rates that the rows of a task's data tell."""

    def __init__(self, task: TaskSettings) -> None:
        self._draw = task.draw
        self._rates: dict[str, float] = {}

    def take(self, problem: str, row: Row) -> None:
        """Of a problem, what its first row tells. Raises ValueError for what is no pass rate."""
        if self._draw is None:
            return
        rate = pass_rate(row, self._draw.column or _COLUMN)
        if rate is not None:
            self._rates.setdefault(problem, rate)

    def of(self, problems: Iterable[str]) -> dict[str, float]:
        """Raises TaskError where a column was asked for that no row has."""
        if self._draw and self._draw.column and not self._rates:
            raise TaskError(
                f"no row has a value in the column {self._draw.column!r}; mend draw.column, or "
                "remove it to begin without pass rates"
            )
        return {each: self._rates[each] for each in problems if each in self._rates}


def weight(rate: float | None, wanted: tuple[float, float]) -> float:
    """How likely a problem of this pass rate is drawn, against others. None: nobody tried it."""
    if rate is None:
        return _UNTRIED
    return rate * (1 - rate) if wanted[0] <= rate <= wanted[1] else 0.0


def chances(weights: Sequence[float], floor: float) -> list[float]:
    """Of each problem, the chance to be drawn first; where no weight is above 0, all are alike."""
    total = sum(weights)
    share = floor if total > 0 else 1.0
    alike = share / len(weights)
    return [alike + (1 - share) * (each / (total or 1.0)) for each in weights]


def drawn(likely: Sequence[float], count: int, rng: Random) -> list[int]:
    """`count` different places, one after the other by their chances among what is left."""
    keys = [-log(1 - rng.random()) / chance for chance in likely]
    return nsmallest(count, range(len(keys)), key=keys.__getitem__)


class DrawnSource:
    """The TaskSource of a task that has [stage.task.draw]; `source` has its problems.

    It has ended when fewer problems are left than a step may want of it: then it draws none.
    """

    def __init__(self, source: PooledSource, how: DrawSettings, seed: int) -> None:
        self.dropped, self.left_out = source.dropped, source.left_out
        self.files: Sequence[Path] = source.files
        self._source, self._how, self._seed = source, how, seed
        self._left = {problem.id: problem for problem in source.pool(how.pool)}
        self._size = len(self._left)
        self.rates: dict[str, float] = {
            name: rate for name, rate in source.rates.items() if name in self._left
        }
        self._solved: dict[str, int] = {}  # groups in a row

    def train(self, step: int, count: int) -> list[Problem]:
        return self.stretch(step, 0, count, count)

    def stretch(self, step: int, first: int, count: int, most: int) -> list[Problem]:
        if not count or self.ended(most):
            return []
        problems = list(self._left.values())
        weights = [weight(self.rates.get(each), self._how.wanted) for each in self._left]
        rng = Random(f"{self._seed}/draw/{step}")
        return [problems[at] for at in drawn(chances(weights, self._how.floor), count, rng)]

    def check(self, steps: int, count: int) -> None:
        if count > self._size:
            raise TaskError(
                f"a step of {count} problems is to be drawn from {self._size}; lower "
                "problems_per_step, or raise draw.pool where the task has one"
            )

    def held_out(self, count: int) -> list[Problem]:
        return self._source.held_out(count)

    def ended(self, most: int) -> bool:
        """Whether fewer problems are left than a step may want, which is `most`."""
        return len(self._left) < most

    def learn(self, outcomes: Iterable[GroupOutcome]) -> list[str]:
        """What groups say, in the order of the ledger. -> the problems that are retired by it"""
        retired = []
        for each in outcomes:
            if each.answers < _FEWEST or each.problem not in self._left:
                continue
            rate, name = each.right / each.answers, each.problem
            before = self.rates.get(name)
            self.rates[name] = (
                rate if before is None else before + self._how.newest * (rate - before)
            )
            self._solved[name] = self._solved.get(name, 0) + 1 if rate == 1 else 0
            if self._how.retire and self._solved[name] >= self._how.retire:
                del self._left[name]
                retired.append(name)
        return retired

    def standing(self) -> PoolMetrics:
        """How its problems stand."""
        found = dict.fromkeys(_RANGES, 0)
        known = [self.rates[name] for name in self._left if name in self.rates]
        for rate in known:
            found[_range(rate)] += 1
        return PoolMetrics(
            problems=self._size,
            retired=self._size - len(self._left),
            untried=len(self._left) - len(known),
            rates=found,
        )


def _range(rate: float) -> str:
    return "100%" if rate == 1 else next(name for name, end in _RANGES.items() if rate <= end)
