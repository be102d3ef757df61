"""Several tasks as one: a step mixes their problems by weight, and each has its own verifier.

    step ──shares──> how many of each ──stretch──> TaskSource … ──shuffle──> problems, with .task
    Verifiers ──by problem.task──> VerifierPool … ──> verdicts, in order

What a step mixes is a function of (seeds, step) alone, but for tasks that are drawn by pass rate
(drawing.py): then also of what was learned of them before. Of count * w problems due to a task, a
step has the whole number below or above, and over the steps so far what was due, give or take one
or two: the roundings follow a sequence that fills [0, 1) evenly (multiples of the golden ratio;
Knuth, The Art of Computer Programming 3, section 6.4). Of a drawn task that has ended it has none.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil
from pathlib import Path
from random import Random
from types import TracebackType

from msgspec.structs import replace

from interlock.config.rewards import PythonReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
from interlock.records.metrics import PoolMetrics
from interlock.records.rl import Attempt, Problem, Verdict
from interlock.tasks import modes, open_beside, user_verifier
from interlock.tasks.drawing import DrawnSource, GroupOutcome
from interlock.tasks.retries import Pair
from interlock.tasks.sources import TaskSource, Unfit, fits
from interlock.tasks.weighed import judges, opened

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
_WHOLE = 1 << 64


def open_tasks(tasks: Sequence[TaskSettings], unfit: Unfit = fits) -> "Mixture":
    """Open every task; see `open_beside`."""

    def tried(task: TaskSettings) -> Unfit:
        return lambda problem: unfit(modes.asked(problem, task))

    return Mixture(tasks, open_beside(tasks, [tried(task) for task in tasks]))


def written(task: TaskSettings) -> Iterator[Path]:
    """The files of its rewards that are functions of the user's. Raises TaskError."""
    for each in task.reward:
        if isinstance(each, PythonReward):
            try:
                yield from user_verifier.sources(each.function)
            except TaskError as error:
                raise TaskError(f"reward {each.called!r}: {error}") from None


def shares(weights: Sequence[float], seed: int, step: int, count: int) -> list[int]:
    """How many of a step's `count` problems are of each task; all of them add up to `count`.

    Each is count * w / sum(weights) rounded down or up, w its weight.
    """
    total = sum(map(Fraction, weights))
    ends = [count * part / total for part in accumulate(map(Fraction, weights), initial=Fraction())]
    shift = Fraction((seed + step * _GOLDEN) % _WHOLE, _WHOLE)
    return [int(end + shift) - int(begin + shift) for begin, end in pairwise(ends)]


