"""What a pool does with its workers when all goes well, and with whatever they may say."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pool_machine import NAMES, PoolMachine, one_sound_worker
from scripted_pool import (
    CANARY,
    VOCAB,
    Scene,
    answers,
    groups_of,
    make_problem,
    make_work,
    proof,
)

from interlock.fleet.base import Lost
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import WorkerState
from interlock.records.rl import Completion, FinishReason, Segment
from interlock.workers import protocol
from interlock.workers.generators import Purpose
from interlock.workers.protocol import (
    Alive,
    Answered,
    Failed,
    Failure,
    Load,
    Open,
    Opened,
    Reply,
    Room,
)

Make = Callable[..., Scene]


def test_start_open_load_generate(scene: Make) -> None:
    s = scene("a")
    (opened,) = s.new("a")
    assert isinstance(opened, Open) and opened.name == "a" and opened.canary == CANARY
    s.pool.order(make_work(3, 4))
    s.answer("a")
    assert s.new("a") == []  # no weights were published yet
    assert s.state("a") is WorkerState.READY and s.kinds() == ["worker_started"]
    s.publish(1)
    assert s.new("a") == [Load(1, "digest-1")]
    s.now += 5
    s.answer("a")
    asked = s.asked("a")
    assert s.new("a") == [replace(asked, id=0)] and asked.number == 1
    assert asked.problems == [make_problem(3), make_problem(4)]
    assert (asked.completions, asked.seed, asked.sampling.max_tokens) == (2, 1003, 3)
    s.now += 8
    s.answer("a")
    found = s.outcomes()
    assert [o.key for o in found] == [3, 4] == s.kept
    assert [o.group for o in found] == groups_of(asked, "a")
    facts = s.pool.facts()["a"]
    assert (facts.state, facts.weight_version) == (WorkerState.READY, 1)
    assert (facts.groups, facts.tokens) == (2, 8)  # 2 problems x 2 completions x 2 tokens
    assert (facts.seconds_loading, facts.seconds_generating) == (5, 8)
    assert (facts.fetched_bytes, facts.canary_k3) == (10, 0)
    assert (facts.engine, facts.device, facts.dtype) == ("torch 2", "cpu", "float32")


def test_evaluations_first_then_the_oldest(scene: Make) -> None:
    s = scene("a").ready()
    for keys in [(9,), (2, 3), (4,)]:
        s.pool.order(make_work(*keys))
    for key in (5, 1):
        s.pool.order(make_work(key, purpose=Purpose.EVALUATE))
    s.pool.attend([])
    order = []
    while unit := s.unit("a"):
        order.append(unit)
        s.answer("a")
    assert order == [(1,), (5,), (2, 3), (4,), (9,)]


@pytest.mark.parametrize(
    ("state", "said", "words"),
    [
        (WorkerState.STARTING, proof(Load(1, "digest-1")), "Loaded while starting"),
        (WorkerState.READY, proof(Load(1, "digest-1")), "Loaded while ready"),
        (WorkerState.LOADING, Opened("x", "y", "z"), "Opened while loading"),
        (WorkerState.STARTING, Opened("x", "y", "z", id=7), "Opened while starting"),
        (WorkerState.GENERATING, proof(Load(1, "digest-1")), "Loaded while generating"),
        (WorkerState.STARTING, Room(8, 0), "Room while starting"),
        (WorkerState.GENERATING, Answered(0, [7, 0], [], id=9), "Answered while generating"),
        (WorkerState.READY, Failed("now", Failure.FAULT, []), "a failure of nothing"),
        (WorkerState.READY, Failed("good", Failure.MISTAKE, [1]), "a failure of nothing"),
        (WorkerState.GENERATING, Failed("now", Failure.LINK, [99]), "a failure of nothing"),
    ],
)
def test_a_message_out_of_place_is_garbage(
    scene: Make, state: WorkerState, said: Reply, words: str
) -> None:
    s = scene("a").put("a", state)
    s.hear("a", said)
    assert s.kinds()[-1] == "worker_garbage" and words in s.events[-1][1]
    assert s.state("a") is WorkerState.RESTARTING


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x93\x01\x02\x03", id="array"),
        pytest.param(b"\x82\xa2is\xa6nobody\xa1x\x01", id="unknown"),
        pytest.param(b"\x83\xa2is\xa5alive\xa6tokens\x01\xa1x\x01", id="a field more"),
        pytest.param(
            b"\x83\xa2is\xa6failed\xa6reason\xa2\xff\xff\xa9permanent\xc2", id="not utf-8"
        ),
        pytest.param(
            b"\x82\xa2is\xa8finished\xa6groups\x91\x81\xa7problem\x81\xa4meta\x81\xa1x"
            + b"\x91" * 10**5,
            id="nested too deep",
        ),
    ],
)
def test_no_bytes_whatever_stop_the_pool(scene: Make, data: bytes) -> None:
    s = scene("a").ready()
    s.hear("a", data)
    assert s.kinds()[-1] == "worker_garbage" and s.state("a") is WorkerState.RESTARTING


def test_events_of_a_worker_that_was_given_up_are_ignored(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0)
    s.hear("a", b"\xc1", *s.good("a", s.asked("a")), Lost("later"))  # in one look
    assert s.outcomes() == [] and s.pool.facts()["a"].refused == 1
    assert s.kinds()[-1] == "worker_garbage"
    assert s.unit("b") == (0,)


def unsampled(text: str) -> Completion:
    """Nobody sampled it."""
    return Completion([Segment([1])], FinishReason.STOP, text)


LONG = "first\nsecond " + "x" * 10**5


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (WorkerState.GENERATING, Failed(LONG, Failure.FAULT, [3])),
        (WorkerState.LOADING, Failed(LONG, Failure.MISTAKE, [2])),
        (WorkerState.GENERATING, Answered(0, [7, 0], [unsampled(LONG)] * 2, id=3)),
        (WorkerState.STARTING, Opened(LONG, LONG, LONG, id=1)),
        (WorkerState.READY, protocol.encode({"is": LONG})),
    ],
    ids=["failed", "failed for good", "finished", "opened", "no message"],
)
def test_what_a_worker_says_is_noted_in_one_line_of_bounded_length(
    scene: Make, state: WorkerState, said: Reply | bytes
) -> None:
    s = scene("a").put("a", state)
    s.events.clear()
    s.hear("a", said)
    (message,) = {message for _, message, _ in s.events}
    assert "\n" not in message and len(message) < 2000


def test_dropped_groups_are_counted_also_of_workers_unknown(scene: Make) -> None:
    s = scene("a")
    for name in ("a", "a", "of an earlier recipe"):
        s.pool.dropped(name)
    assert s.pool.facts()["a"].dropped == 2


def test_messages_name_the_check_to_run_again(scene: Make) -> None:
    s = scene("a", "b", "c", device="npu").ready()
    s.publish(2)
    s.hear("a", proof(s.loading("a"), 0.2))
    s.hear("b", replace(proof(s.loading("b")), prefill=[-3.0]))
    s.answer("c")
    s.order(0)
    s.hear("c", answers(s.asked("c"), token=VOCAB)[0])
    ends = {kind: message.rpartition("; ")[2] for kind, message, _ in s.events}
    run = "run: interlock qualify --device npu --only"
    assert ends["worker_quarantined"] == f"{run} engine-parity"
    assert ends["worker_unproven"] == f"{run} stale-weights"
    assert ends["worker_garbage"] == f"{run} forward"


TestNothingIsLostOrDoubled = PoolMachine.TestCase


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), sound=st.sampled_from(NAMES), exact=st.booleans())
def test_one_sound_worker_finishes_everything_without_setting_anything_aside(
    seed: int, sound: str, exact: bool
) -> None:
    found = one_sound_worker(sound, problems=12, exact=exact, noise=random.Random(seed))
    assert sorted(outcome.key for outcome in found) == list(range(12))
    assert all(outcome.group is not None for outcome in found)


def test_memory_is_the_most_that_was_told_since_it_was_taken(scene: Make) -> None:
    s = scene("a", "b")
    for chip, resident in ((70, 7), (50, 9)):
        s.hear("a", Alive(MemoryPeak(chip, resident)))
    assert s.pool.peaks() == {"a": MemoryPeak(70, 9), "b": MemoryPeak()}
    s.hear("a", Alive(MemoryPeak(20, 2)))
    assert s.pool.peaks()["a"] == MemoryPeak(20, 2)
    s.hear("a", protocol.encode(Alive()).replace(b"\xa4chip\x00", b"\xa4chip\xff"))
    assert s.pool.facts()["a"].refused == 1  # none has less than nothing
