"""Groups that are too old or of a quarantined worker: not used, counted, and made again."""

from typing import Any

import pytest
from ticking_generators import STAGE, FakeGenerators, Killed, Session, constant, group_of

from interlock.records.rl import Problem
from interlock.rundir import RunDir


def test_groups_that_are_too_old_are_dropped_counted_and_made_again(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    s = Session(run, generators, steps=9, problems=2, cap=1, unit=2, pause=constant(9))
    s.step(1)  # sequences 0 and 1; 2 and 3 are made by version 0 during the pause
    generators.ordered.clear()
    s.publish(2)  # as after two updates in one step
    found = s.rollouts.take(2)
    assert [sequence for sequence, _ in found] == [2, 3]
    assert {group.completions[0].weight_version for _, group in found} == {2}
    assert [work.keys for work in generators.ordered] == [(2, 3), (4, 5)]
    assert s.rollouts.stale == 2 and generators.dropped_groups == {"w0": 2}
    (event,) = (event for event in run.events() if event.kind == "groups_stale")
    assert event.message == "step 2: 2 groups are not of the last 2 versions: made again"
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)][:2] == [2, 3]


def test_a_group_as_old_as_the_cap_is_used(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    s = Session(run, generators, steps=9, problems=2, cap=1, unit=2, pause=constant(9))
    s.step(1)
    s.publish(1)
    assert [s.rollouts.staleness(group) for _, group in s.rollouts.take(2)] == [1, 1]
    assert s.rollouts.stale == 0


def test_a_group_is_as_old_as_the_oldest_token_in_it(run: RunDir) -> None:
    for sequence, (version, later) in enumerate([(2, 4), (3, 4), (4, None)]):
        group = group_of(Problem(f"1-{sequence}", [], ""), version, "w0", later)
        assert group.completions[0].weight_version == version  # the first is the mixed one
        run.ledger.arrive(STAGE, [(sequence, group)])
    s = Session(run, FakeGenerators(constant(0), workers=1), steps=9, problems=3, cap=1)
    s.publish(4)
    found = dict(s.rollouts.take(5))
    assert s.rollouts.stale == 1 and sorted(found) == [0, 1, 2]
    assert {sequence: s.rollouts.staleness(group) for sequence, group in found.items()} == {
        0: 0,  # made again
        1: 1,
        2: 0,
    }


def test_unused_groups_of_a_quarantined_worker_are_made_again_by_others(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=9, problems=4, cap=1, unit=2, pause=constant(9))
    s.step(1)
    waiting = {sequence: group.worker for sequence, group in run.ledger.arrivals(STAGE)}
    assert waiting == {4: "w0", 5: "w0", 6: "w1", 7: "w1"}
    generators.quarantine("w1", "odd")
    found = s.step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert {group.worker for _, group in found} == {"w0"}
    assert generators.dropped_groups == {"w1": 2} and s.rollouts.stale == 0
    assert not [event for event in run.events() if event.kind == "groups_stale"]


def test_what_a_worker_made_before_its_quarantine_is_not_used_when_it_is_back(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=9, problems=4, cap=1, unit=2, pause=constant(9))
    s.step(1)
    generators.taken_back = {6, 7}  # as in a quarantine that is over by now
    generators.size = 1  # what comes first is then the oldest
    before = len(generators.ordered)
    found = s.step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert generators.ordered[before].keys == (6, 7)
    assert generators.dropped_groups == {"w1": 2} and s.rollouts.stale == 0
    assert not [event for event in run.events() if event.kind == "groups_stale"]


def test_what_was_withdrawn_is_not_used_when_the_run_stops_before_the_next_step(
    run: RunDir,
) -> None:
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    first = FakeGenerators(constant(0), workers=2)
    Session(run, first, pause=constant(9), **shape).step(1)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5, 6, 7]
    first.quarantine("w1", "odd")  # and the process is gone
    second = FakeGenerators(constant(0), workers=1)
    s = Session(run, second, **shape)
    assert [sequence for sequence, _ in s.step(2)] == [4, 5, 6, 7]
    assert second.ordered[0].keys == (6, 7)


def test_what_an_earlier_session_had_of_a_worker_is_withdrawn_with_its_own(run: RunDir) -> None:
    """Also when the worker is back before the next step."""
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    Session(run, FakeGenerators(constant(0)), pause=constant(9), **shape).step(1)
    second = FakeGenerators(constant(0), workers=1)
    s = Session(run, second, **shape)
    second.quarantine("w1", "odd")
    second.out.clear()
    assert [sequence for sequence, _ in s.step(2)] == [4, 5, 6, 7]
    assert second.ordered[0].keys == (6, 7) and second.dropped_groups == {"w1": 2}


def test_what_was_dropped_does_not_come_back_after_a_kill(run: RunDir) -> None:
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    Session(run, FakeGenerators(constant(0)), pause=constant(9), **shape).step(1)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5, 6, 7]
    second = FakeGenerators(constant(0), workers=1)
    second.quarantine("w1", "odd")
    second.kill_after = 0
    with pytest.raises(Killed):
        Session(run, second, **shape).step(2)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5]
    third = FakeGenerators(constant(0), workers=1)
    found = Session(run, third, **shape).step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert third.ordered[0].keys == (6, 7)
