"""Workers that fail in every state and way: restarted after a back-off, retired, or let go on."""

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scripted_pool import (
    VOCAB,
    Scene,
    answers,
    sampled,
)

from interlock.config.schema import FleetSettings
from interlock.errors import ConfigError, TrainingError
from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.workers import handle
from interlock.workers.protocol import (
    Answered,
    Failed,
    Failure,
    Open,
)

Make = Callable[..., Scene]

BUSY = [WorkerState.STARTING, WorkerState.READY, WorkerState.LOADING, WorkerState.GENERATING]


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


@pytest.mark.parametrize(
    ("share", "alive", "seconds", "waited"),
    [(0.5, "a", 400, 200), (1.0, "a", 1000, 800), (0.5, "", 60, 30)],
)
def test_what_a_worker_waits_for_others_does_not_count_up_to_five_times(
    scene: Make,
    share: float,
    alive: str,
    seconds: int,
    waited: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Delay:
        def __init__(self, pids: list[int]) -> None:
            self._began = s.now

        @property
        def seconds(self) -> float:
            return share * (s.now - self._began)

    s = scene("a").put("a", WorkerState.GENERATING)
    monkeypatch.setattr(handle, "RunDelay", Delay)
    s.wait(0.9 * seconds, alive)
    assert s.state("a") is WorkerState.GENERATING
    s.wait(0.2 * seconds, alive)
    kind, why = ("worker_late", "deadline") if alive else ("worker_silent", "for 30 s")
    ((found, message, _),) = s.events[-1:]
    told = re.search(rf"{why}, besides (\d+) s of waiting for processors that others", message)
    assert found == kind and told, message
    assert int(told[1]) == pytest.approx(waited, rel=0.1)


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


WRONG: dict[str, tuple[Callable[[list[Answered]], list[Answered]], str]] = {
    "other unit": (lambda good: [replace(good[0], id=good[0].id + 1)], "Answered while gener"),
    "beyond": (lambda good: [replace(good[0], index=2)], "problem 2 of those missing: [0, 1]"),
    "below": (lambda good: [replace(good[1], index=-1)], "problem -1 of those missing: [0, 1]"),
    "twice": (lambda good: [good[0], good[0]], "problem 0 of those missing: [1]"),
    "other order": (lambda good: [replace(good[0], index=1)], "'p1': other prompt tokens"),
    # The learner's vocabulary; good answers have its last token.
    "token beyond": (lambda good: [spoilt(good[0], VOCAB)], "vocabulary of 20"),
    "token below": (lambda good: [good[1], spoilt(good[0], -1)], "vocabulary of 20"),
}


def spoilt(good: Answered, token: int) -> Answered:
    return replace(good, completions=[sampled(1, token=token)] * 2)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_and_asked_of_another(scene: Make, wrong: str) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    assert s.unit("a") == (0, 1) and s.unit("b") == ()
    asked, (spoil, words) = s.asked("a"), WRONG[wrong]
    s.hear("a", *spoil(answers(asked)))
    assert s.kinds()[-1] == "worker_garbage" and s.pool.facts()["a"].refused == 1
    assert words in s.events[-1][1]
    assert s.outcomes() == [] and s.kept == [] and s.unit("b") == (0, 1)
    s.answer("b")
    assert [o.key for o in s.outcomes()] == [0, 1]


def test_a_failure_that_names_a_unit_twice_takes_it_back_once(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    number = s.asked("a").id
    s.hear("a", Failed("for now", Failure.FAULT, [number, number]))
    assert s.kinds()[-1] == "worker_failed" and s.unit("b") == (0, 1)
    s.answer("b")
    assert [o.key for o in s.outcomes()] == [0, 1]


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


def test_an_engine_that_fails_to_start_is_started_again(scene: Make) -> None:
    s = scene("a")
    s.fail("a")
    assert s.state("a") is WorkerState.RESTARTING and "a" not in s.fleet.alive
    assert s.kinds() == ["worker_failed"] and not s.pool.doubts_store
    s.wait(1)
    assert s.fleet.starts["a"] == 2


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.LOADING])
def test_a_permanent_failure_before_any_problem_retires(scene: Make, state: WorkerState) -> None:
    s = scene("a").put("a", state)
    s.fail("a", Failure.MISTAKE)
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


def test_quarantine_kills_when_attended_and_gives_the_unit_out_again(scene: Make) -> None:
    s = scene("a", "b").ready()
    s.order(0, 1)
    asked = s.asked("a")
    s.pool.quarantine("a", "k3 0.5")
    assert (
        s.state("a") is WorkerState.QUARANTINED and "a" in s.fleet.alive
    )  # any thread may ask for it
    s.hear("a", *s.good("a", asked))  # too late: it is not believed any more
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
    s.fail("a", Failure.MISTAKE)
    assert s.state("a") is WorkerState.RETIRED
    s.pool.quarantine("a", "k3 0.5")
    assert s.state("a") is WorkerState.QUARANTINED


@pytest.mark.parametrize("way", ["lost", "failed"])
def test_a_worker_that_says_its_own_secrets_is_quoted_without_them(scene: Make, way: str) -> None:
    """A traceback's last line, say; words of a variable too, but nothing as short as "npu:3"."""
    s = scene("a").put("a", WorkerState.GENERATING)
    worker = s.pool._workers["a"]
    worker.spec = replace(worker.spec, env={"KEY": "swordfish-31 two-lines-of", "CHIP": "npu:3"})
    s.events.clear()
    said = "exit code 1: no access to npu:3 with swordfish-31, two-lines-of"
    s.hear("a", Lost(said) if way == "lost" else Failed(said, Failure.FAULT, list(worker.held)))
    assert "no access to npu:3 with …, …" in s.events[0][1]
    assert "swordfish" not in f"{s.events}{worker.reason}"
