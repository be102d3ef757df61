"""The curve of a small model against the reference: what leaves the band and what does not."""

import math
from collections.abc import Callable
from typing import Any

import on_device
import pytest
import torch
from on_device import failed

from interlock.learner.learner import Learner
from interlock.qualify import tiny_model, training
from interlock.qualify.check import Level, Subject

# A CPU to torch, and yet told from the reference's.
DEVICE = torch.device("cpu:0")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps only."""

    def plans(level: Level, extreme: bool) -> tuple[training._TrainingPlan, training._TrainingPlan]:
        single = training._TrainingPlan("float32", (1, 5), 8.0, 2e-7)
        return single, training._TrainingPlan("bfloat16", (5,), 6.0, 1e-3)

    monkeypatch.setattr(training, "_plans", plans)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Learner], None]], None]:
    """Call a function with the learner after every step on the device, and on the device alone."""

    def planted(fault: Callable[[Learner], None]) -> None:
        class Faulty(Learner):
            def step(self, *args: Any, **kwargs: Any) -> Any:
                found = super().step(*args, **kwargs)
                fault(self)
                return found

        def train(device: torch.device, *rest: Any) -> training._Curve:
            with monkeypatch.context() as now:
                now.setattr(training, "Learner", Faulty if device == DEVICE else Learner)
                return sound(device, *rest)

        sound = training._train
        monkeypatch.setattr(training, "_train", train)

    return planted


def test_the_cpu_is_the_reference(short: None) -> None:
    evidence = training.band(Subject(DEVICE, Level.QUICK))
    assert evidence.passed
    float32 = [m for m in evidence.measures if m.name.startswith("float32")]
    assert {m.value for m in float32} == {0.0}
    # The margins are of something: rounding alone moves weights, norms and losses.
    assert all(m.reference for m in float32 if "distance" in m.name)


def test_the_rows_can_be_learned_and_it_learns_them() -> None:
    (rows,) = training._rows(1, seed=3)
    assert len(rows) == 8
    assert all((a + b) % 31 == c for row in rows for a, b, c in zip(row, row[1:], row[2:]))  # noqa: B905
    curve = training._train(torch.device("cpu"), "float32", (40,), seed=0)
    assert curve.skipped == 0
    assert curve.losses[-1] < curve.losses[0] - 3


def test_a_curve_is_apart_by_what_the_hand_says() -> None:
    def curve(losses: list[float], norms: list[float], end: list[float]) -> training._Curve:
        masters = {0: torch.zeros(2), 2: torch.tensor(end)}
        return training._Curve(losses, norms, 0, masters)

    exact = curve([4.0, 2.0], [1.0, 8.0], [3.0, 4.0])
    found = training._apart(curve([4.4, 2.0], [1.0, 6.0], [3.0, 3.0]), exact, 2)
    assert list(found.values()) == pytest.approx([0.1, 0.25, 0.2])
    broken = training._apart(curve([4.0, math.nan], [1.0, math.inf], [3.0, math.nan]), exact, 2)
    assert not any(value < 1e9 for value in broken.values())


def test_updates_in_bfloat16_leave_the_band_at_the_first_step(
    short: None, plant: Callable[..., None]
) -> None:
    arch = tiny_model.architecture(hidden=32, vocab=31)
    weights = tiny_model.decoder(arch, tiny_model.weights(arch), DEVICE, torch.float32)
    start = [parameter.detach() for parameter in weights.parameters()]

    @torch.no_grad()
    def rounded(learner: Learner) -> None:
        for parameter, old in zip(learner.parameters.values(), start, strict=True):
            parameter.copy_(old + (parameter - old).bfloat16())

    plant(rounded)
    evidence = training.band(Subject(DEVICE, Level.QUICK))
    assert any("float32, 5 steps: distance" in name for name in failed(evidence))


def test_a_master_that_is_not_a_number_is_found(short: None, plant: Callable[..., None]) -> None:
    def broken(learner: Learner) -> None:
        learner.parameters["norm.weight"].data[0] = math.nan

    plant(broken)
    evidence = training.band(Subject(DEVICE, Level.QUICK))
    assert "float32: steps that were not finite" in failed(evidence)
    assert not evidence.passed


def test_a_unit_in_the_last_place_stays_in_the_band(
    short: None, plant: Callable[..., None]
) -> None:
    noise = torch.Generator().manual_seed(17)
    plant(lambda learner: training._perturb(learner, noise))
    assert training.band(Subject(DEVICE, Level.QUICK)).passed


@pytest.mark.slow
def test_a_healthy_device_that_rounds_otherwise_passes() -> None:
    evidence = on_device.evidence("training:band")
    assert evidence.passed, evidence.summary


@pytest.mark.parametrize(
    "defect",
    [
        "optimizer-drift",
        pytest.param("wrong-backward", marks=pytest.mark.slow),
        pytest.param("embedding-backward", marks=pytest.mark.slow),
        pytest.param("overflow", marks=pytest.mark.slow),
    ],
)
def test_a_defect_is_found(defect: str) -> None:
    assert not on_device.evidence("training:band", f"sim:{defect}").passed
