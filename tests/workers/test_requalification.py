"""How a worker in quarantine is qualified anew, and comes back or does not."""

import math
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from scripted_pool import (
    CPU,
    NPU,
    QUIET,
    WALL,
    Scene,
    in_quarantine,
    make_certificate,
)

from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.records.trust import Trust
from interlock.workers.protocol import (
    Failure,
    Opened,
    Qualified,
    Qualify,
)

Make = Callable[..., Scene]

# What a quarantined worker is given: the chance to be qualified anew.
AGAIN = replace(QUIET, requalify=1)


FAULTY = Qualified(make_certificate(CPU, Trust.REJECT, "engine-parity sampler"))


def test_a_quarantined_worker_is_qualified_and_comes_back(scene: Make) -> None:
    s = in_quarantine(scene("a", "b", fleet=AGAIN))
    assert s.state("a") is WorkerState.QUALIFYING and s.fleet.starts["a"] == 2
    assert s.new("a") == [Qualify("cpu", "quick")]
    assert s.fleet.modules["a"] == "interlock.qualify.worker"
    s.wait(250, "a b")
    s.answer("a")
    assert s.state("a") is WorkerState.STARTING and s.fleet.modules["a"] == "module"
    s.ready()
    s.order(0)
    s.order(1)
    assert s.unit("a") == (0,) and s.unit("b") == (1,)
    told = [(kind, message) for kind, message, worker in s.events if worker == "a"]
    assert told[1:] == [
        (
            "worker_quarantined",
            "a is quarantined: k3 0.5; run: interlock qualify --device cpu --only "
            "engine-parity,stale-weights",
        ),
        ("worker_qualifying", "a: cpu is being qualified, 300 s at most"),
        ("worker_readmitted", "a comes back: cpu passed qualify --quick"),
        ("worker_started", "a is up: torch 2 on cpu, float32"),
    ]


def test_it_comes_back_with_a_clean_slate(scene: Make) -> None:
    s = scene("a", fleet=replace(AGAIN, failures=3))
    for _ in range(2):
        s.lose("a")
        s.wait(2)
    in_quarantine(s).answer("a")
    for _ in range(2):
        assert s.state("a") is WorkerState.STARTING
        s.lose("a")
        s.wait(2)
    assert s.state("a") is WorkerState.STARTING  # two of three failures


def test_one_that_fails_again_stays_in_quarantine_and_says_of_what(scene: Make) -> None:
    s = in_quarantine(scene("a", "b", fleet=AGAIN))
    s.hear("a", FAULTY)
    assert s.state("a") is WorkerState.QUARANTINED and "a" not in s.fleet.alive
    why = "k3 0.5; failed engine-parity, sampler: engine-parity is off"
    assert s.events[-1] == ("worker_quarantined", f"a stays in quarantine: {why}", "a")
    s.wait(1000, "b")
    assert s.fleet.starts["a"] == 2 and not s.pool.all_gone
    s.pool.quarantine("b", "odd")
    assert not s.pool.all_gone  # b may come back
    s.pool.attend([])
    assert not s.pool.all_gone
    s.lose("b")
    assert s.pool.all_gone
    left = f"no generator is left (a: {why}; b: odd; it could not be qualified: signal 9)"
    assert str(s.pool.why_gone()) == left


NPU_PASSED = make_certificate()


DISTRUSTED = {
    "changed": (replace(FAULTY.certificate, trust=Trust.TRAIN), "was changed or damaged"),
    "undecided": (make_certificate(CPU, Trust.UNKNOWN), "says unknown, which is not enough"),
    "of another kind": (NPU_PASSED, "of 'npu', a device of kind 'npu', instead of 'cpu'"),
    "of another device": (make_certificate(CPU, device="cpu:1"), "of 'cpu:1', a device of kind"),
    "of another stack": (
        make_certificate(replace(CPU, torch="2.14.0")),
        "another stack: torch '2.14.0', and here it is '2.13.0'",
    ),
    "of no time": (make_certificate(CPU, issued=math.nan), "older than the quarantine"),
    "replayed": (make_certificate(CPU, issued=WALL - 3601), "older than the quarantine"),
}


