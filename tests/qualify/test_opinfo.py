"""The sample of torch's operator tests: a healthy device passes, planted defects do not."""

import subprocess
import sys
from typing import Any

import on_device
import pytest
import torch
from on_device import failed

from interlock.errors import UserError
from interlock.qualify import opinfo
from interlock.qualify.check import Level, Subject

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_cpu_passes_its_own_test() -> None:
    told = opinfo.sample(Subject(CPU, Level.QUICK, seed=1))
    assert told.passed, told.summary
    assert told.figures["cases"] > 400
    assert told.figures["inputs that cannot be judged"] < 40
    assert all(measure.value == measure.reference for measure in told.measures)


def test_every_operator_of_language_is_in_the_database_and_the_sample_is_the_seeds() -> None:
    database = opinfo.torch_database()
    assert {opinfo._name(operator) for operator in database} >= opinfo.LANGUAGE

    def names(seed: int) -> list[str]:
        chosen = opinfo._chosen(database, Subject(CPU, Level.QUICK, seed=seed))
        return [opinfo._name(operator) for operator in chosen]

    assert names(3) == names(3) != names(4)
    assert set(names(3)) > opinfo.LANGUAGE
    assert not any("dropout" in name or name.startswith("linalg.") for name in names(3))


def test_a_healthy_device_passes() -> None:
    told = on_device.evidence("opinfo:sample")
    assert told.passed, told.summary
    assert told.figures["wrong inputs of operators that do not decide"] == 0


def test_defects_are_found_and_what_is_missing_is_counted() -> None:
    told = on_device.evidence("opinfo:sample", "sim:matmul-bf16,missing-operator")
    wrong = failed(told)
    assert {"mm", "addmm", "nn.functional.linear"} <= {name.split()[0] for name in wrong}
    assert not any("bfloat16" in name and name.startswith("sum ") for name in wrong)
    assert "cumsum float32" in str(told.figures["missing or refused"])


def test_a_dead_device_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("vector core exception, error code is 507035")

    monkeypatch.setattr(opinfo.torch, "ones", dead)
    with pytest.raises(RuntimeError, match=r"dead after mm #3 .*: RuntimeError: no answer"):
        opinfo._alive(CPU, "mm #3 [2, 2]", RuntimeError("no answer"))


def test_without_the_database_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch.testing._internal.common_methods_invocations"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="reinstall torch and numpy"):
        opinfo.sample(Subject(CPU))


def test_the_database_is_the_same_without_expecttest() -> None:
    """A package that only torch's own tests need, and no extra of Interlock installs."""
    script = """
import importlib.util
import sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "expecttest" else found(name, *more)
from interlock.qualify import opinfo
print(*sorted(opinfo._name(operator) for operator in opinfo.torch_database()))
assert not hasattr(sys.modules["expecttest"], "__file__")
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.split() == sorted(map(opinfo._name, opinfo.torch_database()))
