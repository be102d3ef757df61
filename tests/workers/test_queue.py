"""Who is given a unit that workers failed, and how the problem at fault is found in it."""

from collections.abc import Callable

from scripted_pool import (
    Scene,
)

from interlock.config.schema import FleetSettings
from interlock.records.metrics import WorkerState
from interlock.workers.generators import Outcome
from interlock.workers.protocol import (
    Failure,
)

Make = Callable[..., Scene]


def test_another_worker_gets_what_one_failed(scene: Make) -> None:
    s = scene("a", "b", "c").ready()
    s.order(0)
    assert s.unit("a") == (0,)
    s.order(1)
    assert s.unit("b") == (1,)
    s.lose("a")
    assert s.unit("c") == (0,) and s.pool.facts()["a"].redispatched == 1
    s.lose("c")
    s.wait(1, "b")
    s.answer("a", "c", "a", "c")  # Open, Load
    assert s.unit("a") == s.unit("c") == ()  # it waits for b, which did not fail it
    s.answer("b")
    assert s.unit("b") == (0,)
    s.answer("b")
    assert [o.key for o in s.outcomes()] == [1, 0]


def test_the_same_worker_gets_it_again_when_there_is_no_other(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.pool.quarantine("b", "odd")
    s.order(0, 1)
    s.lose("a")
    s.wait(1)
    s.ready()
    assert s.unit("a") == (0, 1)


def test_a_unit_does_not_wait_for_a_worker_that_is_not_up(scene: Make) -> None:
    """Whoever failed it takes it again, rather than nobody for as long as a start may take."""
    s = scene("a", "b")
    s.put("a", WorkerState.GENERATING)
    assert s.state("b") is WorkerState.STARTING
    unit = s.unit("a")
    s.lose("a")
    s.wait(2)
    s.answer("a")
    s.answer("a")
    assert s.state("b") is WorkerState.STARTING and s.state("a") is WorkerState.GENERATING
    assert s.unit("a") == unit == (0, 1)


def test_a_permanent_failure_of_a_problem_is_the_problems_own(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0)
    s.fail("a", Failure.MISTAKE)
    assert s.state("a") is WorkerState.READY and s.unit("b") == (0,)
    s.fail("b", Failure.MISTAKE)
    assert s.unit("a") == (0,)  # both failed it: any may try
    s.fail("a", Failure.MISTAKE)
    assert s.outcomes() == [Outcome(0, None, "3 workers failed on it, a last")]
    assert s.kept == [] and s.kinds()[-1] == "problem_set_aside"
    assert not s.pool.all_gone and set(s.fleet.alive) == {"a", "b"}
    for _ in range(5):  # none of this counts against the workers
        s.order(1)
        for name in "aba":
            s.fail(name, Failure.MISTAKE)
    assert {s.state("a"), s.state("b")} == {WorkerState.READY}


def test_quarantine_is_no_strike(scene: Make) -> None:
    s = scene("a", "b", fleet=FleetSettings(strikes=1)).ready()
    s.order(0)
    s.pool.quarantine("a", "odd")
    s.pool.attend([])
    assert s.unit("b") == (0,) and s.outcomes() == []


def test_a_problem_that_kills_is_found_in_its_unit_and_set_aside(scene: Make) -> None:
    s = scene("a", "b", fleet=FleetSettings(failures=100, strikes=3)).ready()
    s.order(0, 1, 2)
    asked = []
    for _ in range(100):
        for name in s.fleet.busy:
            if 1 in (unit := s.unit(name)):
                asked.append(unit)
                s.lose(name)
            elif s.fleet.asked[name]:
                s.answer(name)
        s.wait(5)
    assert asked == [(0, 1, 2), (0, 1, 2), (1,)]
    found = {outcome.key: outcome for outcome in s.outcomes()}
    assert found.keys() == {0, 1, 2}
    assert found[1].group is None and found[1].reason.startswith("3 workers failed on it")
    assert found[0].group is not None and found[2].group is not None
    assert sorted(s.kept) == [0, 2]
    assert s.kinds().count("problem_set_aside") == 1


def test_with_one_strike_a_unit_is_split_before_anything_is_set_aside(scene: Make) -> None:
    s = scene("a", "b", fleet=FleetSettings(failures=100, strikes=1)).ready()
    s.order(0, 1)
    s.lose("a")
    assert s.outcomes() == [] and s.unit("b") == (0,)
    s.lose("b")
    assert [(o.key, o.group) for o in s.outcomes()] == [(0, None)]


def test_parts_of_a_unit_avoid_the_workers_that_failed_the_whole(scene: Make) -> None:
    """Else two broken workers could have sound problems set aside while a good one is busy."""
    s = scene("bad", "worse", "good", fleet=FleetSettings(failures=100, strikes=3)).ready()
    s.order(0, 1)
    assert s.unit("bad") == (0, 1)
    s.order(5)
    s.order(6)
    assert s.unit("worse") == (5,) and s.unit("good") == (6,)
    s.answer("worse")
    s.lose("bad")
    assert s.unit("worse") == (0, 1)
    s.lose("worse")
    s.wait(1, "good")
    s.answer("bad", "worse", "bad", "worse")
    assert s.unit("bad") == s.unit("worse") == ()  # both parts wait for the good one
    s.answer("good")
    assert s.unit("good") == (0,)
