"""Where problems come from: a fixed list, or a procedure that draws them.

Both draw the training problems of a step (from 1) from (seed, step) alone: a resumed run needs no
iterator state. No two problems of one step are the same; no training problem is a held-out one.

Of the rows of a file, `dropped` counts those that repeat another, `left_out` those that do not fit;
drawing another problem instead loses nothing. `files` are all that problems and verdicts hang on.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
from interlock.records.rl import Problem

_CHECKED = 2000  # problems of a procedure, drawn before the first step to see whether they fit
_FEWER = "lower held_out, problems_per_step or draw.pool, or widen the task's options"

# Why a problem does not fit the model, and what to do about it; None: it fits.
Unfit = Callable[[Problem], str | None]


def fits(problem: Problem) -> None:
    """Of a source that is opened without a model."""


class TaskSource(Protocol):
    dropped: int
    left_out: int
    files: Sequence[Path]

    def train(self, step: int, count: int) -> list[Problem]:
        """`count` different training problems, the same for the same (task, step, count)."""
        ...

    def stretch(self, step: int, first: int, count: int, most: int) -> list[Problem]:
        """`count` different training problems for a step that does not always want as many.

        Args:
            first: how many problems the steps before it wanted in all.
            most: what a step ever wants.
        """
        ...

    def check(self, steps: int, count: int) -> None:
        """Raise TaskError when there are not `count` problems for each of so many steps, or one
        does not fit.
        """
        ...

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` of the problems that training never sees."""
        ...


class PooledSource(TaskSource, Protocol):
    """One whose problems can be had as a list, too: what tasks/drawing.py draws from."""

    rates: Mapping[str, float]  # by id: pass rates that the data tell

    @property
    def reserved(self) -> Collection[str]:
        """What no source beside this one may train on: the keys of what it holds out."""
        ...

    def spare(self, reserved: Collection[str]) -> None:
        """Train on none of these, which sources of the same kind hold out."""
        ...

    def pool(self, size: int) -> list[Problem]:
        """All training problems; of a procedure, `size`. Raises TaskError for any other `size`."""
        ...


class ListSource:
    """Problems from a file, one epoch after the other, each with all of them in a new order.

    A step may end one epoch and begin the next.
    """

    def __init__(
        self,
        training: list[Problem],
        held_out: list[Problem],
        seed: int,
        dropped: int = 0,
        left_out: int = 0,
        files: Sequence[Path] = (),
        rates: Mapping[str, float] | None = None,
    ) -> None:
        assert not {problem.id for problem in training} & {problem.id for problem in held_out}
        self.dropped, self.left_out, self.files = dropped, left_out, files
        self.rates = rates or {}
        self._training = training
        self._held_out = held_out
        self._seed = seed
        self._spaced: dict[int, _SpacedOrders] = {}  # by window

    @property
    def reserved(self) -> Collection[str]:
        return [problem.id for problem in self._held_out]

    def spare(self, reserved: Collection[str]) -> None:
        left = [problem for problem in self._training if problem.id not in set(reserved)]
        self.dropped += len(self._training) - len(left)
        self._training = left

    def pool(self, size: int) -> list[Problem]:
        if size:
            raise TaskError(
                f"draw.pool = {size} is of a task that makes its problems, and this one has "
                f"{len(self._training)} of its own; remove it"
            )
        return self._training

    def train(self, step: int, count: int) -> list[Problem]:
        self.check(step, count)
        size, first = len(self._training), (step - 1) * count
        places = (divmod(at, size) for at in range(first, first + count))
        return [
            self._training[_epoch_order(self._seed, epoch, size, count)[place]]
            for epoch, place in places
        ]

    def stretch(self, step: int, first: int, count: int, most: int) -> list[Problem]:
        self.check(step, most)
        size = len(self._training)
        if most not in self._spaced:
            self._spaced[most] = _SpacedOrders(self._seed, size, most)
        orders = self._spaced[most]
        places = (divmod(at, size) for at in range(first, first + count))
        return [self._training[orders.of(epoch)[place]] for epoch, place in places]

    def check(self, steps: int, count: int) -> None:
        if count > len(self._training):
            raise TaskError(
                f"a step of {count} problems needs more than the {len(self._training)} training "
                "problems there are; lower problems_per_step"
            )

    def held_out(self, count: int) -> list[Problem]:
        return _first(self._held_out, count)


