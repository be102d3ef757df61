"""The sample of torch's operator tests: a healthy device passes, planted defects do not."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from interlock.errors import UserError
from interlock.qualify import opinfo
from interlock.qualify.check import Level, Subject

pytest.importorskip("expecttest")

CPU = torch.device("cpu")
_ON_DEVICE = """
import json, sys, torch
torch.set_num_threads(1)
from interlock.chips.device import resolve
from interlock.qualify import opinfo
from interlock.qualify.check import Level, Subject
told = opinfo.sample(Subject(resolve(sys.argv[1]), Level.QUICK))
wrong = [m.name for m in told.measures if not m.value <= m.limit]
print(json.dumps([told.passed, wrong, told.figures]))
"""


def on_device(device: str) -> Any:
    """A device is set up once per process."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ON_DEVICE, device],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_cpu_passes_its_own_test() -> None:
    told = opinfo.sample(Subject(CPU, Level.QUICK, seed=1))
    assert told.passed, told.summary
    assert told.figures["cases"] > 400
    assert told.figures["inputs that cannot be judged"] < 40
    assert all(measure.value == measure.reference for measure in told.measures)


def test_every_operator_of_language_is_in_the_database_and_the_sample_is_the_seeds() -> None:
    database = opinfo._database()
    assert {opinfo._name(operator) for operator in database} >= opinfo.LANGUAGE

    def names(seed: int) -> list[str]:
        chosen = opinfo._chosen(database, Subject(CPU, Level.QUICK, seed=seed))
        return [opinfo._name(operator) for operator in chosen]

    assert names(3) == names(3) != names(4)
    assert set(names(3)) > opinfo.LANGUAGE
    assert not any("dropout" in name or name.startswith("linalg.") for name in names(3))


def test_a_healthy_device_passes() -> None:
    passed, wrong, figures = on_device("sim")
    assert passed, wrong
    assert figures["inputs whose operator is missing"] == 0


def test_defects_are_found_and_what_is_missing_is_counted() -> None:
    passed, wrong, figures = on_device("sim:matmul-bf16,missing-operator")
    assert not passed
    assert {"mm", "addmm", "nn.functional.linear"} <= {name.split()[0] for name in wrong}
    assert not any("bfloat16" in name and name.startswith("sum ") for name in wrong)
    assert figures["inputs whose operator is missing"] > 0
    assert "cumsum float32" in figures["missing or refused"]


def test_a_dead_device_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("vector core exception, error code is 507035")

    monkeypatch.setattr(opinfo.torch, "ones", dead)
    with pytest.raises(RuntimeError, match=r"dead after mm #3 .*: RuntimeError: no answer"):
        opinfo._alive(CPU, "mm #3 [2, 2]", RuntimeError("no answer"))


def test_without_the_database_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch.testing._internal.common_methods_invocations"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install expecttest numpy"):
        opinfo.sample(Subject(CPU))
