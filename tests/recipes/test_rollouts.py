"""Which problems a step orders and takes, whoever answers them and whenever."""

import random

import pytest
from msgspec.structs import replace
from ticking_generators import STAGE, FakeGenerators, Session, constant, group_of

from interlock.errors import TrainingError
from interlock.records.metrics import RolloutMetrics
from interlock.records.rl import Problem
from interlock.rundir import RunDir
from interlock.workers.generators import Outcome, Purpose


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_nothing_is_begun_with_weights_that_will_be_too_old(run: RunDir, cap: int) -> None:
    """Workers that are slow to load would begin the newest problems with the weights before."""
    generators = FakeGenerators(constant(2), workers=4, loading=3)
    session = Session(run, generators, pause=constant(4), steps=12, problems=4, cap=cap)
    for step in range(1, 13):
        session.step(step)
    assert session.stale == 0
    assert sorted(run.ledger.used(STAGE)) == list(range(48))
    assert session.metrics.staleness_max <= cap


def test_synchronous_steps_take_their_own_problems_in_order(run: RunDir) -> None:
    delays = random.Random(0)
    generators = FakeGenerators(lambda: delays.randrange(5), workers=3)
    s = Session(run, generators, steps=4, problems=5, cap=0)
    for step in range(1, 5):
        found = s.step(step)
        assert [sequence for sequence, _ in found] == list(range(5 * step - 5, 5 * step))
        assert [group.problem.id for _, group in found] == [f"{step}-{i}" for i in range(5)]
        assert {s.rollouts.staleness(group) for _, group in found} == {0}
        assert s.ahead == 0  # nothing is begun before the next weights
    assert s.stale == s.rollouts.set_aside == 0


def test_units_are_of_one_step_and_as_asked_for(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=3, problems=5, cap=0)
    s.step(1)
    s.step(2)
    # Five problems for two workers, where bits count: three and two.
    assert [work.keys for work in generators.ordered] == [(0, 1, 2), (3, 4), (5, 6, 7), (8, 9)]
    seeds = [s.stage.seed(step) for step in (1, 1, 2, 2)]
    assert [work.seed for work in generators.ordered] == seeds and seeds[1] != seeds[2]
    assert [p.id for p in generators.ordered[3].problems] == ["2-3", "2-4"]
    assert all(work.exact for work in generators.ordered)
    small = FakeGenerators(constant(0), workers=2)
    again = Session(run, small, steps=4, problems=5, cap=0, unit=2)
    again.step(3)
    again.step(4)
    assert [work.keys for work in small.ordered][-3:] == [(15, 16), (17, 18), (19,)]


def test_ahead_of_the_learner_every_problem_is_a_unit(run: RunDir) -> None:
    """Nothing has to be computed together, and no group waits for another."""
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=3, problems=3, cap=1)
    s.step(1)
    assert [work.keys for work in generators.ordered] == [(key,) for key in range(6)]
    assert [work.seed for work in generators.ordered] == [s.stage.seed(1)] * 3 + [
        s.stage.seed(2)
    ] * 3
    assert not any(work.exact for work in generators.ordered)