class ProceduralSource:
    """Problems drawn at random by `draw`, without an end.

    `family` maps a problem to the key under which two problems count as the same; there are at most
    `families`. One that is `unfit` is drawn again, or refused when `overlong` is "refuse". None is
    of a family in `aside`.
    """

    dropped = left_out = 0
    files: Sequence[Path] = ()
    rates: Mapping[str, float] = {}

    def __init__(
        self,
        draw: Callable[[Random], Problem],
        seed: int,
        held_out: int,
        families: int,
        family: Callable[[Problem], str] = lambda problem: problem.id,
        unfit: Unfit = fits,
        overlong: str = "refuse",
        aside: Collection[str] = (),
    ) -> None:
        self._unfit, self._overlong = unfit, overlong
        self._draw = draw
        self._seed = seed
        self._families = families
        self._family = family
        self._aside = set(aside)
        self._spared: set[str] = set()
        self._held_out = self._distinct(Random(f"{seed}/held-out"), held_out, taken=self._aside)

    @property
    def reserved(self) -> Collection[str]:
        return self._held_out.keys()

    def spare(self, reserved: Collection[str]) -> None:
        self._spared |= set(reserved)

    def pool(self, size: int) -> list[Problem]:
        if not size:
            raise TaskError(
                "draw is from a list, and this task makes its problems without an end; set "
                "draw.pool to how many are to be made"
            )
        return self.train(1, size)

    def train(self, step: int, count: int) -> list[Problem]:
        rng = Random(f"{self._seed}/train/{step}")
        taken = self._aside | self._held_out.keys()
        return list(self._distinct(rng, count, taken, self._spared).values())

    def stretch(self, step: int, first: int, count: int, most: int) -> list[Problem]:
        return self.train(step, count) if count else []

    def check(self, steps: int, count: int) -> None:
        for step in range(1, 1 + min(steps, max(1, _CHECKED // count))):
            self.train(step, count)

    def held_out(self, count: int) -> list[Problem]:
        return _first(list(self._held_out.values()), count)

    def _distinct(
        self,
        rng: Random,
        count: int,
        taken: Collection[str],
        spared: Collection[str] = (),  # of which few may be this task's
    ) -> dict[str, Problem]:
        """`count` problems by family, none of a family in `taken` or `spared`."""
        if count + len(taken) > self._families:
            held = f"and {len(taken)} held out " if taken else ""
            raise TooFewProblems(
                f"{count} different problems {held}are more than the {self._families} that the "
                "task has",
                self._families - len(taken),
                _FEWER,
            )
        found: dict[str, Problem] = {}
        draws_left, unfit = 1000 + 100 * count, 0
        while len(found) < count:
            if draws_left == 0:
                raise TooFewProblems(
                    f"the task has too few different problems: found {len(found)} of {count}"
                    + f", and drew {unfit} that do not fit the model" * bool(unfit),
                    len(found),
                    _FEWER,
                )
            draws_left -= 1
            problem = self._draw(rng)
            if (why := self._unfit(problem)) is not None:
                if self._overlong == "refuse":
                    advice = 'or have others drawn: overlong = "leave_out"'
                    raise TaskError(f"problem {problem.id}: {why}, {advice}")
                unfit += 1
                continue
            family = self._family(problem)
            if family not in found and family not in taken and family not in spared:
                found[family] = problem
        return found


def prompt(
    task: TaskSettings, question: str, before: Sequence[dict[str, str]] = ()
) -> list[dict[str, str]]:
    """The chat turns of a problem: the task's system turn, if it has one, those before the question
    and the question.
    """
    system = [] if task.system is None else [{"role": "system", "content": task.system}]
    return [*system, *before, {"role": "user", "content": question}]


def counted(there: int, left_out: int) -> str:
    """How many problems some rows are, for who did not find enough."""
    return f"{there} different problems" + f" beside {left_out} too long rows" * bool(left_out)


def _first(held_out: list[Problem], count: int) -> list[Problem]:
    if count > len(held_out):
        raise TooFewProblems(
            f"{count} held-out problems asked for, but the task holds out {len(held_out)}",
            len(held_out),
            f"set held_out = {count} or evaluate on fewer",
        )
    return held_out[:count]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int, count: int) -> list[int]:
    """The order of an epoch in which every step takes `count`; none of a step that began in the
    epoch before is in it twice.
    """
    order: list[int] = []
    for each in range(epoch - epoch % count, epoch + 1):  # the first of these begins with a step
        begun = each * size % count  # of the step that goes on in this epoch
        before = set(order[size - begun :])
        drawn = Random(f"{seed}/epoch/{each}").sample(range(size), size)
        first = [index for index in drawn if index not in before][: -begun % count]
        order = first + [index for index in drawn if index not in set(first)]
    return order


class _SpacedOrders:
    """Orders of epochs in which no `window` problems in a row are twice the same one, those that
    begin in the epoch before included. `window` is no more than `size`.
    """

    def __init__(self, seed: int, size: int, window: int) -> None:
        self._seed, self._size, self._window = seed, size, window
        self._known: dict[int, list[int]] = {}  # the last few, by epoch

    def of(self, epoch: int) -> list[int]:
        nearest = max((each for each in self._known if each <= epoch), default=-1)
        order = self._known.get(nearest, [])
        for each in range(nearest + 1, epoch + 1):
            order = self._known[each] = self._following(order, each)
            self._known.pop(each - 2, None)
        return order

    def _following(self, order: list[int], epoch: int) -> list[int]:
        left = Random(f"{self._seed}/spaced/{epoch}").sample(range(self._size), self._size)
        recent = order[self._size - self._window + 1 :] if order and self._window > 1 else []
        first = []
        for place in range(len(recent)):
            near = set(recent[place:])
            first.append(left.pop(next(at for at, one in enumerate(left) if one not in near)))
        return first + left
