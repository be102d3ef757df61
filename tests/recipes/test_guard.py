"""Who is judged by which tokens, and what is done about it; the figures are worked out by hand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interlock.config.schema import (
    FleetSettings,
    GeneratorSettings,
    GuardSettings,
    ModelSettings,
    Recipe,
)
from interlock.config.stages import Grpo
from interlock.config.tasks import TaskSettings
from interlock.errors import TrainingError
from interlock.learner.step_result import StepResult
from interlock.mismatch import Mismatch
from interlock.recipes.guard import Guard, buckets, label, numerics
from interlock.recipes.sinks import Sink
from interlock.recipes.stage import Stage
from interlock.records.metrics import WorkerMetrics, WorkerState
from interlock.records.rl import Sampling
from interlock.rundir import RunDir

RUN = "run: interlock qualify --device npu:1 --only engine-parity,stale-weights"


def found(k3: float, tokens: int = 128) -> Mismatch:
    return Mismatch(tokens, k3, max=0.5, share_above_2=0.0)


def result(**mismatch: Mismatch) -> StepResult:
    """`a0` stands for worker a at staleness 0."""
    by = {label(name[:-1], int(name[-1])): each for name, each in mismatch.items()}
    return StepResult(0.0, 0.0, 0.0, 1, False, 0.0, None, None, None, None, None, by)


def test_buckets_add_up_the_updates_of_a_step() -> None:
    first = Mismatch(tokens=100, k3=0.01, max=0.5, share_above_2=0.1)
    second = Mismatch(tokens=300, k3=0.03, max=0.4, share_above_2=0.3)
    by = buckets([result(a2=found(0.7), a0=first, b1=found(0.2)), result(a0=second)])
    assert by.keys() == {"a", "b"}
    assert list(by["a"]) == [0, 2] and by["a"][2] == found(0.7) and by["b"] == {1: found(0.2)}
    total = by["a"][0]
    assert (total.tokens, total.max) == (400, 0.5)
    assert total.k3 == pytest.approx((100 * 0.01 + 300 * 0.03) / 400)
    assert total.share_above_2 == pytest.approx(0.25)
    assert buckets([]) == {}


def test_a_label_is_read_back_whatever_the_worker_is_called() -> None:
    update = result()
    update.by_label[label("gpu-0.b_1", 12)] = found(0.1)
    assert buckets([update]) == {"gpu-0.b_1": {12: found(0.1)}}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({0: found(0.02)}, 0.02),
        ({0: found(0.02), 1: found(0.9)}, 0.02),
        ({0: found(0.9, 127)}, None),  # too few tokens say nothing
        ({0: found(0.0, 10**6)}, 0.0),
        ({1: found(0.9)}, None),  # drift, for all that can be told
        ({0: found(0.9, 127), 1: found(0.05), 2: found(0.5)}, None),
        ({}, None),
    ],
)
def test_only_fresh_tokens_tell_of_numerics(
    measured: dict[int, Mismatch], expected: float | None
) -> None:
    assert numerics(measured, GuardSettings().min_tokens) == expected


def test_the_updates_of_a_step_are_enough_together() -> None:
    by = buckets([result(a0=found(0.02, 64)), result(a0=found(0.04, 64))])
    assert numerics(by["a"], 128) == pytest.approx(0.03)


class FakeGenerators:
    def __init__(self, *names: str) -> None:
        self.known = {name: WorkerMetrics(WorkerState.READY, groups=3) for name in names}
        self.reasons: dict[str, str] = {}

    def facts(self) -> dict[str, WorkerMetrics]:
        return self.known

    def quarantine(self, worker: str, reason: str, checks: Sequence[str]) -> None:
        assert checks == ("engine-parity", "stale-weights")
        self.known[worker].state = WorkerState.QUARANTINED
        self.reasons[worker] = reason

    def quarantined(self) -> frozenset[str]:
        return frozenset(self.reasons)


class Scene:
    def __init__(
        self,
        run: RunDir,
        *names: str,
        kind: Any = "local",
        sampling: Sampling | None = None,
        replay: list[Any] | None = None,
    ) -> None:
        task = [TaskSettings(name="arithmetic")]
        grpo = Grpo(task=task, steps=1, sampling=sampling or Sampling(), replay=replay)
        guard = GuardSettings(warn=0.001, quarantine=0.01)
        fleet = FleetSettings(kind=kind)
        recipe = Recipe(
            model=ModelSettings("m"),
            stage=[grpo],
            generator=[GeneratorSettings(name=name, device="npu:1") for name in names],
            fleet=fleet,
            guard=guard,
        )
        learner: Any = SimpleNamespace(version=7, steps=0, bad_steps=0, device=torch.device("cpu"))
        self.generators: Any = FakeGenerators(*names)
        self.run = run
        self.guard = Guard(Stage(0, grpo, recipe, run, learner, self.generators, Sink()))

    def judge(self, *updates: StepResult, step: int = 9) -> dict[str, WorkerMetrics]:
        return self.guard.judge(step, updates, fresh=True)

    def messages(self) -> list[str]:
        events = self.run.events()
        assert {event.kind for event in events} <= {"worker_mismatch"}
        return [event.message for event in events]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with RunDir.create(tmp_path / "run", {}, {}) as made:
        yield made


def test_what_is_logged(run: RunDir) -> None:
    s = Scene(run, "a", "b")
    metrics = s.judge(result(a0=found(0.0005), a2=found(0.5)))
    assert metrics.keys() == {"a", "b"}
    assert metrics["a"].mismatch == {0: found(0.0005), 2: found(0.5)}
    assert metrics["b"].mismatch == {}
    assert (metrics["a"].state, metrics["a"].groups) == (WorkerState.READY, 3)


@pytest.mark.parametrize(
    ("k3", "warned", "out"),
    [
        (0.0, False, False),
        (0.001, False, False),  # the limit itself is within
        (0.0011, True, False),
        (0.01, True, False),
        (0.0101, False, True),
        (float("inf"), False, True),
        (float("nan"), False, True),
    ],
)
def test_warned_and_put_in_quarantine(run: RunDir, k3: float, warned: bool, out: bool) -> None:
    s = Scene(run, "a", "b")
    metrics = s.judge(result(a0=found(k3), b0=found(0.0)))
    assert [m.startswith("a: k3 ") for m in s.messages()] == [True] * warned
    assert list(s.generators.reasons) == ["a"] * out
    assert metrics["a"].state == ("quarantined" if out else "ready")


def test_what_is_said(run: RunDir) -> None:
    s = Scene(run, "a", "b")
    s.judge(result(a0=found(0.005), b0=found(0.5)))
    assert s.messages() == [f"a: k3 0.005 against the learner at step 9, more than 0.001; {RUN}"]
    expected = "k3 0.5 against the learner at step 9, more than 0.01"
    assert s.generators.reasons == {"b": expected}


def test_a_worker_is_warned_of_once(run: RunDir) -> None:
    s = Scene(run, "a", "b")
    for step in (1, 2):
        s.judge(result(a0=found(0.005)), step=step)
    s.judge(result(a0=found(0.0), b0=found(0.002)), step=3)
    s.judge(result(a0=found(0.009), b0=found(0.009)), step=4)
    assert s.messages() == [
        f"a: k3 0.005 against the learner at step 1, more than 0.001; {RUN}",
        f"b: k3 0.002 against the learner at step 3, more than 0.001; {RUN}",
    ]
    s.judge(result(a0=found(0.02)), step=5)  # that it was warned of spares it nothing
    assert s.generators.reasons == {"a": "k3 0.02 against the learner at step 5, more than 0.01"}
    s.judge(result(b0=found(0.02, 127)), step=6)
    assert s.generators.reasons.keys() == {"a"} and len(s.messages()) == 2


def test_a_worker_that_came_back_is_warned_of_again(run: RunDir) -> None:
    s = Scene(run, "a")
    s.judge(result(a0=found(0.005)), step=1)
    s.generators.known["a"].requalified = 1
    for step in (2, 3):
        s.judge(result(a0=found(0.005)), step=step)
    assert [message.partition(" at ")[2][:6] for message in s.messages()] == ["step 1", "step 2"]


def test_drift_alone_puts_nobody_in_quarantine(run: RunDir) -> None:
    s = Scene(run, "a", "b", "c")
    s.judge(result(a2=found(0.3), b2=found(0.9), c1=found(0.1), c0=found(0.0)))
    assert s.messages() == [] and s.generators.reasons == {}


CUT = [Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)]


@pytest.mark.parametrize("sampling", CUT)
def test_where_the_learner_leaves_out_the_same_a_worker_is_judged(
    run: RunDir, sampling: Sampling
) -> None:
    s = Scene(run, "a", "b", sampling=sampling)
    s.judge(result(a0=found(0.5), b0=found(0.0005)))
    assert set(s.generators.reasons) == {"a"}


@pytest.mark.parametrize("sampling", CUT)
def test_a_cut_distribution_is_no_mismatch_of_numerics(run: RunDir, sampling: Sampling) -> None:
    s = Scene(run, "a", "b", sampling=sampling, replay=[])
    metrics = s.judge(result(a0=found(0.5), b0=found(0.005)))
    assert s.messages() == [] and s.generators.reasons == {}
    assert metrics["a"].mismatch[0].k3 == 0.5  # it is shown all the same


def test_strangers_and_those_in_quarantine_are_left_alone(run: RunDir) -> None:
    s = Scene(run, "a")
    s.judge(result(a0=found(0.5), gone0=found(0.5)))  # "gone": of a recipe before
    s.generators.reasons["a"] = "first"
    s.judge(result(a0=found(0.5)))
    assert s.generators.reasons == {"a": "first"} and s.messages() == []


def test_inline_stops_the_run_and_names_the_remedy(run: RunDir) -> None:
    s = Scene(run, "a", kind="inline")
    with pytest.raises(TrainingError, match=rf"^a: k3 0\.02 .* raise guard\.quarantine; {RUN}"):
        s.judge(result(a0=found(0.02)))
    s.judge(result(a0=found(0.002)))
    assert len(s.messages()) == 1 and s.generators.reasons == {}


def test_a_step_that_taught_nothing_measures_nothing(run: RunDir) -> None:
    s = Scene(run, "a")
    assert s.judge()["a"].mismatch == {}
    assert s.messages() == []


def test_groups_of_an_earlier_session_say_nothing_of_the_workers_of_this_one(run: RunDir) -> None:
    s = Scene(run, "a")
    metrics = s.guard.judge(9, [result(a0=found(0.5))], fresh=False)
    assert s.generators.reasons == {} and s.messages() == []
    assert metrics["a"].mismatch[0].k3 == 0.5