@pytest.mark.parametrize("case", DISTRUSTED)
def test_a_certificate_that_proves_nothing_brings_nobody_back(scene: Make, case: str) -> None:
    certificate, words = DISTRUSTED[case]
    s = in_quarantine(scene("a", fleet=AGAIN))
    s.hear("a", Qualified(certificate))
    assert s.state("a") is WorkerState.QUARANTINED and words in s.events[-1][1]
    assert s.pool.all_gone


@pytest.mark.parametrize(
    ("go_wrong", "words"),
    [
        (lambda s: s.lose("a"), "signal 9"),
        (lambda s: s.dawdle("a"), "still qualifying after its deadline"),
        (lambda s: s.hear("a", b"\xc1"), "refused: a message that is none"),
        (lambda s: s.fail("a"), "for now"),
        (lambda s: s.fail("a", Failure.MISTAKE), "for good"),
        (lambda s: s.hear("a", Opened("e", "d", "t")), "Opened while qualifying"),
        (lambda s: s.wait(300, "b"), "after its deadline"),  # it never said a word
        (lambda s: (s.wait(4, "a b"), s.wait(30, "b")), "no sign of life for 30 s"),
    ],
    ids=["lost", "late", "garbage", "failed", "failed for good", "out of place", "mute", "silent"],
)
def test_a_qualification_that_goes_wrong_is_the_end(
    scene: Make, go_wrong: Callable[[Scene], object], words: str
) -> None:
    s = in_quarantine(scene("a", "b", fleet=AGAIN))
    go_wrong(s)
    assert s.state("a") is WorkerState.QUARANTINED and "a" not in s.fleet.alive
    kind, message, _ = s.events[-1]
    assert kind == "worker_quarantined"
    assert message.startswith("a stays in quarantine: k3 0.5; it could not be qualified: ")
    assert words in message
    s.wait(1000, "b")
    assert s.fleet.starts["a"] == 2


@pytest.mark.parametrize("times", [0, 1, 2])
def test_how_often_a_worker_may_come_back(scene: Make, times: int) -> None:
    s = scene("a", "b", fleet=replace(QUIET, requalify=times))
    for _ in range(times):
        in_quarantine(s).answer("a")
        assert s.state("a") is WorkerState.STARTING
    in_quarantine(s)
    assert s.state("a") is WorkerState.QUARANTINED and s.pool.facts()["a"].requalified == times
    assert s.kinds().count("worker_readmitted") == times


def test_a_retired_worker_does_not_come_back_by_way_of_quarantine(scene: Make) -> None:
    s = scene("a", "b", fleet=AGAIN).put("a", WorkerState.LOADING)
    s.fail("a", Failure.MISTAKE)
    s.pool.quarantine("a", "odd")
    s.pool.attend([])
    assert s.state("a") is WorkerState.QUARANTINED and s.fleet.starts["a"] == 1


def test_the_last_words_of_the_worker_are_not_those_of_the_qualification(scene: Make) -> None:
    s = scene("a", fleet=AGAIN).ready()
    s.pool.quarantine("a", "odd")
    s.hear("a", Lost("killed"), b"\xc1")  # polled before it was killed
    assert s.state("a") is WorkerState.QUALIFYING
    s.pool.quarantine("a", "again")  # it is in quarantine
    assert s.kinds().count("worker_quarantined") == 1 and s.state("a") is WorkerState.QUALIFYING


@pytest.mark.parametrize("kind", ["npu", "cpu"])
def test_who_never_told_its_stack_is_held_to_its_settings(scene: Make, kind: str) -> None:
    s = scene("a", "b", device="npu", fleet=AGAIN)
    s.pool.quarantine("a", "odd")  # nothing was opened
    s.pool.attend([])
    s.hear("a", Qualified(make_certificate(NPU if kind == "npu" else CPU)))
    expected = WorkerState.STARTING if kind == "npu" else WorkerState.QUARANTINED
    assert s.state("a") is expected


def test_a_clock_that_differs_a_little_is_no_replay(scene: Make) -> None:
    s = in_quarantine(scene("a", fleet=AGAIN))
    s.hear("a", Qualified(make_certificate(CPU, issued=WALL - 3599)))
    assert s.state("a") is WorkerState.STARTING
