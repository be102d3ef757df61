"""The pool with scripted workers and a clock of the test's own: every state, every way to fail."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pool_machine import NAMES, PoolMachine, one_sound_worker
from scripted_pool import (
    CANARY,
    CPU,
    FOR_GOOD,
    FOR_NOW,
    NPU,
    QUIET,
    VOCAB,
    WALL,
    Scene,
    good_answer,
    groups_for,
    make_certificate,
    make_problem,
    make_target,
    make_work,
    proof,
)

from interlock.config.schema import FleetSettings, GeneratorSettings
from interlock.errors import ConfigError, TrainingError
from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.records.rl import Group
from interlock.records.trust import Trust
from interlock.workers import protocol
from interlock.workers.admission import admission, verdict
from interlock.workers.generators import Outcome, Purpose
from interlock.workers.protocol import (
    Failed,
    Finished,
    Generate,
    Load,
    Open,
    Opened,
    Prefetch,
    Qualified,
    Qualify,
    Reply,
)

Make = Callable[..., Scene]
BUSY = [WorkerState.STARTING, WorkerState.READY, WorkerState.LOADING, WorkerState.GENERATING]


@pytest.fixture
def scene() -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda *names, **given: stack.enter_context(Scene(*names, **given))


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
    assert s.new("a") == [asked] and asked.number == 1
    assert asked.problems == [make_problem(3), make_problem(4)]
    assert (asked.completions, asked.seed, asked.sampling.max_tokens) == (2, 1003, 3)
    s.now += 8
    s.answer("a")
    found = s.outcomes()
    assert [o.key for o in found] == [3, 4] == s.kept
    assert [o.group for o in found] == groups_for(asked, "a")
    facts = s.pool.facts()["a"]
    assert (facts.state, facts.weight_version) == (WorkerState.READY, 1)
    assert (facts.groups, facts.tokens) == (2, 8)  # 2 problems x 2 completions x 2 tokens
    assert (facts.seconds_loading, facts.seconds_generating) == (5, 8)
    assert (facts.fetched_bytes, facts.canary_k3) == (10, 0)
    assert (facts.engine, facts.device, facts.dtype) == ("torch 2", "cpu", "float32")


def test_groups_are_durable_before_they_are_handed_out(scene: Make) -> None:
    s = scene("a").ready()
    handed: list[int] = []
    s.pool.keep = lambda _: handed.append(len(s.pool.outcomes[Purpose.TRAIN]))
    s.pool.order(make_work(1))
    s.order(2, purpose=Purpose.EVALUATE)
    s.answer("a")
    assert handed == []  # an evaluation is not kept here
    s.answer("a")
    assert handed == [0]


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


def test_new_weights_are_loaded_before_the_next_unit(scene: Make) -> None:
    s = scene("busy", "idle").ready()
    s.order(0)
    s.pool.serve(make_target(2))
    s.order(1)
    # The one at work fetches meanwhile, once; what it does is finished with the old weights.
    assert s.new("busy")[1:] == [Prefetch(2, "digest-2")]
    assert s.new("idle") == [Load(2, "digest-2")]
    s.pool.attend([])
    assert s.new("busy") == [] == s.new("idle")
    s.answer("busy")
    (outcome,) = s.outcomes()
    assert outcome.group is not None and outcome.group.completions[0].weight_version == 1
    assert s.new("busy") == [Load(2, "digest-2")]
    s.answer("idle")
    assert s.unit("idle") == (1,) and s.asked("idle").number == 2


def test_a_version_overtaken_while_it_is_loaded_serves_no_unit(scene: Make) -> None:
    s = scene("a").ready()
    s.publish(2)
    s.pool.serve(make_target(3))
    s.order(0)
    assert s.new("a") == [Load(2, "digest-2")]  # nor a prefetch: it does one thing at a time
    s.answer("a")
    assert s.new("a") == [Load(3, "digest-3")]
    s.answer("a")
    assert s.asked("a").number == 3


# What a worker may do wrong at any time, by the event it is noted as.
FAULTS: dict[str, Callable[[Scene, str], None]] = {
    "worker_lost": lambda s, name: s.lose(name),
    "worker_garbage": lambda s, name: s.hear(name, b"\xc1 no message"),
    "worker_silent": lambda s, name: s.hush(name),
    "worker_late": lambda s, name: s.dawdle(name),
}
# An engine may start in silence; an idle worker is late for nothing.
NO_FAULT = [(WorkerState.STARTING, "worker_silent"), (WorkerState.READY, "worker_late")]


@pytest.mark.parametrize(
    ("state", "kind"),
    [(state, kind) for kind in FAULTS for state in BUSY if (state, kind) not in NO_FAULT],
)
def test_a_fault_in_any_state_is_a_restart(scene: Make, state: WorkerState, kind: str) -> None:
    s = scene("a").put("a", state)
    s.events.clear()
    FAULTS[kind](s, "a")
    assert s.kinds() == [kind] and s.events[0][1].startswith("a: ") and s.events[0][2] == "a"
    facts = s.pool.facts()["a"]
    assert facts.state is WorkerState.RESTARTING and facts.weight_version is None
    assert "a" not in s.fleet.alive
    assert facts.redispatched == (state is WorkerState.GENERATING)
    assert facts.refused == (kind == "worker_garbage")
    s.wait(0.75)
    assert s.fleet.starts["a"] == 1
    s.wait(0.25)
    assert s.fleet.starts["a"] == 2 and s.pool.facts()["a"].restarts == 1
    assert [type(each) for each in s.new("a")] == [Open]
    s.ready()  # weights are loaded anew by the new process
    assert s.unit("a") == ((0, 1) if state is WorkerState.GENERATING else ())


def test_an_engine_may_start_in_silence_and_an_idle_worker_is_late_for_nothing(scene: Make) -> None:
    s = scene("a")
    s.wait(99)
    assert s.kinds() == []
    s.ready()
    s.wait(10**4, "a")
    assert s.kinds() == ["worker_started"] and s.fleet.starts["a"] == 1


@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.GENERATING])
def test_a_pause_of_our_own_is_not_held_against_the_workers(
    scene: Make, state: WorkerState
) -> None:
    s = scene("a").put("a", state)
    limit = {WorkerState.LOADING: 50, WorkerState.GENERATING: 200}[state]
    s.wait(limit - 1, "a")
    s.jump(10**6)  # nobody looked: neither its deadline nor its silence counts
    assert s.state("a") is state
    s.jump(0.5)
    assert s.state("a") is state
    s.jump(0.5)
    assert s.kinds()[-1] == "worker_late"


def test_a_worker_lost_in_a_pause_is_started_again_after_its_backoff(scene: Make) -> None:
    s = scene("a").ready()
    s.now += 3600
    s.lose("a")
    s.wait(1)
    assert s.state("a") is WorkerState.STARTING


@settings(deadline=None, max_examples=60, database=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 2, 4, 5, 5.5, 40, 3600]), st.booleans())))
@example([(4, False), (4, False), (5.5, False), (5, False), (4, False)])
@example([(3600, True), *[(5, False)] * 3])
def test_only_time_in_which_somebody_looked_counts(looks: list[tuple[float, bool]]) -> None:
    """Against sums of the gaps that count."""
    with Scene("a", fleet=FleetSettings(load_s=50, silence_s=15)) as s:
        s.put("a", WorkerState.LOADING)
        busy = quiet = 0.0
        for gap, speaks in looks:
            s.jump(gap, "a" * speaks)
            busy += gap * (gap <= 5)
            quiet = 0.0 if speaks else quiet + gap * (gap <= 5)
            if busy >= 50 or quiet >= 15:
                assert s.kinds()[-1] == ("worker_late" if busy >= 50 else "worker_silent")
                return
            assert s.state("a") is WorkerState.LOADING


@pytest.mark.parametrize(
    ("state", "said", "words"),
    [
        (WorkerState.STARTING, proof(Load(1, "digest-1")), "Loaded while starting"),
        (WorkerState.READY, proof(Load(1, "digest-1")), "Loaded while ready"),
        (WorkerState.LOADING, Opened("x", "y", "z"), "Opened while loading"),
        (WorkerState.GENERATING, proof(Load(1, "digest-1")), "Loaded while generating"),
        (WorkerState.READY, FOR_NOW, "a failure of nothing"),
        (WorkerState.READY, FOR_GOOD, "a failure of nothing"),
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


WRONG: dict[str, tuple[Callable[[Generate, list[Group]], Finished], str]] = {
    "other unit": (lambda q, groups: Finished(q.unit + 1, groups), "answer to unit 2"),
    "too few": (lambda q, groups: Finished(q.unit, groups[:1]), "1 groups for 2"),
    "other order": (lambda q, groups: Finished(q.unit, groups[::-1]), "an answer to 'p1'"),
    "other worker": (lambda q, _: Finished(q.unit, groups_for(q, "b")), "by 'b'"),
    # The learner's vocabulary; good answers have its last token.
    "token beyond": (lambda q, _: Finished(q.unit, groups_for(q, "a", VOCAB)), "lary of 20"),
    "token below": (lambda q, _: Finished(q.unit, groups_for(q, "a", -1)), "lary of 20"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_and_asked_of_another(scene: Make, wrong: str) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    assert s.unit("a") == (0, 1) and s.unit("b") == ()
    asked, (spoil, words) = s.asked("a"), WRONG[wrong]
    s.hear("a", spoil(asked, groups_for(asked, "a")))
    assert s.kinds()[-1] == "worker_garbage" and s.pool.facts()["a"].refused == 1
    assert words in s.events[-1][1]
    assert s.outcomes() == [] and s.kept == [] and s.unit("b") == (0, 1)
    s.answer("b")
    assert [o.key for o in s.outcomes()] == [0, 1]


def test_a_worker_cannot_change_the_problem(scene: Make) -> None:
    """Its verifier reads the reference answer from the group."""
    s = scene("a").ready()
    s.order(0)
    (group,) = groups_for(s.asked("a"), "a")
    forged = replace(group, problem=replace(group.problem, answer="whatever I said"))
    s.hear("a", Finished(s.asked("a").unit, [forged]))
    assert [o.group for o in s.outcomes()] == [group]


@pytest.mark.parametrize(
    ("meanwhile", "change", "words"),
    [
        (None, {"number": 2}, "loaded version 2 instead of 3"),
        (None, {"digest": "digest-2"}, "not those of version 3"),
        (None, {"text": make_target(2).text}, "still serves version 2"),
        (None, {"prefill": [-3.0]}, "decode and prefill disagree"),
        # A new process may have stopped at the first weights.
        (Lost("signal 9"), {"text": make_target(1).text}, "still serves version 1"),
        (FOR_NOW, {"text": make_target(2).text}, "serves version 2"),
    ],
)
def test_weights_that_are_not_proven_are_not_served(
    scene: Make, meanwhile: Lost | Failed | None, change: dict[str, Any], words: str
) -> None:
    s = scene("a").ready(1).ready(2)
    s.pool.serve(make_target(3))
    s.order(0)
    if meanwhile:
        s.hear("a", meanwhile)
        s.wait(1)
    if isinstance(meanwhile, Lost):
        s.answer("a")
    s.hear("a", replace(proof(Load(3, "digest-3")), **change))
    assert s.kinds()[-1] == "worker_unproven" and words in s.events[-1][1]
    assert s.state("a") is WorkerState.RESTARTING and s.new("a") == []
    s.wait(2)
    s.ready(3)
    assert s.unit("a") == (0,)


def test_work_that_failed_comes_after_the_weights_were_proven_again(scene: Make) -> None:
    s = scene("a").ready()
    s.order(0)
    s.new("a")
    s.hear("a", FOR_NOW)
    assert s.kinds()[-1] == "worker_failed" and s.pool.facts()["a"].redispatched == 1
    s.wait(0.75)
    assert s.new("a") == []
    s.wait(0.25)
    assert s.new("a") == [Load(1, "digest-1")] and s.fleet.starts["a"] == 1
    s.answer("a")
    assert s.unit("a") == (0,)
    assert not s.pool.doubts_store  # it had its weights


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


def test_backoff_doubles_up_to_a_minute_and_an_answer_resets_it(scene: Make) -> None:
    s = scene("a", fleet=FleetSettings(backoff_s=1, failures=100))
    for expected in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        s.lose("a")
        s.wait(expected - 0.25)
        assert s.state("a") is WorkerState.RESTARTING
        s.wait(0.25)
        assert s.state("a") is WorkerState.STARTING
    s.ready()
    s.lose("a")  # up and loaded is no answer yet
    s.wait(59)
    assert s.state("a") is WorkerState.RESTARTING
    s.wait(1)
    s.ready()
    s.order(0)
    s.answer("a")
    s.lose("a")
    s.wait(1)
    assert s.state("a") is WorkerState.STARTING


def test_backoff_survives_any_number_of_failures(scene: Make) -> None:
    s = scene("a", fleet=FleetSettings(failures=10**6))
    for _ in range(1100):  # 2 ** 1100 is not a float
        s.lose("a")
        s.wait(60)
    assert s.state("a") is WorkerState.STARTING


def test_too_many_failures_in_a_row_retire(scene: Make) -> None:
    s = scene("a", "b")
    for count in range(1, 6):
        assert s.state("a") is WorkerState.STARTING
        s.lose("a")
        s.wait(2 ** (count - 1))
    assert s.state("a") is WorkerState.RETIRED and not s.pool.all_gone
    assert s.kinds() == ["worker_lost"] * 5 + ["worker_retired"]
    assert "5 failures in a row, last: signal 9" in s.events[-1][1]
    assert s.pool.facts()["a"].restarts == 4
    s.wait(60)
    assert s.fleet.starts["a"] == 5
    s.pool.quarantine("b", "odd")
    assert s.pool.all_gone
    why = "no generator is left (a: 5 failures in a row, last: signal 9; b: odd)"
    assert (type(s.pool.why_gone()), str(s.pool.why_gone())) == (TrainingError, why)


def test_loading_that_fails_is_tried_again_by_the_same_process(scene: Make) -> None:
    s = scene("a").ready(1)
    s.publish(2)
    assert not s.pool.doubts_store
    s.hear("a", FOR_NOW)
    assert s.pool.doubts_store
    assert s.kinds()[-1] == "worker_failed" and s.state("a") is WorkerState.READY
    s.new("a")
    s.wait(0.75)
    assert s.new("a") == []
    s.wait(0.25)
    assert s.new("a") == [Load(2, "digest-2")] and s.fleet.starts["a"] == 1
    for delay in (2, 4, 8):
        s.hear("a", FOR_NOW)
        s.wait(delay)
    s.hear("a", FOR_NOW)
    assert s.state("a") is WorkerState.RETIRED
    s.pool.attend([])
    assert "a" not in s.fleet.alive


def test_an_engine_that_fails_to_start_is_started_again(scene: Make) -> None:
    s = scene("a")
    s.hear("a", FOR_NOW)
    assert s.state("a") is WorkerState.RESTARTING and "a" not in s.fleet.alive
    assert s.kinds() == ["worker_failed"] and not s.pool.doubts_store
    s.wait(1)
    assert s.fleet.starts["a"] == 2


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.LOADING])
def test_a_permanent_failure_before_any_problem_retires(scene: Make, state: WorkerState) -> None:
    s = scene("a").put("a", state)
    s.hear("a", FOR_GOOD)
    assert s.state("a") is WorkerState.RETIRED and s.pool.all_gone
    why = s.pool.why_gone()
    assert (type(why), str(why)) == (ConfigError, "no generator can run (a: for good)")
    s.pool.attend([])
    assert "a" not in s.fleet.alive


def test_a_worker_that_can_never_start_is_retired_at_once(scene: Make) -> None:
    s = scene("a", "b", refuses="a")
    assert s.state("a") is WorkerState.RETIRED and s.kinds() == ["worker_retired"]
    s.ready()
    s.order(0)
    assert s.unit("b") == (0,)


def test_a_permanent_failure_of_a_problem_is_the_problems_own(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0)
    s.hear("a", FOR_GOOD)
    assert s.state("a") is WorkerState.READY and s.unit("b") == (0,)
    s.hear("b", FOR_GOOD)
    assert s.unit("a") == (0,)  # both failed it: any may try
    s.hear("a", FOR_GOOD)
    assert s.outcomes() == [Outcome(0, None, "3 workers failed on it, a last")]
    assert s.kept == [] and s.kinds()[-1] == "problem_set_aside"
    assert not s.pool.all_gone and set(s.fleet.alive) == {"a", "b"}
    for _ in range(5):  # none of this counts against the workers
        s.order(1)
        for name in "aba":
            s.hear(name, FOR_GOOD)
    assert {s.state("a"), s.state("b")} == {WorkerState.READY}


def test_quarantine_kills_when_attended_and_gives_the_unit_out_again(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    asked = s.asked("a")
    s.pool.quarantine("a", "k3 0.5")
    assert (
        s.state("a") is WorkerState.QUARANTINED and "a" in s.fleet.alive
    )  # any thread may ask for it
    s.hear("a", good_answer(asked, "a"))  # too late: it is not believed any more
    assert "a" not in s.fleet.alive and s.outcomes() == [] and s.kept == []
    assert s.unit("b") == (0, 1)
    assert s.kinds()[-1] == "worker_quarantined"
    s.pool.quarantine("a", "again")
    assert s.kinds().count("worker_quarantined") == 1
    s.wait(60, "b")
    assert s.fleet.starts["a"] == 1
    s.pool.quarantine("b", "odd too")
    assert s.pool.all_gone


def test_a_retired_worker_can_still_be_put_in_quarantine(scene: Make) -> None:
    """Else the groups it gave before are used, though its numbers are off."""
    s = scene("a", "b").ready()
    s.order(0)
    s.answer("a")
    s.publish(2)
    s.hear("a", FOR_GOOD)
    assert s.state("a") is WorkerState.RETIRED
    s.pool.quarantine("a", "k3 0.5")
    assert s.state("a") is WorkerState.QUARANTINED


LONG = "first\nsecond " + "x" * 10**5


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (WorkerState.GENERATING, Failed(LONG, permanent=False)),
        (WorkerState.LOADING, Failed(LONG, permanent=True)),
        (WorkerState.GENERATING, Finished(1, groups_for(Generate(1, 1, [], 1, None, 0), LONG))),  # type: ignore[arg-type]
        (WorkerState.STARTING, Opened(LONG, LONG, LONG)),
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


def test_quarantine_is_no_strike(scene: Make) -> None:
    s = scene("a", "b", fleet=FleetSettings(strikes=1)).ready()
    s.order(0)
    s.pool.quarantine("a", "odd")
    s.pool.attend([])
    assert s.unit("b") == (0,) and s.outcomes() == []


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
    s.hear("a", proof(Load(1, "digest-1"), shift))
    assert s.kinds() == kinds and s.state("a") is state
    assert s.pool.facts()["a"].canary_k3 == pytest.approx(k3, abs=1e-6)  # e^-shift + shift - 1
    if state is WorkerState.READY:  # a warning is given once
        s.publish(2)
        s.hear("a", proof(Load(2, "digest-2"), shift))
        assert s.kinds() == kinds


def test_a_problem_that_kills_is_found_in_its_unit_and_set_aside(scene: Make) -> None:
    s = scene("a", "b", fleet=FleetSettings(failures=100, strikes=3)).ready()
    s.order(0, 1, 2)
    asked = []
    for _ in range(100):
        for name in sorted(s.fleet.asked):
            if 1 in (unit := s.unit(name)):
                asked.append(unit)
                s.lose(name)
            elif name in s.fleet.asked:
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


def test_dropped_groups_are_counted_also_of_workers_unknown(scene: Make) -> None:
    s = scene("a")
    for name in ("a", "a", "of an earlier recipe"):
        s.pool.dropped(name)
    assert s.pool.facts()["a"].dropped == 2


def test_events_of_a_worker_that_was_given_up_are_ignored(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0)
    s.hear("a", b"\xc1", good_answer(s.asked("a"), "a"), Lost("later"))  # in one look
    assert s.outcomes() == [] and s.pool.facts()["a"].refused == 1
    assert s.kinds()[-1] == "worker_garbage"
    assert s.unit("b") == (0,)


TestNothingIsLostOrDoubled = PoolMachine.TestCase


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), sound=st.sampled_from(NAMES))
def test_one_sound_worker_finishes_everything_without_setting_anything_aside(
    seed: int, sound: str
) -> None:
    found = one_sound_worker(sound, problems=12, noise=random.Random(seed))
    assert sorted(outcome.key for outcome in found) == list(range(12))
    assert all(outcome.group is not None for outcome in found)


def test_a_unit_does_not_wait_for_a_worker_that_is_not_up(scene: Make) -> None:
    """Whoever failed it takes it again, rather than nobody for as long as a start may take."""
    s = scene("a", "b")
    s.put("a", WorkerState.GENERATING)
    assert s.state("b") is WorkerState.STARTING
    unit = s.unit("a")
    s.lose("a")
    s.wait(2)
    s.hear("a", Opened("torch", "cpu", "float32"))
    s.answer("a")
    assert s.state("b") is WorkerState.STARTING and s.state("a") is WorkerState.GENERATING
    assert s.unit("a") == unit == (0, 1)


# What a quarantined worker is given: the chance to be qualified anew.
AGAIN = replace(QUIET, requalify=1)
FAULTY = Qualified(make_certificate(CPU, Trust.REJECT, "engine-parity sampler"))


def in_quarantine(s: Scene) -> Scene:
    """Worker a; its device is being qualified."""
    s.ready()
    s.pool.quarantine("a", "k3 0.5", ("engine-parity", "stale-weights"))
    s.pool.attend([])
    return s


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
        (lambda s: s.hear("a", FOR_NOW), "for now"),
        (lambda s: s.hear("a", FOR_GOOD), "for good"),
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
    s.hear("a", FOR_GOOD)
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


@pytest.mark.parametrize(
    ("options", "world_size", "why"),
    [
        ({}, 1, None),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "seed": 9}, 6, None),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 5, "proven with 5"),
        ({"pipeline_parallel_size": 2}, 1, "proven with 1"),
    ],
)
def test_an_engine_over_several_devices_needs_their_collectives_proven(
    options: dict[str, Any], world_size: int, why: str | None
) -> None:
    asked = GeneratorSettings(engine="vllm", device="npu", options=options)
    certificate = make_certificate(world_size=world_size)
    said = replace(GOOD, certificate=certificate)
    found = admission(Open("a", "", None, asked, "", CANARY), said).why
    assert (found is None) if why is None else (found is not None and why in found)
    assert verdict(Qualified(certificate), asked, NPU, WALL) is None  # which does not try them


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
    assert not s.pool.outcomes[Purpose.EVALUATE] and not s.pool.ready(Purpose.EVALUATE)


def test_what_was_used_by_then_is_not_withdrawn(scene: Make) -> None:
    s = scene("a").ready()
    s.order(0, 1)
    s.answer("a")
    del s.made[0]  # recorded
    s.pool.quarantine("a", "odd")
    assert s.pool.withdrawn == {1}


def test_groups_made_before_a_quarantine_are_withdrawn_until_ordered_again(scene: Make) -> None:
    s = scene("a", "b", fleet=AGAIN).ready()
    s.order(0, 1)
    s.order(2)
    s.order(7, purpose=Purpose.EVALUATE)
    s.answer("a", "b", "a")
    assert s.pool.withdrawn == set()
    in_quarantine(s).answer("a")
    s.ready()
    assert s.pool.withdrawn == {0, 1}  # wherever it is now
    s.order(0)
    assert s.pool.withdrawn == {1}
    s.answer(*s.fleet.asked)
    s.pool.quarantine("a", "odd")
    assert 2 not in s.pool.withdrawn  # b's


GOOD = Opened("torch 2", "npu", "bfloat16", NPU, make_certificate())
RUN = "; run: interlock qualify --device npu"
REFUSED = {
    "none": (replace(GOOD, certificate=None), "there is no certificate for npu (Chip 1, "),
    "changed": (
        replace(GOOD, certificate=replace(make_certificate(), device="npu:7")),
        "changed or damaged",
    ),
    "other stack": (
        replace(GOOD, stack=replace(NPU, torch="2.14.0")),
        f"torch '2.13.0', and here it is '2.14.0'{RUN}",
    ),
    "rejected": (
        replace(GOOD, certificate=make_certificate(trust=Trust.REJECT, failed="forward")),
        f"says reject, which is not enough to generate (forward failed: forward is off){RUN}",
    ),
    "older": (replace(GOOD, stack=None), "does not say what it runs on"),
    "a lie": (replace(GOOD, stack=CPU, certificate=None), "it runs on 'cpu' instead of 'npu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_chip_without_a_valid_certificate_stops_the_run(scene: Make, case: str) -> None:
    reply, words = REFUSED[case]
    s = scene("a", "b", device="npu")
    with pytest.raises(ConfigError, match=r"^a may not generate on npu: ") as error:
        s.hear("a", reply)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_unqualified_it_is_used_and_noted_once(scene: Make, case: str) -> None:
    reply, words = REFUSED[case]
    s = scene("a", device="npu", unqualified=True)
    s.hear("a", reply)
    assert s.state("a") is WorkerState.READY and s.pool.facts()["a"].trust == "unqualified"
    (kind, message, worker), _ = s.events
    assert (kind, worker) == ("unqualified", "a") and words in message
    assert message.startswith("a generates unqualified on npu: ")
    s.lose("a")
    s.wait(1)
    s.hear("a", reply)
    assert s.kinds().count("unqualified") == 1


def test_a_chip_that_loses_its_certificate_later_is_retired_alone(scene: Make) -> None:
    """On a cluster a worker may come up on another machine."""
    s = scene("a", "b", device="npu").ready()
    s.lose("a")
    s.wait(1, "b")
    s.hear("a", replace(GOOD, certificate=None))
    assert s.state("a") is WorkerState.RETIRED and "there is no certificate" in s.events[-1][1]
    s.order(0)
    assert s.unit("b") == (0,)


def test_what_a_worker_is_trusted_with_is_told(scene: Make) -> None:
    trusted = scene("a", "b", device="npu")
    trusted.answer("a")
    trusted.hear("b", replace(GOOD, certificate=make_certificate(trust=Trust.TRAIN)))
    assert [f.trust for f in trusted.pool.facts().values()] == ["generate", "train"]
    on_cpu = scene("a")
    on_cpu.answer("a")
    assert on_cpu.pool.facts()["a"].trust == "cpu"


def test_who_has_not_shown_a_certificate_yet_is_waited_for(scene: Make) -> None:
    s = scene("a", "b", device="npu")
    s.answer("a")
    assert not s.pool.admitted
    s.lose("b")  # it may never come up: no reason to wait for longer
    assert s.pool.admitted
    s.wait(1, "a")
    assert s.state("b") is WorkerState.STARTING and s.pool.admitted
    assert scene("a", "b").pool.admitted  # the CPU needs none


def test_messages_name_the_check_to_run_again(scene: Make) -> None:
    s = scene("a", "b", "c", device="npu").ready()
    s.publish(2)
    s.hear("a", proof(Load(2, "digest-2"), 0.2))
    s.hear("b", replace(proof(Load(2, "digest-2")), prefill=[-3.0]))
    s.answer("c")
    s.order(0)
    s.hear("c", Finished(s.asked("c").unit, groups_for(s.asked("c"), "c", VOCAB)))
    ends = {kind: message.rpartition("; ")[2] for kind, message, _ in s.events}
    run = "run: interlock qualify --device npu --only"
    assert ends["worker_quarantined"] == f"{run} engine-parity"
    assert ends["worker_unproven"] == f"{run} stale-weights"
    assert ends["worker_garbage"] == f"{run} forward"