def test_staleness_is_by_default_two_versions(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    s = Session(run, generators, steps=9, problems=2, cap=None)
    s.step(1)
    assert max(key for work in generators.ordered for key in work.keys) == 5  # 3 steps of 2


def test_the_oldest_are_used_first_and_a_slow_one_when_it_comes(run: RunDir) -> None:
    delays = iter([100, *[0] * 100])  # the first unit takes long
    generators = FakeGenerators(lambda: next(delays), workers=2)
    s = Session(run, generators, steps=9, problems=2, cap=2, unit=1)
    assert s.step(1) and s.taken[1] == [1, 2]
    assert s.step(2) and s.taken[2] == [3, 4]
    _, unit, version = generators._busy["w0"]
    assert unit.keys == (0,)
    generators._busy["w0"] = (0, unit, version)
    generators.tick()
    s.step(3)
    assert s.taken[3][0] == 0  # by version 0, two behind: just within the cap
    assert s.rollouts.stale == 0


def test_the_oldest_goes_first_also_when_it_came_between_two_steps(run: RunDir) -> None:
    delays = iter([12, *[0] * 100])
    pauses = iter([4, 20, 0])
    generators = FakeGenerators(lambda: next(delays), workers=2)
    s = Session(run, generators, steps=9, problems=1, cap=3, pause=lambda: next(pauses))
    s.step(1)
    s.step(2)
    assert (s.taken[1], s.taken[2]) == ([1], [2])
    assert 0 in dict(run.ledger.arrivals(STAGE)) and 3 in dict(run.ledger.arrivals(STAGE))
    s.step(3)
    assert s.taken[3] == [0]


def test_a_problem_set_aside_is_replaced_by_the_next_and_never_tried_again(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = {1, 4}
    s = Session(run, generators, steps=4, problems=2, cap=0)
    for step in (1, 2):
        s.step(step)
        assert s.rollouts.set_aside == 1
    assert s.taken == {1: [0, 2], 2: [3, 5]}
    assert run.ledger.set_asides(STAGE) == {1: "it kills", 4: "it kills"}
    healthy = FakeGenerators(constant(0))
    resumed = Session(run, healthy, steps=4, problems=2, cap=0)
    resumed.step(3)
    assert resumed.taken == {3: [6, 7]}
    assert {key for work in healthy.ordered for key in work.keys} == {6, 7}


def test_a_stage_ends_also_when_a_steps_worth_of_problems_was_set_aside(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = {0}
    s = Session(run, generators, steps=3, problems=1, cap=0)
    for step in (1, 2, 3):
        assert len(s.step(step)) == 1
    assert s.taken == {1: [1], 2: [2], 3: [3]}  # 3 is one more than the stage's own


def test_metrics_by_hand(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    generators.set_aside = {3}
    for sequence, version in enumerate([4, 6, 7, 2]):
        group = group_of(Problem(f"1-{sequence}", [], ""), version, "w0")
        run.ledger.arrive(STAGE, [(sequence, group)])
    s = Session(run, generators, steps=9, problems=4, cap=3, unit=1)
    s.step(8)  # trained on version 7
    assert s.taken[8] == [0, 1, 2, 4]  # 3 is five versions old, and then nobody can answer it
    expected = RolloutMetrics(
        reward=0.0,
        correct=0.0,
        reward_error=0.0,
        verdict=0.0,
        verdict_error=0.0,
        length=1.0,
        truncated=0.0,
        tokens=8,  # four groups of two completions of one token
        groups=4,
        groups_skipped=4,
        groups_stale=1,
        groups_set_aside=1,
        staleness_mean=1.0,  # 3, 1, 0, 0
        staleness_max=3,
        verifier_errors=0,
        discarded=0,
        completions=8,
    )
    assert s.metrics == expected
    s.step(9)
    fresh = {"staleness_mean": 0.0, "staleness_max": 0, "groups_stale": 0, "groups_set_aside": 0}
    assert s.metrics == replace(expected, **fresh)


def test_without_a_problem_left_the_stage_stops(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = set(range(1000))
    s = Session(run, generators, steps=2, problems=2, cap=0)
    with pytest.raises(TrainingError, match="step 1: every problem left was set aside"):
        s.step(1)
    # Twice as many as the stage's own were tried: it does not go on for ever.
    assert run.ledger.set_asides(STAGE).keys() == set(range(8))


def test_no_generator_left_is_passed_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    generators = FakeGenerators(constant(0))
    s = Session(run, generators, steps=2, problems=2, cap=0)

    def collect(purpose: Purpose, timeout_s: float) -> list[Outcome]:
        raise TrainingError("no generator is left")

    monkeypatch.setattr(generators, "collect", collect)
    with pytest.raises(TrainingError, match="no generator is left"):
        s.step(1)
