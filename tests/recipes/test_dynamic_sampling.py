"""Groups that teach nothing are replaced by the next of the stream: bounded, counted, and the same
when the process is killed anywhere and resumed.
"""

import random
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from ticking_generators import STAGE, FakeGenerators, FakeTask, Killed, constant, open_stage

from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Clock
from interlock.records.metrics import RolloutMetrics
from interlock.records.rl import Attempt, Problem, ScoredGroup, Verdict, VerdictStatus
from interlock.rundir import RunDir

PROBLEMS = 4


class Judge:
    """Right and wrong by turns, but always wrong on the barren problems."""

    retried = 0

    def __init__(self, barren: Collection[int]) -> None:
        self.barren = barren

    def verify(self, answers: Sequence[Attempt]) -> list[Verdict]:
        return [
            Verdict(float(place % 2 == 0 and number(problem) not in self.barren))
            for place, (problem, *_) in enumerate(answers)
        ]

    def spent(self) -> dict[str, float]:
        return {}


def number(problem: Problem) -> int:
    step, index = map(int, problem.id.split("-"))
    return (step - 1) * PROBLEMS + index


def differ(scored: ScoredGroup) -> bool:
    return len(set(scored.rewards)) > 1


class Life:
    """One process's time on the stage."""

    def __init__(
        self, run: RunDir, generators: FakeGenerators, barren: Collection[int], **given: Any
    ) -> None:
        extra, cap = given.pop("extra"), given.pop("cap", 0)
        self.run, self.generators = run, generators
        stage = open_stage(run, generators, steps=6, problems=PROBLEMS, cap=cap, **given)
        self.stage, self.judge = stage, Judge(barren)
        self.rollouts = Rollouts(stage, FakeTask(), extra)
        self.metrics: RolloutMetrics | None = None

    def step(self, step: int) -> list[int]:
        """The problems that were used."""
        self.stage.learner.version = self.generators.version = step - 1
        if not (scored := self.run.ledger.read(STAGE, step)):
            judge: Any = self.judge
            scored = self.rollouts.judged(step, judge, Clock(), differ)
        self.metrics = self.rollouts.metrics(step, scored, sum(not differ(each) for each in scored))
        return self.run.ledger.sequences(STAGE, step)


def test_by_hand(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)), {1, 2, 5}, extra=3)
    # 1 and 2 teach nothing, so 4 and 5 are made, and for 5 again 6.
    assert life.step(1) == [0, 1, 2, 3, 4, 5, 6]
    assert life.metrics is not None
    assert (life.metrics.groups, life.metrics.groups_extra) == (7, 3)
    assert life.metrics.groups_skipped == 3
    assert life.metrics.reward == pytest.approx(4 / 14)  # of all that was sampled
    assert life.step(2) == [7, 8, 9, 10]
    assert life.metrics.groups_extra == 0


def test_no_more_than_the_bound_is_made_and_every_step_has_it(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)), range(1000), extra=2)
    for step in range(1, 7):
        assert life.step(step) == list(range(6 * step - 6, 6 * step))


def test_without_it_nothing_is_replaced(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)), range(1000), extra=0)
    assert [life.step(step) for step in (1, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


class Outage(Judge):
    """Reaches nobody from the second time on that it is asked."""

    asked = 0

    def verify(self, answers: Sequence[Attempt]) -> list[Verdict]:
        self.asked += 1
        gone = Verdict.failed(VerdictStatus.UNAVAILABLE, "the judge is down")
        return [gone] * len(answers) if self.asked > 1 else super().verify(answers)


def test_a_step_that_was_judged_needs_none_of_those_made_in_place_of_others(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)), {1, 2}, extra=3)
    life.judge = Outage({1, 2})
    assert life.step(1) == [0, 1, 2, 3, 4, 5, 6]
    assert life.metrics is not None
    assert (life.metrics.discarded, life.metrics.reward) == (6, pytest.approx(2 / 8))


BARREN = {1, 2, 4, 5, 9, 10, 12, 13, 14, 15, 16}


@pytest.mark.parametrize("after", range(0, 24, 2))
def test_killed_anywhere_it_goes_on_with_the_same_groups_and_units(
    run: RunDir, after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with RunDir.create(tmp_path_factory.mktemp("whole") / "run", {}, {}) as other:
        undisturbed = FakeGenerators(constant(1))
        life = Life(other, undisturbed, BARREN, extra=3, unit=2)
        expected = [life.step(step) for step in range(1, 5)]
    first = FakeGenerators(constant(1))
    first.kill_after = after
    with pytest.raises(Killed):
        life = Life(run, first, BARREN, extra=3, unit=2)
        for step in range(1, 5):
            life.step(step)
    second = FakeGenerators(constant(1))
    life = Life(run, second, BARREN, extra=3, unit=2)
    assert [life.step(step) for step in range(1, 5)] == expected
    whole = {(work.keys, work.seed) for work in undisturbed.ordered}
    assert {(work.keys, work.seed) for work in [*first.ordered, *second.ordered]} == whole


@pytest.mark.parametrize("seed", range(5))
def test_ahead_of_the_learner_no_group_is_used_twice_or_too_late(run: RunDir, seed: int) -> None:
    noise = random.Random(seed)
    barren = {key for key in range(200) if noise.random() < 0.4}
    life = Life(run, FakeGenerators(lambda: noise.randrange(4)), barren, extra=4, cap=2)
    used: list[int] = []
    for step in range(1, 7):
        own = life.step(step)
        used += own
        taught = [key for key in own if key not in barren]
        assert len(taught) == PROBLEMS or len(own) == PROBLEMS + 4
        assert life.metrics is not None and (life.metrics.staleness_max or 0) <= 2
    assert len(used) == len(set(used))
    # Nothing is under way when the stage ends: the next one would be given it.
    assert life.generators.unfinished == set()
