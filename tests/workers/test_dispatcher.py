"""Worker processes that do everything wrong: what was ordered comes back, once, and in time."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stub_worker
import torch
from msgspec.structs import replace
from readers import Believer

from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.errors import ConfigError, TrainingError
from interlock.fleet.base import Spec
from interlock.fleet.local import LocalFleet
from interlock.records.metrics import WorkerMetrics, WorkerState
from interlock.records.rl import Group, Problem, Sampling
from interlock.sync.replica import Replica
from interlock.sync.store import Publisher
from interlock.workers import requalification
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generators import Outcome, Purpose, Work
from interlock.workers.protocol import Canary, Open

DEADLINE_S = 60
CANARY = Canary(list(range(20)), [[1, 2], [3]], 4)
SETTINGS = FleetSettings(
    kind="local",
    start_s=20,
    load_s=20,
    unit_s=20,
    silence_s=20,
    backoff_s=0.05,
    failures=4,
    strikes=3,
)


class Fleet:
    """A dispatcher over stub workers, what it noted and what it kept."""

    def __init__(self, directory: Path, faults: dict[str, dict[str, Any]], **changes: Any) -> None:
        self.notes: list[tuple[str, str, str]] = []
        self.kept: list[tuple[int, Group]] = []
        settings = replace(SETTINGS, **changes)
        here = Path(stub_worker.__file__).parent
        modules = os.pathsep.join([str(here), str(here.parents[1] / "src")])
        workers = {
            name: (
                Spec(
                    name,
                    "stub_worker",
                    directory / f"{name}.log",
                    env={
                        "PYTHONPATH": modules,
                        "STUB_FAULTS": json.dumps(plan),
                        "STUB_STATE": str(directory / f"{name}.json"),
                    },
                ),
                Open(name, "", GeneratorSettings(), None, "", CANARY),
            )
            for name, plan in faults.items()
        }
        self.dispatcher = Dispatcher(
            LocalFleet,
            workers,
            settings,
            GuardSettings(),
            Publisher(str(directory / "sync"), 5),
            Believer(stub_worker.prompt, stub_worker.VOCAB),
            lambda *note: self.notes.append(note),
        )
        self.dispatcher.keep = self.kept.extend
        self.publish(0)

    def publish(self, number: int, before_telling: Callable[[], None] = lambda: None) -> None:
        """`before_telling`: called when the version is in the store and no worker knows of it."""

        def score(tokens: list[int]) -> list[float]:
            before_telling()
            return stub_worker.score(number, len(tokens))

        self.dispatcher.publish(number, {"w": torch.full((8,), float(number))}, score)

    def order(self, first: int, count: int, unit: int = 2, exact: bool = True) -> None:
        keys = range(first, first + count)
        problems = {key: Problem(f"problem {key}", [], "") for key in keys}
        self.dispatcher.order(
            [
                Work(
                    Purpose.TRAIN,
                    tuple(part),
                    tuple(problems[key] for key in part),
                    3,
                    Sampling(max_tokens=8),
                    11,
                    exact,
                )
                for part in (keys[at : at + unit] for at in range(0, count, unit))
            ]
        )

    def ready(self) -> None:
        """Wait until every worker serves the weights, so that each gets a share of the work."""
        self.wait_for(lambda facts: all(each.state is WorkerState.READY for each in facts.values()))

    def wait_for(self, condition: Callable[[dict[str, WorkerMetrics]], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self.dispatcher.facts()):
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.01)

    def collect(self, count: int) -> list[Outcome]:
        found: list[Outcome] = []
        for _ in range(DEADLINE_S * 2):
            if len(found) >= count:
                break
            found += self.dispatcher.collect(Purpose.TRAIN, 0.5)
        assert len(found) == count, (found, self.notes)
        return found

    def kinds(self) -> Counter[str]:
        return Counter(kind for kind, _, _ in self.notes)

    def check(self, outcomes: list[Outcome], first: int, count: int, version: int) -> None:
        """Every problem once, with the very answers that any worker would give; kept before."""
        assert sorted(outcome.key for outcome in outcomes) == list(range(first, first + count))
        assert sorted(key for key, _ in self.kept) == list(range(first, first + count))
        for key, group, _ in outcomes:
            assert group is not None and group.problem.id.endswith(str(key))
            assert group.completions == stub_worker.answer(group.problem, 3, version, 11)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fleet]]:
    monkeypatch.setattr(requalification, "_PROGRAM", "stub_worker")
    made: list[Fleet] = []

    def make(**faults: dict[str, Any]) -> Fleet:
        changes = faults.pop("settings", {})
        made.append(Fleet(tmp_path, faults, **changes))
        return made[-1]

    yield make
    for each in made:
        each.dispatcher.close()


def test_work_is_shared_and_comes_back_whole(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={}, b={})
    run.ready()
    run.order(0, 20)
    run.check(run.collect(20), 0, 20, version=0)
    facts = run.dispatcher.facts()
    assert sum(worker.groups for worker in facts.values()) == 20
    assert sum(worker.tokens for worker in facts.values()) == 20 * (1 + 2 + 3)
    assert run.kinds() == {"worker_started": 2}


FAULTS = {
    "kill": "worker_lost",
    "exit": "worker_lost",
    "hang": "worker_late",
    "freeze": "worker_silent",
    "noise": "worker_garbage",
    "lengths": "worker_garbage",
    "nan": "worker_garbage",
    "token": "worker_garbage",
    "empty": "worker_garbage",
    "version": "worker_garbage",
    "other": "worker_garbage",
    "fewer": "worker_late",
    "unit": "worker_garbage",
    "twice": "worker_garbage",
    "beyond": "worker_garbage",
    "segment": "worker_garbage",
    "given": "worker_garbage",
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_is_made_again(
    fault: str, exact: bool, fleet: Callable[..., Fleet]
) -> None:
    late = {"unit_s": 1}
    short = {"hang": late, "fewer": late, "freeze": {"silence_s": 2}}.get(fault, {})
    run = fleet(a={fault: [1]}, b={}, settings=short)
    run.ready()
    run.order(0, 8, exact=exact)
    run.check(run.collect(8), 0, 8, version=0)
    assert run.kinds()[FAULTS[fault]] == 1, run.notes
    facts = run.dispatcher.facts()["a"]
    assert facts.redispatched == 1
    assert facts.refused == (FAULTS[fault] == "worker_garbage")


def test_the_message_names_worker_and_reason(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"exit": [1]}, b={"nan": [1]})
    run.ready()
    run.order(0, 8)
    run.check(run.collect(8), 0, 8, version=0)
    messages = {worker: message for kind, message, worker in run.notes if kind != "worker_started"}
    assert messages["a"] == "a: exit code 1: SystemExit: device error 507035"
    assert messages["b"].startswith("b: refused: problem 'problem ")
    assert "a log-probability of nan; run: interlock qualify --device cpu" in messages["b"]


@pytest.mark.parametrize("fault", ["refuse", "mute_start", "die_loading", "link"])
def test_a_worker_that_fails_before_its_first_work_tries_again(
    fault: str, fleet: Callable[..., Fleet]
) -> None:
    run = fleet(a={fault: [1, 2]}, settings={"start_s": 3} if fault == "mute_start" else {})
    run.order(0, 4)
    run.check(run.collect(4), 0, 4, version=0)
    assert run.dispatcher.facts()["a"].restarts == (0 if fault == "link" else 2)


@pytest.mark.parametrize("fault", ["wrong_digest", "stale", "decode"])
def test_weights_that_are_not_proven_are_never_served(
    fault: str, fleet: Callable[..., Fleet]
) -> None:
    run = fleet(a={fault: [2]})
    run.order(0, 2)
    run.check(run.collect(2), 0, 2, version=0)
    run.kept.clear()
    run.publish(1)
    run.order(2, 4)
    run.check(run.collect(4), 2, 4, version=1)
    assert run.kinds()["worker_unproven"] == 1, run.notes
    assert run.dispatcher.facts()["a"].restarts == 1


def test_a_store_that_was_damaged_is_mended(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """The stub says that it cannot fetch; the payload is really cut short, before it is told of."""
    run = fleet(a={"link": [2]})
    run.ready()

    def cut_short() -> None:
        (payload,) = (tmp_path / "sync").glob("v00000001-*.anchor")  # all of it changed
        payload.write_bytes(payload.read_bytes()[:-1])

    run.publish(1, before_telling=cut_short)
    run.order(0, 2)
    run.check(run.collect(2), 0, 2, version=1)
    run.wait_for(lambda _: run.kinds()["store_mended"] == 1)
    assert run.kinds()["weights_whole"] == 1
    fetched = Replica(str(tmp_path / "sync")).fetch(run.dispatcher.weights)
    assert torch.equal(fetched["w"], torch.full((8,), 1.0))


def test_a_worker_with_other_numbers_is_quarantined(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"off": [1], "unfit": [1]}, b={})
    run.order(0, 6)
    run.check(run.collect(6), 0, 6, version=0)
    run.wait_for(lambda _: run.kinds()["worker_quarantined"] == 2)
    facts = run.dispatcher.facts()
    assert run.notes[-1][1].endswith("; failed engine-parity: logprobs are off by 0.3")
    assert facts["a"].state is WorkerState.QUARANTINED and facts["a"].groups == 0
    # The mean of exp(d) - 1 - d at d = 0.3.
    assert facts["a"].canary_k3 == pytest.approx(0.04986, abs=1e-5)
    assert run.dispatcher.quarantined() == {"a"}


def test_a_worker_that_passes_comes_back(fleet: Callable[..., Fleet]) -> None:
    """It is the only one: the run waits for it."""
    run = fleet(a={"off": [1]})
    run.order(0, 4)
    run.check(run.collect(4), 0, 4, version=0)
    told = [kind for kind, _, _ in run.notes]
    assert told == [
        "worker_started",
        "worker_quarantined",
        "worker_qualifying",
        "worker_readmitted",
        "worker_started",
    ]
    facts = run.dispatcher.facts()["a"]
    assert (facts.requalified, facts.restarts, facts.trust) == (1, 1, "cpu")
    assert run.dispatcher.quarantined() == frozenset()


def test_without_a_worker_that_comes_back_the_run_ends(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"off": [1], "die_qualifying": [1]})
    run.order(0, 4)
    with pytest.raises(
        TrainingError, match=r"more than 0\.01; it could not be qualified: signal 9"
    ):
        run.collect(4)


def test_a_quarantined_worker_gives_its_work_back(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"hang": [1]}, b={}, settings={"unit_s": 1000, "silence_s": 1000})
    run.ready()
    run.order(0, 8)
    run.collect(6)
    assert run.dispatcher.withdrawn() == frozenset()
    run.dispatcher.quarantine("a", "its mismatch is 0.5", ("forward",))
    run.collect(2)
    assert sorted(key for key, _ in run.kept) == list(range(8))
    assert run.dispatcher.facts()["b"].groups == 8


def test_a_problem_that_kills_three_workers_is_set_aside_alone(
    fleet: Callable[..., Fleet],
) -> None:
    poison = {"poison": ["problem 5"]}
    run = fleet(a=poison, b=poison, c=poison, settings={"failures": 20})
    run.ready()
    run.order(0, 12, unit=4)
    outcomes = run.collect(12)
    aside = [outcome for outcome in outcomes if outcome.group is None]
    assert [outcome.key for outcome in aside] == [5]
    assert "3 workers failed on it" in aside[0].reason
    assert sorted(key for key, _ in run.kept) == [key for key in range(12) if key != 5]
    assert run.kinds()["worker_lost"] == 3 and run.kinds()["problem_set_aside"] == 1


def test_one_that_keeps_failing_is_retired_and_the_others_go_on(
    fleet: Callable[..., Fleet],
) -> None:
    always = list(range(1, 100))
    run = fleet(a={"kill": always}, b={"slow": always})
    run.ready()
    run.order(0, 12, unit=1)
    run.check(run.collect(12), 0, 12, version=0)
    assert run.dispatcher.facts()["a"].state is WorkerState.RETIRED
    assert run.kinds()["worker_retired"] == 1 and run.kinds()["worker_lost"] == 4


def test_what_can_never_work_is_not_tried_again(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"no_device": [1]}, b={"slow": [1]})
    run.order(0, 4)
    run.check(run.collect(4), 0, 4, version=0)
    assert run.dispatcher.facts()["a"].restarts == 0
    assert ("worker_retired", "a is retired: device 'npu' cannot be used here", "a") in run.notes


def test_without_any_worker_left_the_run_says_why(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"refuse": list(range(1, 100))}, b={"no_device": [1]})
    run.order(0, 4)
    with pytest.raises(TrainingError) as error:
        run.collect(4)
    assert str(error.value) == (
        "no generator is left (a: 4 failures in a row, last: exit code 1: SystemExit: no driver "
        "found; b: device 'npu' cannot be used here)"
    )


def test_when_none_can_ever_work_it_is_the_users_mistake(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"no_device": [1]}, b={"no_device": [1]})
    run.order(0, 4)
    with pytest.raises(ConfigError) as error:
        run.collect(4)
    assert str(error.value) == ("no generator can run (a, b: device 'npu' cannot be used here)")


def test_new_weights_are_served_from_the_next_unit_on(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"slow": [1]})
    run.order(0, 4)
    run.publish(1)
    run.publish(2)
    groups = {key: group for key, group, _ in run.collect(4)}
    versions = {key: g.completions[0].weight_version for key, g in groups.items() if g}
    assert versions[0] == versions[1] <= versions[2] == versions[3] == 2
    assert run.dispatcher.version == 2


def test_evaluations_go_first(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={"slow": [1]})
    run.order(0, 8, unit=1)
    problem = Problem("held out", [], "")
    asked = Work(Purpose.EVALUATE, (0,), (problem,), 1, Sampling(temperature=0), 0, True)
    run.dispatcher.order([asked])
    found: list[Outcome] = []
    while not found:
        found = run.dispatcher.collect(Purpose.EVALUATE, 0.5)
    assert found[0].group is not None and found[0].group.problem == problem
    assert len(run.kept) < 8
    run.collect(8)


def test_an_evaluation_is_shown_as_it_comes_and_handed_out_whole(
    fleet: Callable[..., Fleet],
) -> None:
    run = fleet(a={"hang": [1]}, b={}, settings={"unit_s": 1000, "silence_s": 1000})
    run.ready()
    shown: list[int] = []
    run.dispatcher.progress = lambda: shown.append(1)
    greedy = Sampling(temperature=0)
    problems = [Problem(f"held out {key}", [], "") for key in range(3)]
    run.dispatcher.order(
        [Work(Purpose.EVALUATE, (k,), (p,), 1, greedy, 0, True) for k, p in enumerate(problems)]
    )
    run.wait_for(lambda facts: facts["b"].groups == 2)
    assert run.dispatcher.collect(Purpose.EVALUATE, 0.0) == [] and len(shown) == 2
    run.dispatcher.quarantine("b", "odd", ("forward",))  # both are to be made again, by whoever
    run.dispatcher.quarantine("a", "odd", ("forward",))
    found: list[Outcome] = []
    while not found:
        found = run.dispatcher.collect(Purpose.EVALUATE, 0.5)
    assert sorted(outcome.key for outcome in found) == [0, 1, 2] and len(shown) == 3


def test_a_ledger_that_fails_ends_the_run(fleet: Callable[..., Fleet]) -> None:
    run = fleet(a={})

    def full(_: Any) -> None:
        raise ConfigError("no space left on the disk")

    run.dispatcher.keep = full
    run.order(0, 2)
    with pytest.raises(ConfigError, match="no space left"):
        run.collect(2)
