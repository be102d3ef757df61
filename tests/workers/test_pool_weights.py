"""Which weights a worker is given when, and what it takes to be believed to serve them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from scripted_pool import (
    Scene,
    answers,
    make_target,
    make_work,
    proof,
)

from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.workers.generators import Purpose
from interlock.workers.protocol import (
    Failed,
    Failure,
    Load,
)

Make = Callable[..., Scene]


def test_an_exact_unit_is_finished_with_the_weights_it_was_begun_with(scene: Make) -> None:
    s = scene("busy", "idle").ready()
    s.order(0)
    s.pool.serve(make_target(2))
    s.order(1)
    assert len(s.new("busy")) == 1 and s.new("idle") == [Load(2, "digest-2")]
    s.pool.attend([])
    assert s.new("busy") == [] == s.new("idle")
    s.answer("busy")
    (outcome,) = s.outcomes()
    assert outcome.group is not None and outcome.group.weight_version == 1
    assert s.new("busy") == [Load(2, "digest-2")]
    s.answer("idle")
    assert s.unit("idle") == (1,) and s.asked("idle").number == 2


def test_a_version_overtaken_while_it_is_loaded_serves_no_exact_unit(scene: Make) -> None:
    s = scene("a").ready()
    s.publish(2)
    s.pool.serve(make_target(3))
    s.order(0)
    assert s.new("a") == [Load(2, "digest-2")]  # one at a time
    s.answer("a")
    assert s.new("a") == [Load(3, "digest-3")]
    s.answer("a")
    assert s.asked("a").number == 3


def test_weights_are_loaded_beside_other_units_one_version_at_a_time(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0, 1, 2, 3)
    s.new("a")
    s.publish(2)
    s.publish(3)
    s.publish(4)
    assert s.new("a") == [Load(2, "digest-2")] and s.state("a") is WorkerState.GENERATING
    s.stream(4)  # the worker is not kept waiting by its weights
    assert [asked.number for asked in s.units("a")] == [1] * 5
    s.load("a")
    assert s.new("a")[1:] == [Load(4, "digest-4")]  # the newest
    assert s.pool.facts()["a"].weight_version == 2
    s.answer_problem("a", 2, 1, 2)
    s.stream(5)
    assert [(asked.number, asked.problems[0].id) for asked in s.units("a")][-1] == (2, "p5")
    s.load("a")
    assert s.new("a") and s.state("a") is WorkerState.GENERATING
    facts = s.pool.facts()["a"]
    assert (facts.weight_version, facts.groups) == (4, 1)


def test_a_worker_waits_for_the_weights_that_its_work_asks_for(scene: Make) -> None:
    s = scene("a").ready()
    s.pool.serve(make_target(2))
    for key, since in ((0, 2), (1, 1)):
        s.pool.order(dataclasses.replace(make_work(key, exact=False), since=since))
    s.pool.attend([])
    assert s.unit("a") == (1,), "the more urgent one would be dropped"
    s.answer("a")  # the weights are there
    assert set(s.unit("a")) == {0, 1} and s.units("a")[-1].number == 2


def test_generating_and_loading_take_their_time_side_by_side(scene: Make) -> None:
    s = scene("a").ready()
    s.stream(0)
    s.jump(2, "a")
    s.publish(2)
    s.jump(3, "a")
    s.load("a")
    s.jump(1, "a")
    s.answer_problem("a", 0)
    s.jump(4, "a")
    facts = s.pool.facts()["a"]
    assert (facts.seconds_generating, facts.seconds_loading) == (6, 3)
    assert facts.state is WorkerState.READY


GIVEN_AT_1 = {  # versions of the segments; whether version 2 was proven meanwhile; the refusal
    "old": ((1,), False, None),
    "old, late": ((1,), True, None),
    "mixed": ((1, 2), True, None),
    "new": ((2,), True, None),
    "not proven": ((2,), False, "weights of version 2 instead of 1;"),
    "mixed, not proven": ((1, 2), False, "weights of version 2 instead of 1;"),
    "before it was asked": ((0,), True, "weights of version 0 instead of 1 to 2;"),
    "of nobody": ((3,), True, "weights of version 3 instead of 1 to 2;"),
    "backwards": ((2, 1), True, "weights of version 1 behind those of 2;"),
}


@pytest.mark.parametrize("case", GIVEN_AT_1)
def test_a_group_is_of_weights_that_its_worker_has_proven(scene: Make, case: str) -> None:
    versions, proven, why = GIVEN_AT_1[case]
    s = scene("a", "b").ready(1)
    s.stream(7)
    s.publish(2)
    s.load(*("a" * proven))
    s.answer_problem("a", 7, *versions)
    if why is None:
        (outcome,) = s.outcomes()
        assert outcome.group is not None and outcome.group.weight_version == min(versions)
        assert [c.weight_versions for c in outcome.group.completions] == [list(versions)] * 2
    else:
        assert s.outcomes() == [] and s.kept == [] and s.kinds()[-1] == "worker_garbage"
        assert f"refused: problem 'p7': {why}" in s.events[-1][1]
        s.load("b")
        assert s.unit("b") == (7,)


def test_what_was_proven_before_a_unit_was_given_is_too_old_for_it(scene: Make) -> None:
    s = scene("a").ready(1).ready(2)
    s.stream(7)
    s.answer_problem("a", 7, 1, 2)
    assert "weights of version 1 instead of 2;" in s.events[-1][1]


def test_of_what_was_proven_is_kept_what_may_be_in_a_unit_that_is_held(scene: Make) -> None:
    s = scene("a").ready(1)
    (worker,) = s.pool._workers.values()
    s.stream(7)
    for number in (2, 3):
        s.publish(number)
        s.load("a")
    assert [each.version.number for each in worker.proven] == [1, 2, 3]
    s.answer_problem("a", 7, 1, 3)
    assert [o.key for o in s.outcomes()] == [7]
    s.publish(4)
    s.load("a")
    assert [each.version.number for each in worker.proven] == [4]


def test_what_another_process_has_proven_says_nothing_of_this_one(scene: Make) -> None:
    s = scene("a").ready(1).ready(2)
    s.lose("a")
    s.wait(1)
    s.answer("a")
    s.load("a")
    s.publish(3)
    s.stream(7)
    s.answer_problem("a", 7, 2, 3)  # 3 is being loaded
    assert "weights of version 3 instead of 2;" in s.events[-1][1]


def test_a_link_that_is_cut_does_not_disturb_what_runs(scene: Make) -> None:
    s = scene("a").ready(1)
    s.stream(0, 1)
    s.publish(2)
    s.hear("a", Failed("no route", Failure.LINK, [s.loading("a").id]))
    assert s.kinds()[-1] == "worker_failed" and s.pool.doubts_store
    assert s.unit("a") == (0, 1) and s.state("a") is WorkerState.GENERATING
    assert s.pool.facts()["a"].redispatched == 0
    s.answer_problem("a", 0)
    s.new("a")
    s.wait(1, "a")
    assert s.new("a") == [Load(2, "digest-2")] and s.fleet.starts["a"] == 1
    s.load("a")
    s.answer_problem("a", 1, 1, 2)
    assert [o.key for o in s.outcomes()] == [0, 1]


def test_one_that_is_cut_off_works_on_until_it_is_retired(scene: Make) -> None:
    """What it answers meanwhile, with weights ever older, is no sign that all is well."""
    s = scene("a").ready(1)
    s.stream(*range(9))
    s.publish(2)
    for key, delay in enumerate((1, 2, 4, 8)):
        s.hear("a", Failed("no route", Failure.LINK, [s.loading("a").id]))
        s.answer_problem("a", key)
        assert s.unit("a")[-1] == key + 5, "it is given more"
        s.new("a")
        s.wait(delay - 0.25, "a")
        assert s.new("a") == []
        s.wait(0.25, "a")
        assert s.new("a") == [Load(2, "digest-2")]
    s.hear("a", Failed("no route", Failure.LINK, [s.loading("a").id]))
    assert s.state("a") is WorkerState.RETIRED
    assert "5 failures in a row, last: no route" in s.events[-1][1]


def test_a_link_that_is_mended_is_forgiven(scene: Make) -> None:
    s = scene("a").ready(1)
    for number in range(2, 12):
        s.publish(number)
        for _ in range(2):
            s.hear("a", Failed("no route", Failure.LINK, [s.loading("a").id]))
            s.wait(2, "a")
        s.load("a")
        s.stream(number)
        s.answer_problem("a", number)
    assert s.fleet.starts["a"] == 1 and s.pool.facts()["a"].weight_version == 11


def test_a_proof_that_fails_in_the_middle_takes_all_that_was_not_answered(scene: Make) -> None:
    s = scene("a", "b").ready(1)
    s.stream(0, 2, 4)  # a has the first, and the third
    assert s.unit("a") == (0, 4) and s.unit("b") == (2,)
    s.answer_problem("a", 0)
    s.publish(2)
    s.load("b")
    load = s.loading("a")
    behind = answers(s.asked("a"), 1, 2)  # finished before, and held back until then
    s.hear("a", replace(proof(load), digest="other"), *behind)
    assert s.kinds()[-1] == "worker_unproven" and s.state("a") is WorkerState.RESTARTING
    assert s.unit("b") == (2, 4) and [o.key for o in s.outcomes()] == [0]


def test_weights_may_take_longer_where_the_engine_is_busy(scene: Make) -> None:
    """What the proof draws waits for a slot: at the latest until what runs is due."""
    s = scene("a").ready(1)
    s.stream(0)
    s.wait(100, "a")
    s.publish(2)
    s.wait(80, "a")
    s.answer_problem("a", 0)
    s.wait(69, "a")  # 100 until the unit is due, and 50
    assert s.state("a") is WorkerState.LOADING
    s.wait(1, "a")
    assert s.kinds()[-1] == "worker_late" and "still loading" in s.events[-1][1]


def test_a_unit_given_while_weights_are_fetched_may_come_before_their_proof(scene: Make) -> None:
    """They have 50 s to be fetched; what is given by then has 200, and may hold every slot."""
    s = scene("a").ready(1)
    s.publish(2)
    s.wait(10, "a")
    s.stream(0)
    s.wait(150, "a")
    s.stream(1)  # behind the proof
    s.wait(49, "a")
    s.answer_problem("a", 0)
    s.wait(50, "a")  # 10 + 200 + 50
    assert s.kinds()[-1] != "worker_late"
    s.wait(1, "a")
    assert s.kinds()[-1] == "worker_late" and "still loading" in s.events[-1][1]


def test_an_evaluation_is_of_the_newest_weights_whoever_makes_it(scene: Make) -> None:
    s = scene("a", "b").ready(1)
    s.publish(2)
    s.load("b")
    s.order(0, purpose=Purpose.EVALUATE, exact=False)
    s.order(1, purpose=Purpose.EVALUATE, exact=False)
    s.stream(7)
    assert s.unit("a") == (7,) and s.unit("b") == (0, 1)
    assert {asked.number for asked in s.units("b")} == {2}


@pytest.mark.parametrize(
    ("meanwhile", "change", "words"),
    [
        (None, {"number": 2}, "loaded version 2 instead of 3"),
        (None, {"digest": "digest-2"}, "not those of version 3"),
        (None, {"text": make_target(2).text}, "still serves version 2"),
        (None, {"prefill": [-3.0]}, "decode and prefill disagree"),
        # A new process may have stopped at the first weights.
        (Lost("signal 9"), {"text": make_target(1).text}, "still serves version 1"),
        (Failure.FAULT, {"text": make_target(2).text}, "serves version 2"),
        (Failure.LINK, {"text": make_target(2).text}, "serves version 2"),
    ],
)
def test_weights_that_are_not_proven_are_not_served(
    scene: Make, meanwhile: Lost | Failure | None, change: dict[str, Any], words: str
) -> None:
    s = scene("a").ready(1).ready(2)
    s.pool.serve(make_target(3))
    s.order(0)
    if isinstance(meanwhile, Lost):
        s.lose("a")
        s.wait(1)
        s.answer("a")
    elif meanwhile:
        s.fail("a", meanwhile)
        s.wait(1)
    s.hear("a", replace(proof(s.loading("a")), **change))
    assert s.kinds()[-1] == "worker_unproven" and words in s.events[-1][1]
    assert s.state("a") is WorkerState.RESTARTING and s.new("a") == []
    s.wait(2)
    s.ready(3)
    assert s.unit("a") == (0,)


def test_work_that_failed_comes_after_the_weights_were_proven_again(scene: Make) -> None:
    s = scene("a").ready()
    s.order(0)
    s.new("a")
    s.fail("a")
    assert s.kinds()[-1] == "worker_failed" and s.pool.facts()["a"].redispatched == 1
    s.wait(0.75)
    assert s.new("a") == []
    s.wait(0.25)
    assert s.new("a") == [Load(1, "digest-1")] and s.fleet.starts["a"] == 1
    s.answer("a")
    assert s.unit("a") == (0,)
    assert not s.pool.doubts_store  # it had its weights


def test_loading_that_fails_is_tried_again_by_the_same_process(scene: Make) -> None:
    s = scene("a").ready(1)
    s.publish(2)
    assert not s.pool.doubts_store
    s.fail("a", Failure.LINK)
    assert s.pool.doubts_store
    assert s.kinds()[-1] == "worker_failed" and s.state("a") is WorkerState.READY
    s.new("a")
    s.wait(0.75)
    assert s.new("a") == []
    s.wait(0.25)
    assert s.new("a") == [Load(2, "digest-2")] and s.fleet.starts["a"] == 1
    for delay in (2, 4, 8):
        s.fail("a", Failure.LINK)
        s.wait(delay)
    s.fail("a", Failure.LINK)
    assert s.state("a") is WorkerState.RETIRED
    s.pool.attend([])
    assert "a" not in s.fleet.alive


@pytest.mark.parametrize(
    ("shift", "k3", "kinds", "state"),
    [
        (0.0, 0.0, [], WorkerState.READY),
        (0.02, 0.000201, [], WorkerState.READY),
        (0.1, 0.005171, ["worker_mismatch"], WorkerState.READY),
        (0.2, 0.021403, ["worker_quarantined"], WorkerState.QUARANTINED),
    ],
)
def test_the_canary_is_measured_against_the_learner(
    scene: Make, shift: float, k3: float, kinds: list[str], state: WorkerState
) -> None:
    s = scene("a").put("a", WorkerState.LOADING)
    s.events.clear()
    s.hear("a", proof(s.loading("a"), shift))
    assert s.kinds() == kinds and s.state("a") is state
    assert s.pool.facts()["a"].canary_k3 == pytest.approx(k3, abs=1e-6)  # e^-shift + shift - 1
    if state is WorkerState.READY:  # a warning is given once
        s.publish(2)
        s.hear("a", proof(s.loading("a"), shift))
        assert s.kinds() == kinds


def test_a_worker_that_merges_adapters_says_why_once_for_each_reason(scene: Make) -> None:
    s = scene("a").put("a", WorkerState.LOADING)
    s.events.clear()
    for number, why in enumerate(["no slots", "no slots", "", "rank 99 is\nabove"], start=2):
        s.hear("a", replace(proof(s.loading("a")), merged=why))
        s.publish(number)
    assert s.state("a") is WorkerState.LOADING
    told = [event for event in s.events if event[0] == "adapter_merged"]
    assert [message for _, message, _ in told] == [
        "a has adapters merged: no slots",
        "a has adapters merged: rank 99 is above",
    ]