class Mixture:
    """The TaskSource of a stage. Every problem carries what its task is called.

    Ids are kept apart: of several tasks each is preceded by the task's name.
    """

    def __init__(self, tasks: Sequence[TaskSettings], sources: Sequence[TaskSource]) -> None:
        assert len(tasks) == len(sources) > 0
        self.dropped = sum(source.dropped for source in sources)
        self.left_out = sum(source.left_out for source in sources)
        own = [path for task in tasks for path in written(task)]
        self.files: Sequence[Path] = list(
            dict.fromkeys([*(path for source in sources for path in source.files), *own])
        )
        self.names = [task.called for task in tasks]
        self._sources, self._tasks = sources, tasks
        self._weights = [task.weight for task in tasks]
        text = "/".join(str(task.seed) for task in tasks)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self._seed = int.from_bytes(digest, "big")
        self._before: dict[int, list[list[int]]] = {}  # by count: of each task, before each step

    def train(self, step: int, count: int) -> list[Problem]:
        if len(self._sources) == 1:
            return self._of(0, self._sources[0].train(step, count))
        first, most = self._wanted(step, count), self._most(count)
        problems = [
            problem
            for place, number in enumerate(shares(self._weights, self._seed, step, count))
            for problem in self._of(
                place, self._sources[place].stretch(step, first[place], number, most[place])
            )
        ]
        Random(f"{self._seed}/order/{step}").shuffle(problems)
        return problems

    def stretch(self, step: int, first: int, count: int, most: int) -> list[Problem]:
        raise NotImplementedError("a mixture is no part of another")

    def check(self, steps: int, count: int) -> None:
        for place, most in enumerate(self._most(count)):
            try:
                self._sources[place].check(steps, most)
            except TaskError as error:
                if len(self._sources) == 1:
                    raise
                raise TaskError(f"{self.names[place]}: {error}") from None

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` of each task."""
        problems = []
        for place, source in enumerate(self._sources):
            try:
                problems += self._of(place, source.held_out(count))
            except TooFewProblems as error:
                raise (error if len(self._sources) == 1 else error.of(self.names[place])) from None
        return problems

    def learn(self, outcomes: Iterable[GroupOutcome]) -> list[str]:
        """What groups say of problems that are drawn by pass rate. -> those that are retired"""
        retired = []
        told = list(outcomes)
        for name, source in self._drawn():
            mark = f"{name}: " if len(self._sources) > 1 else ""
            own = (
                each._replace(problem=each.problem.removeprefix(mark))
                for each in told
                if each.task == name
            )
            retired += [mark + problem for problem in source.learn(own)]
        return retired

    def standing(self) -> dict[str, PoolMetrics]:
        """How the problems of each task that is drawn by pass rate stand."""
        return {name: source.standing() for name, source in self._drawn()}

    def ended(self, count: int) -> dict[str, bool]:
        """Of each task, whether it has fewer problems left than a step of `count` may want."""
        tasks = zip(self.names, self._sources, self._most(count), strict=True)
        return {
            name: isinstance(source, DrawnSource) and source.ended(most)
            for name, source, most in tasks
        }

    def _drawn(self) -> Iterator[tuple[str, DrawnSource]]:
        for name, source in zip(self.names, self._sources, strict=True):
            if isinstance(source, DrawnSource):
                yield name, source

    def _most(self, count: int) -> list[int]:
        total = sum(map(Fraction, self._weights))
        return [ceil(count * Fraction(weight) / total) for weight in self._weights]

    def _wanted(self, step: int, count: int) -> list[int]:
        """How many problems of each task the steps before this one want."""
        sums = self._before.setdefault(count, [[0] * len(self._sources)])
        while len(sums) < step:
            numbers = shares(self._weights, self._seed, len(sums), count)
            sums.append([a + b for a, b in zip(sums[-1], numbers, strict=True)])
        return sums[step - 1]

    def _of(self, place: int, problems: Iterable[Problem]) -> list[Problem]:
        name, task = self.names[place], self._tasks[place]
        problems = [modes.asked(problem, task) for problem in problems]
        if len(self._sources) == 1:
            return [replace(problem, task=name) for problem in problems]
        return [replace(each, task=name, id=f"{name}: {each.id}") for each in problems]


class Verifiers:
    """The verifiers of all tasks of a stage, alive inside the `with` block; as a VerifierPool."""

    def __init__(self, tasks: Sequence[TaskSettings]) -> None:
        self._pools = {task.called: opened(task) for task in tasks}

    @property
    def errors(self) -> int:
        return sum(pool.errors for pool in self._pools.values())

    @property
    def retried(self) -> int:
        return sum(pool.retried for pool in self._pools.values())

    def spent(self) -> dict[str, float]:
        """What models as judges cost since this was last asked; nothing without any."""
        found: Counter[str] = Counter()
        for pool in self._pools.values():
            for judge in judges(pool):
                found.update(judge.cost().figures())
        return dict(found)

    def __enter__(self) -> "Verifiers":
        with ExitStack() as stack:
            for pool in self._pools.values():
                stack.enter_context(pool)
                for judge in judges(pool):
                    judge.try_out()
            threads = ThreadPoolExecutor(len(self._pools), thread_name_prefix="verifiers")
            self._threads = stack.enter_context(threads)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def verify(self, pairs: Sequence[Pair | Attempt]) -> list[Verdict]:
        """One verdict per (problem, answer), in order, each by its task's verifier."""
        places: dict[str, list[int]] = {}
        for index, (problem, *_) in enumerate(pairs):
            places.setdefault(problem.task, []).append(index)

        def judge(task: str) -> list[Verdict]:
            return self._pools[task].verify([pairs[index] for index in places[task]])

        verdicts: dict[int, Verdict] = {}
        for task, found in zip(places, self._threads.map(judge, places), strict=True):
            verdicts |= zip(places[task], found, strict=True)
        return [verdicts[index] for index in range(len(pairs))]
