"""The endless stream of a stage's problems: which one has which place.

    place 0, 1, 2, …    stretch 1: places 0 to n - 1    stretch 2: places n to 2 n - 1    …

n is `problems_per_step`. A stretch is a function of (task seed, its number). Where tasks are drawn
by pass rate (tasks/drawing.py) it hangs on what the groups of earlier steps have shown, too:

    ledger: groups of steps 1 … s - 1 ── learn ──> pass rates, retired ──draw──> stretch ──> ledger

It is drawn when step s first wants any of it, by the groups that the ledger holds of the steps
before s, and is in the ledger with what was retired before a problem of it is ordered. So s is the
stretch's own number where nothing runs ahead; `staleness` less where generators do; and less by
what a step took in place of groups that teach nothing. What is there is never drawn again: a
resumed run has the same problems, and in a synchronous stage draws the others as it would have.
"""

from typing import Protocol

from interlock.config.stages import Sampled
from interlock.errors import RunError, TrainingError
from interlock.recipes.stage import Stage
from interlock.records.metrics import PoolMetrics
from interlock.records.rl import DrawnProblems, Problem
from interlock.rundir.draws import Draws
from interlock.rundir.ledger import JudgedGroup
from interlock.tasks import TaskSource
from interlock.tasks.drawing import GroupOutcome
from interlock.tasks.mixture import Mixture

_IDLE = 200  # draws in a row without a problem, while tasks are left


class ProblemStream(Protocol):
    @property
    def voids(self) -> int:
        """Places without a problem, so far: their tasks have ended."""
        ...

    @property
    def closed(self) -> bool:
        """Whether no place has a problem but those that are settled."""
        ...

    def problem(self, sequence: int) -> Problem | None:
        """None: that place has none. What is not settled yet is drawn by what is known now."""
        ...

    def learn(self, step: int) -> None:
        """Take in what the ledger holds of the steps up to this one."""
        ...

    def standing(self) -> dict[str, PoolMetrics]:
        """How the problems of each task that is drawn by pass rate stand."""
        ...


def open_stream(stage: Stage[Sampled], task: TaskSource) -> ProblemStream:
    """Raises RunError when the ledger has lost what was drawn."""
    if any(each.draw for each in stage.settings.task):
        assert isinstance(task, Mixture)
        return DrawnStream(stage, task)
    return OrderedStream(stage, task)


class OrderedStream:
    """A function of the task's seed: nothing is kept, and it has no end."""

    voids = 0
    closed = False

    def __init__(self, stage: Stage[Sampled], task: TaskSource) -> None:
        self._task, self._count = task, stage.settings.problems_per_step
        self._last: tuple[int, list[Problem]] = (0, [])

    def problem(self, sequence: int) -> Problem | None:
        before, index = divmod(sequence, self._count)
        if self._last[0] != before + 1:
            self._last = (before + 1, self._task.train(before + 1, self._count))
        return self._last[1][index]

    def learn(self, step: int) -> None:
        pass

    def standing(self) -> dict[str, PoolMetrics]:
        return {}


class DrawnStream:
    """By pass rate. A draw in which all tasks have ended is the last, and has no problems."""

    def __init__(self, stage: Stage[Sampled], task: Mixture) -> None:
        self._stage, self._task = stage, task
        self._ledger, self._count = stage.run.ledger, stage.settings.problems_per_step
        self._draws = Draws(self._ledger, stage.index)
        self._found = self._draws.read()
        self._known = 0  # step up to which it was learned
        self._retired: list[str] = []  # since the draw before
        if max(self._ledger.used(stage.index), default=-1) >= len(self._found) * self._count:
            raise RunError(
                f"{self._ledger.path} has lost which problems were drawn; restore it from a copy, "
                "or start a new run"
            )

    @property
    def closed(self) -> bool:
        return bool(self._found) and len(self._found[-1].ended) == len(self._stage.settings.task)

    @property
    def voids(self) -> int:
        open_ones = self._found[:-1] if self.closed else self._found
        return sum(self._count - len(each.problems) for each in open_ones)

    def problem(self, sequence: int) -> Problem | None:
        before, index = divmod(sequence, self._count)
        while before >= len(self._found):
            if self.closed:
                return None
            if len(self._found) >= _IDLE and not any(d.problems for d in self._found[-_IDLE:]):
                raise TrainingError(
                    f"in {_IDLE} draws nothing came of the tasks that are left: their weight is "
                    "too small beside those that are solved; begin anew without these"
                )
            self._draw(len(self._found) + 1)
        problems = self._found[before].problems
        return problems[index] if index < len(problems) else None

    def learn(self, step: int) -> None:
        told = {problem for draw in self._found for problem in draw.retired}
        for each in range(self._known + 1, step + 1):
            judged = self._ledger.judged(self._stage.index, each)
            retired = self._task.learn(map(_outcome, judged))
            self._retired += [problem for problem in retired if problem not in told]
        self._known = max(self._known, step)

    def standing(self) -> dict[str, PoolMetrics]:
        return self._task.standing()

    def _draw(self, number: int) -> None:
        ended = [name for name, it_has in self._task.ended(self._count).items() if it_has]
        problems = self._task.train(number, self._count)
        before = self._found[-1].ended if self._found else []
        draw = DrawnProblems(self._known, problems, self._retired, ended)
        self._draws.record(number, draw)
        self._found.append(draw)
        self._retired = []
        for name in ended:
            if name not in before:
                self._tell(name)

    def _tell(self, name: str) -> None:
        pool = self._task.standing()[name]
        left = (pool.problems or 0) - (pool.retired or 0)
        message = (
            f"{name}: {pool.retired} of {pool.problems} problems are solved, and the {left} left "
            "are fewer than a step wants: no more are drawn"
        )
        if self.closed:
            message += "; nothing is left, and the stage ends with what was drawn before"
        self._stage.event("task_solved", message)


def _outcome(judged: JudgedGroup) -> GroupOutcome:
    said = [verdict for verdict in judged.verdicts if verdict.status.counts]
    asked = judged.group.problem
    return GroupOutcome(asked.id, asked.task, sum(each.right for each in said), len(said))
