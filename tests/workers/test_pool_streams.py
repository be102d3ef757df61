"""Units that are not exact: as many as a worker has room for, handed on group by group."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_pool import ROOM, Scene, answers, make_work

from interlock.config.schema import FleetSettings
from interlock.records.metrics import WorkerState
from interlock.workers.generators import Outcome, Purpose
from interlock.workers.protocol import Failed, Failure, Room

Make = Callable[..., Scene]


def test_a_worker_is_given_units_until_it_has_no_room(scene: Make) -> None:
    """Room for ten sequences, and two of each problem."""
    s = scene("a").ready()
    s.stream(*range(8))
    assert s.unit("a") == (0, 1, 2, 3, 4)
    s.answer_problem("a", 3)
    assert s.unit("a") == (0, 1, 2, 4, 5)
    s.hear("a", Room(3, after=s.units("a")[-1].id))  # room for one and a half
    assert s.unit("a") == (0, 1, 2, 4, 5, 6, 7)
    s.stream(8)
    s.hear("a", Room(1, after=s.units("a")[-1].id))  # room is room
    assert s.unit("a") == (0, 1, 2, 4, 5, 6, 7, 8)


def test_what_was_given_since_takes_from_the_room_it_told_of(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0)
    before = s.units("a")[-1].id
    s.stream(1, 2, 3)
    s.stream(*range(4, 12))
    assert s.unit("a") == (0, 1, 2, 3, 4)
    # It said so when it had heard of the first only: of 12, the other four units take 8.
    s.hear("a", Room(12, after=before))
    assert s.unit("a") == (0, 1, 2, 3, 4, 5, 6)


def test_a_unit_may_be_larger_than_the_room(scene: Make) -> None:
    s = scene("a").ready()
    s.order(*range(9), exact=False)
    assert s.unit("a") == tuple(range(9))
    s.order(9, exact=False)
    for key in range(4):
        s.answer_problem("a", key)
    assert s.unit("a") == (4, 5, 6, 7, 8)  # ten sequences, all its room
    s.answer_problem("a", 8)
    assert s.unit("a") == (4, 5, 6, 7, 9)


def test_the_worker_with_most_room_is_given_the_next(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.stream(*range(4))
    assert s.unit("a") == (0, 2) and s.unit("b") == (1, 3)
    s.answer_problem("a", 0)
    s.answer_problem("a", 2)
    s.stream(4, 5, 6, 7)  # 10 against 6: down to 4 against 6
    assert s.unit("a") == (4, 5, 6) and s.unit("b") == (1, 3, 7)


def test_groups_are_kept_and_handed_on_as_they_come(scene: Make) -> None:
    s = scene("a").ready()
    s.order(0, 1, 2, exact=False)
    assert s.asked("a").exact is False
    for count, key in enumerate((2, 0), start=1):
        s.answer_problem("a", key)
        (outcome,) = s.outcomes()
        assert outcome.key == key == s.kept[-1]
        assert outcome.group is not None and outcome.group.problem.id == f"p{key}"
        facts = s.pool.facts()["a"]
        assert (facts.groups, facts.tokens) == (count, 4 * count)
        assert s.state("a") is WorkerState.GENERATING
    s.answer_problem("a", 1)
    assert s.kept == [2, 0, 1] and s.state("a") is WorkerState.READY


def test_an_exact_unit_is_handed_on_when_it_is_whole(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    s.answer_problem("a", 1)
    assert s.outcomes() == [] and s.kept == [] and s.pool.facts()["a"].groups == 0
    s.lose("a")
    assert s.unit("b") == (0, 1)  # all of it again
    s.answer_problem("b", 1)
    s.answer_problem("b", 0)
    assert [o.key for o in s.outcomes()] == [0, 1] == s.kept


@pytest.mark.parametrize("purpose", Purpose)
def test_only_what_did_not_come_is_made_again(scene: Make, purpose: Purpose) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1, 2, purpose=purpose, exact=False)
    s.stream(5, 6, 7)
    assert s.unit("a") == (0, 1, 2) and s.unit("b") == (5, 6, 7)
    s.answer_problem("a", 1)
    s.lose("a")
    assert s.unit("b") == (5, 6, 7, 0, 2) and s.pool.facts()["a"].redispatched == 1
    for key in (6, 2, 7, 0, 5):
        s.answer_problem("b", key)
    found = s.outcomes(Purpose.EVALUATE) + s.outcomes()
    assert sorted(o.key for o in found) == [0, 1, 2, 5, 6, 7]
    assert {o.key: o.group.worker for o in found if o.group}[1] == "a"


def test_each_unit_has_its_own_deadline(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0)
    s.wait(150, "a")
    s.stream(1)
    s.answer_problem("a", 0)
    s.wait(199, "a")
    assert s.state("a") is WorkerState.GENERATING
    s.wait(1, "a")
    assert s.kinds()[-1] == "worker_late" and "still generating" in s.events[-1][1]


def test_a_worker_that_failed_is_struck_by_every_unit_it_held(scene: Make) -> None:
    """But it has failed once, whatever it held."""
    s = scene("a", fleet=FleetSettings(failures=3, strikes=3)).ready()
    s.stream(0, 1, 2, 3, 4)
    s.fail("a")
    assert s.pool.facts()["a"].redispatched == 5 and s.state("a") is not WorkerState.RETIRED
    assert s.kinds().count("worker_failed") == 1
    s.wait(1, "a")
    s.load("a")
    assert s.unit("a") == (0, 1, 2, 3, 4)
    s.fail("a")
    assert s.state("a") is not WorkerState.RETIRED


def test_what_one_problem_does_is_no_matter_of_its_neighbours(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0, 1, 2)
    for _ in range(3):
        (poison,) = (each.id for each in s.units("a") if each.problems[0].id == "p1")
        s.hear("a", failure_of(poison))
        s.hear("a", s.room("a"))
    assert s.outcomes() == [Outcome(1, None, "3 workers failed on it, a last")]
    assert s.unit("a") == (0, 2) and s.fleet.starts["a"] == 1


def failure_of(number: int) -> Failed:
    return Failed("its prompt is too long", Failure.MISTAKE, [number])


def test_an_exact_unit_waits_until_a_worker_is_free_and_others_wait_behind_it(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(1, 2)
    s.order(0)
    s.stream(3)
    s.answer_problem("a", 1)
    assert s.unit("a") == (2,)
    s.answer_problem("a", 2)
    assert s.unit("a") == (0,) and s.asked("a").exact
    s.answer("a")
    assert s.unit("a") == (3,)


def test_evaluations_go_first_where_there_is_room(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(*range(7))
    s.order(100, purpose=Purpose.EVALUATE, exact=False)
    assert s.unit("a") == (0, 1, 2, 3, 4)
    s.answer_problem("a", 0)
    assert s.unit("a") == (1, 2, 3, 4, 100)
    s.answer_problem("a", 1)
    assert s.unit("a") == (2, 3, 4, 100, 5)


def test_quarantine_withdraws_what_came_and_repeats_what_did_not(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1, exact=False)
    s.order(7, 8, purpose=Purpose.EVALUATE, exact=False)
    held = "a" if 0 in s.unit("a") else "b"
    other = "b" if held == "a" else "a"
    s.answer_problem(held, 0)
    s.answer_problem(other, 8)
    s.pool.quarantine(held, "odd")
    s.pool.attend([])
    assert s.pool.outcomes.withdrawn == {0} and s.unit(other) == (7, 1)
    s.answer_problem(other, 7)
    assert [o.key for o in s.outcomes(Purpose.EVALUATE)] == [8, 7]


@settings(deadline=None, max_examples=60, database=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    picks=st.lists(st.integers(0, 100), max_size=60),
)
def test_a_worker_is_never_idle_while_work_waits(sizes: list[int], picks: list[int]) -> None:
    """After every answer it holds all its room, or there is nothing left to give."""
    with Scene("a", "b") as s:
        s.ready()
        first = 0
        for size in sizes:
            s.pool.order(make_work(*range(first, first + size), exact=False))
            first += size
        s.pool.attend([])
        for pick in picks:
            held = [(name, key) for name in "ab" for key in s.unit(name)]
            if not held:
                break
            s.answer_problem(*held[pick % len(held)])
            waiting = first - sum(len(s.unit(name)) for name in "ab") - len(s.kept)
            assert waiting >= 0
            assert not waiting or all(2 * len(s.unit(name)) >= ROOM for name in "ab")
        assert len(set(s.kept)) == len(s.kept)


def test_an_answer_of_a_unit_that_was_taken_back_is_garbage(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0)
    (asked,) = s.units("a")
    s.hear("a", failure_of(asked.id), *answers(asked))
    assert s.kinds()[-1] == "worker_garbage" and s.outcomes() == []


def test_one_that_holds_nothing_and_asks_for_nothing_is_replaced(scene: Make) -> None:
    """Signs of life alone are no use: it might stay up without work until the run ends."""
    s = scene("a")
    s.hear("a", s.good("a", s.fleet.asked["a"][1])[0])  # Opened, and no Room
    s.publish(1)
    s.load("a")
    s.wait(29, "a")
    assert s.state("a") is WorkerState.READY
    s.wait(2, "a")
    assert s.state("a") is WorkerState.RESTARTING
    assert s.kinds()[-1] == "worker_silent" and "asked for none for 30 s" in s.events[-1][1]
