"""Versions that belong together or not; operators that are there, missing, or on the host."""

import sys
import warnings
from typing import Any

import on_device
import pytest
import torch
from msgspec.structs import replace
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.qualify import software
from interlock.qualify.check import Level, Subject

CPU = torch.device("cpu")
QUICK = Subject(CPU, Level.QUICK)
MPS_WARNING = (
    "The operator 'aten::topk' is not currently supported on the MPS backend and will fall back "
    "to run on the CPU. This may have performance implications."
)
XPU_WARNING = "Aten Op fallback from XPU to CPU happends. This may have performance implications."


class Lacking(TorchDispatchMode):
    """A device without the operators whose name holds one of `parts`."""

    def __init__(self, *parts: str, error: type[Exception] = NotImplementedError) -> None:
        super().__init__()
        self.parts, self.error = parts, error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What the survey runs on the host carries no mark of it; a real host has the operator.
        if any(part in str(func) for part in self.parts) and not _on_host():
            raise self.error(f"The operator {func} is not implemented for the device")
        return func(*args, **(kwargs or {}))


def _on_host() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_run_on_host":
            return True
        frame = frame.f_back
    return False


class Talkative(TorchDispatchMode):
    """A device that says something when an operator runs."""

    def __init__(self, part: str, text: str) -> None:
        super().__init__()
        self.part, self.text = part, text

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.part in str(func):
            warnings.warn(self.text, stacklevel=1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("check", [software.generation_operators, software.training_operators])
def test_a_healthy_device_has_every_operator(check: Any) -> None:
    found = check(QUICK)
    assert found.passed, found.summary
    names = {measure.name for measure in found.measures}
    assert "aten.index_select.default is there" in names
    trains = "aten.silu_backward.default is there" in names
    assert trains == (check is software.training_operators)


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_all_missing_operators_are_found_in_one_run(error: type[Exception]) -> None:
    with Lacking("aten.cumsum.", "aten.topk.", "aten.exp_.", error=error):
        found = software.generation_operators(QUICK)
    assert not found.passed
    failed = {measure.name for measure in found.measures if measure.value > measure.limit}
    assert {name.rsplit(".", 1)[0] for name in failed} == {"aten.cumsum", "aten.topk", "aten.exp_"}
    assert all(name.endswith("is missing") for name in failed)


def test_what_only_training_lacks_leaves_generation_alone() -> None:
    with Lacking("aten.silu_backward."):
        assert software.generation_operators(QUICK).passed
        found = software.training_operators(QUICK)
    assert not found.passed
    assert "aten.silu_backward.default is missing" in found.summary


@pytest.mark.parametrize(
    ("text", "named"), [(MPS_WARNING, "aten::topk"), (XPU_WARNING, "aten.topk.default")]
)
def test_generation_may_run_an_operator_on_the_host_and_says_so(text: str, named: str) -> None:
    with Talkative("aten.topk.default", text):
        found = software.generation_operators(QUICK)
    assert found.passed and f"but slow: {named} runs on the host" in found.summary
    assert found.figures[f"on the host: {named}"] == text


def test_training_may_not_run_an_operator_on_the_host() -> None:
    with Talkative("aten.silu_backward.", XPU_WARNING):
        found = software.training_operators(QUICK)
    assert not found.passed
    assert found.measures[0].name == "aten.silu_backward.default runs on the host"
    assert found.figures["cases beyond their limit"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "expandable_segments is not supported on this platform",
        "Flash attention is not available, falling back to the math kernel",
        "lowering the precision of products",
    ],
)
def test_other_warnings_fail_nothing(text: str) -> None:
    with Talkative("aten.topk.default", text):
        assert software.generation_operators(QUICK).passed


def test_any_other_error_names_the_operator() -> None:
    class Crashing(Lacking):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "aten.topk." in str(func):
                raise RuntimeError("error code is 507035")
            return func(*args, **(kwargs or {}))

    with Crashing(), pytest.raises(RuntimeError, match=r"aten.topk.*512.*507035"):
        software.generation_operators(QUICK)


def test_writing_in_place_on_the_host_reaches_the_device() -> None:
    with software.surveying(CPU) as survey, Lacking("aten.exp_."):
        pass
    x = torch.zeros(3)
    with Lacking("aten.exp_.", "aten.add."), software.surveying(CPU) as survey:
        y = x.exp_()
        z = x + 1
    assert y is x and x.tolist() == [1, 1, 1] and z.tolist() == [2, 2, 2]
    assert set(survey.missing) == {"aten.exp_.default", "aten.add.Tensor"}


def test_versions_of_a_cpu_are_known() -> None:
    found = software.versions(QUICK)
    assert found.passed, found.summary
    assert found.figures["torch"] == torch.__version__ and found.figures["kind"] == "cpu"


def test_a_stack_that_does_not_tell_its_parts_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = software.chips.stack(CPU)
    told = replace(real, kind="npu", chip="", torch="1.0")
    monkeypatch.setattr(software.chips, "stack", lambda device: told)
    found = software.versions(QUICK)
    assert not found.passed
    assert "does not tell its chip" in found.summary
    assert "does not tell its driver, runtime or plugin" in found.summary
    assert "names torch 1.0" in found.summary


def test_the_environment_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_DETERMINISTIC", "true")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("ASCEND_API_KEY", "hidden")
    found = software.versions(QUICK).figures
    assert found["environment HCCL_DETERMINISTIC"] == "true"
    assert found["environment NVIDIA_TF32_OVERRIDE"] == "1"
    assert "hidden" not in found.values()


def test_a_plugin_of_another_torch_is_found() -> None:
    assert on_device.evidence("software:versions", "sim").passed
    found = on_device.evidence("software:versions", "sim:wrong-plugin")
    assert not found.passed and "2.5.1" in found.summary


# What the simulated device lacks, and which of the two checks must say so.
@pytest.mark.parametrize(
    ("device", "generates", "trains"),
    [
        pytest.param("sim", True, True, marks=pytest.mark.slow),
        pytest.param("sim:missing-operator", False, True, marks=pytest.mark.slow),
        ("sim:missing-backward", True, False),
        pytest.param("sim:slow-fallback", True, False, marks=pytest.mark.slow),
    ],
)
def test_on_the_simulated_device(device: str, generates: bool, trains: bool) -> None:
    assert on_device.evidence("software:generation_operators", device).passed is generates
    assert on_device.evidence("software:training_operators", device).passed is trains
