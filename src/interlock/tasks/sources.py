"""Where problems come from: a fixed list, or a procedure that draws them.

Both draw the training problems of a step from (seed, step) alone, so a resumed run needs no
iterator state; no two problems of one step are the same; no training problem is a held-out one.

`dropped` counts the rows of a file left out because another one was the same; drawing again what
was drawn before loses nothing.
"""

import functools
from collections.abc import Callable, Container
from random import Random
from typing import Protocol

from interlock.config.schema import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem


class TaskSource(Protocol):
    dropped: int

    def train(self, step: int, count: int) -> list[Problem]:
        """`count` different training problems, the same for the same (task, step, count)."""
        ...

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` of the problems that training never sees."""
        ...


class ListSource:
    """Problems from a file, in a new order every epoch.

    An epoch is len(training) // count whole steps; the few problems left over sit that epoch out.
    """

    def __init__(
        self, training: list[Problem], held_out: list[Problem], seed: int, dropped: int
    ) -> None:
        assert not {problem.id for problem in training} & {problem.id for problem in held_out}
        self.dropped = dropped
        self._training = training
        self._held_out = held_out
        self._seed = seed

    def train(self, step: int, count: int) -> list[Problem]:
        steps_per_epoch = len(self._training) // count
        if steps_per_epoch == 0:
            raise TaskError(
                f"a step of {count} problems needs more than the {len(self._training)} training "
                "problems there are; lower problems_per_step"
            )
        epoch, place = divmod(step, steps_per_epoch)
        order = _epoch_order(self._seed, epoch, len(self._training))
        return [self._training[index] for index in order[place * count : (place + 1) * count]]

    def held_out(self, count: int) -> list[Problem]:
        return _first(self._held_out, count)


class ProceduralSource:
    """Problems drawn at random by `draw`, without an end.

    `family` maps a problem to the key under which two problems count as the same.
    """

    def __init__(
        self,
        draw: Callable[[Random], Problem],
        seed: int,
        held_out: int,
        family: Callable[[Problem], str] = lambda problem: problem.id,
    ) -> None:
        self.dropped = 0
        self._draw = draw
        self._seed = seed
        self._family = family
        self._held_out = self._distinct(Random(f"{seed}/held-out"), held_out, taken=())

    def train(self, step: int, count: int) -> list[Problem]:
        rng = Random(f"{self._seed}/train/{step}")
        return list(self._distinct(rng, count, taken=self._held_out).values())

    def held_out(self, count: int) -> list[Problem]:
        return _first(list(self._held_out.values()), count)

    def _distinct(self, rng: Random, count: int, taken: Container[str]) -> dict[str, Problem]:
        """`count` problems by family, none of a family in `taken`."""
        found: dict[str, Problem] = {}
        draws_left = 1000 + 100 * count
        while len(found) < count:
            if draws_left == 0:
                raise TaskError(
                    f"the task has too few different problems: found {len(found)} of {count}; "
                    "lower held_out or problems_per_step, or widen the task's options"
                )
            draws_left -= 1
            problem = self._draw(rng)
            family = self._family(problem)
            if family not in found and family not in taken:
                found[family] = problem
        return found


def prompt(task: TaskSettings, question: str) -> list[dict[str, str]]:
    """The chat turns of a problem: the task's system turn, if it has one, and the question."""
    system = [] if task.system is None else [{"role": "system", "content": task.system}]
    return [*system, {"role": "user", "content": question}]


def _first(held_out: list[Problem], count: int) -> list[Problem]:
    if count > len(held_out):
        raise TaskError(
            f"{count} held-out problems asked for, but the task holds out {len(held_out)}; "
            f"set held_out = {count} or evaluate on fewer"
        )
    return held_out[:count]


@functools.lru_cache(maxsize=1)
def _epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    return Random(f"{seed}/epoch/{epoch}").sample(range(size), size)
