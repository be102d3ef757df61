"""Replayed and compiled forms against eager ones, on devices whose graphs are sound, and stale."""

from collections.abc import Callable

import on_device
import pytest
import torch
from torch import Tensor

from interlock.errors import UserError
from interlock.qualify import graphs
from interlock.qualify.check import Level, Subject

CPU = torch.device("cpu")
QUICK = Subject(CPU, Level.QUICK)


def capture(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
    """A device whose replay is sound: the function itself."""
    function()
    return function


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(graphs, "_FORMS", {name: graphs._FORMS[name] for name in names})


def test_where_no_form_is_offered_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "replayed")
    with pytest.raises(UserError, match="captures no graphs"):
        graphs.agreement(QUICK)


def test_sound_replay_passes_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "replayed")
    monkeypatch.setattr(graphs.chips, "capture", capture)
    found = graphs.agreement(QUICK)
    assert found.passed
    assert found.figures["cases replayed"] == 9  # three programs at three sizes
    assert all(measure.value == 0 for measure in found.measures)


def test_replay_with_the_inputs_of_the_capture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return lambda: None

    only(monkeypatch, "replayed")
    monkeypatch.setattr(graphs.chips, "capture", stale)
    found = graphs.agreement(QUICK)
    assert not found.passed
    assert found.figures["cases beyond their limit"] == 9


def test_replay_that_is_stale_only_the_second_time_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def once(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
        left = [1, 1]  # the check replays once with the old input, then with a new one

        def replay() -> None:
            if left:
                left.pop()
                function()

        return replay

    only(monkeypatch, "replayed")
    monkeypatch.setattr(graphs.chips, "capture", once)
    assert not graphs.agreement(QUICK).passed


def test_a_capture_that_fails_at_one_size_only_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = iter(range(100))

    def sometimes(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
        if next(calls) == 1:
            raise RuntimeError("capture failed: 107027")
        return capture(device, function)

    only(monkeypatch, "replayed")
    monkeypatch.setattr(graphs.chips, "capture", sometimes)
    found = graphs.agreement(QUICK)
    assert not found.passed
    worst = found.measures[0].name
    assert worst == "replayed, forward bfloat16 [8]: RuntimeError: capture failed: 107027"


def test_a_capture_that_always_fails_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(device: torch.device, function: Callable[[], None]) -> None:
        raise RuntimeError("no graphs")

    only(monkeypatch, "replayed")
    monkeypatch.setattr(graphs.chips, "capture", never)
    with pytest.raises(UserError, match=r"forward bfloat16 \[1\]: RuntimeError: no graphs"):
        graphs.agreement(QUICK)


def test_decomposed_programs_agree_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "decomposed")
    monkeypatch.setitem(graphs._BUDGET_S, Level.QUICK, 60.0)
    found = graphs.agreement(QUICK)
    assert found.passed and found.figures["cases decomposed"] == 3


def test_the_difference_is_relative_to_each_tensor() -> None:
    one, small = torch.tensor([4.0, -2.0]), torch.tensor([0.01])
    assert graphs._difference([one + 1, small], [one, small]) == pytest.approx(0.25)
    assert graphs._difference([one, small * 1.5], [one, small]) == pytest.approx(0.5, rel=1e-6)
    nan = graphs._difference([one * float("nan"), small], [one, small])
    assert nan != nan
    ends = torch.tensor([float("nan"), float("inf"), 4.0])
    assert graphs._difference([ends], [ends]) == 0.0
    assert not graphs._difference([-ends], [ends]) < 1e9


def test_gradients_are_among_the_numbers() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))

    def square(x: Tensor) -> Tensor:
        return (weight**2 * x).sum()

    value, slope = graphs._with_gradients(square, [weight])(torch.tensor([2.0]))
    assert value.item() == 18 and slope.item() == 12


@pytest.mark.parametrize(("device", "passes"), [("sim", True), ("sim:stale-replay", False)])
def test_on_the_simulated_device(device: str, passes: bool) -> None:
    found = on_device.evidence("graphs:agreement", device)
    assert found.passed is passes
    assert found.figures["cases replayed"] == 9


def test_a_device_that_cannot_train_is_judged_by_what_it_can_do() -> None:
    """The checks of training say that it cannot; the graphs of inference may still be trusted."""
    found = on_device.evidence("graphs:agreement", "sim:missing-backward")
    assert found.passed
    assert found.figures["cases replayed"] == 6
    assert "silu_backward" in str(found.figures["not training step"])
