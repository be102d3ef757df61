"""What becomes of groups: durable, handed on, withdrawn."""

from collections.abc import Callable

from msgspec.structs import replace
from scripted_pool import (
    QUIET,
    Scene,
    in_quarantine,
    make_work,
)

from interlock.workers.generators import Purpose

Make = Callable[..., Scene]


def test_groups_are_durable_before_they_are_handed_out(scene: Make) -> None:
    s = scene("a").ready()
    handed: list[int] = []
    s.pool.outcomes.keep = lambda _: handed.append(len(s.pool.outcomes.uncollected[Purpose.TRAIN]))
    s.pool.order(make_work(1))
    s.order(2, purpose=Purpose.EVALUATE)
    s.answer("a")
    assert handed == []  # an evaluation is not kept here
    s.answer("a")
    assert handed == [0]


def test_evaluations_of_a_worker_that_is_quarantined_are_made_again(scene: Make) -> None:
    s = scene("a", "b").ready()
    for key in (7, 8, 9):
        s.order(key, purpose=Purpose.EVALUATE)
    s.answer("a", "b")
    assert s.unit("a") == (9,) and not s.pool.ready(Purpose.EVALUATE)  # handed out whole
    s.pool.quarantine("a", "odd")
    s.pool.attend([])
    assert s.unit("b") == (7,)
    s.answer("b", "b")
    assert s.pool.ready(Purpose.EVALUATE)
    found = s.outcomes(Purpose.EVALUATE)
    assert sorted(o.key for o in found) == [7, 8, 9]
    assert {o.group.worker for o in found if o.group} == {"b"}
    s.pool.quarantine("b", "odd")  # what was collected is done with
    assert not s.pool.outcomes.uncollected[Purpose.EVALUATE] and not s.pool.ready(Purpose.EVALUATE)


def test_what_was_used_by_then_is_not_withdrawn(scene: Make) -> None:
    s = scene("a").ready()
    s.order(0, 1)
    s.answer("a")
    del s.made[0]  # recorded
    s.pool.quarantine("a", "odd")
    assert s.pool.outcomes.withdrawn == {1}


def test_groups_made_before_a_quarantine_are_withdrawn_until_ordered_again(scene: Make) -> None:
    s = scene("a", "b", fleet=replace(QUIET, requalify=1)).ready()
    s.order(0, 1)
    s.order(2)
    s.order(7, purpose=Purpose.EVALUATE)
    s.answer("a", "b", "a")
    assert s.pool.outcomes.withdrawn == set()
    in_quarantine(s).answer("a")
    s.ready()
    assert s.pool.outcomes.withdrawn == {0, 1}  # wherever it is now
    s.order(0)
    assert s.pool.outcomes.withdrawn == {1}
    s.answer(*s.fleet.busy)
    s.pool.quarantine("a", "odd")
    assert 2 not in s.pool.outcomes.withdrawn  # b's
