"""The roofline on healthy, slow and defective devices. No test asserts how fast this machine is."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.qualify import speed
from interlock.qualify.check import Evidence, Level, Subject

CPU = torch.device("cpu")
QUICK = Subject(CPU, Level.QUICK)

CHECK = """
import sys, warnings, msgspec, torch
torch.set_num_threads(1)
from interlock.chips import device
from interlock.qualify import speed
from interlock.qualify.check import Level, Subject
evidence = getattr(speed, sys.argv[1])(Subject(device.claim(sys.argv[2]), Level.QUICK))
sys.stdout.buffer.write(msgspec.json.encode(evidence))
"""


def on_device(check: str, name: str) -> Evidence:
    """What the check finds on a simulated device, which a process can set up only once."""
    ran = subprocess.run(
        [sys.executable, "-c", CHECK, check, name],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return msgspec.json.decode(ran.stdout, type=Evidence)


class Slow(TorchDispatchMode):
    """A device that takes `times` as long for the operators whose name holds `part`: by the check's
    clock, which is put forward, so that planted slowness costs no time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str, times: float) -> None:
        super().__init__()
        self.part, self.times, self.late = part, times, 0.0
        clock = SimpleNamespace(perf_counter=self.now, sleep=time.sleep)
        monkeypatch.setattr(speed, "time", clock)

    def now(self) -> float:
        return time.perf_counter() + self.late

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        if self.part in str(func):
            self.late += (self.times - 1) * (time.perf_counter() - start)
        return found


class Clock:
    """A clock that operators move, not time."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some operators, for the sake of time."""
    kept = ("softmax", "exp", "mul", "copy", "cast")
    monkeypatch.setattr(speed, "_FORWARD", [c for c in speed._FORWARD if c.name in kept])
    monkeypatch.setattr(speed, "_BACKWARD", [])


def test_a_healthy_device_passes() -> None:
    found = speed.roofline(QUICK)
    assert found.passed, found.summary
    assert found.figures["cases"] == 2 * (40 + 5)  # dtypes x (operators + products)


@pytest.mark.parametrize("part", ["", "softmax", "mm"])
def test_a_slow_device_or_an_operator_at_a_third_of_its_speed_passes(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    few(monkeypatch)
    with Slow(monkeypatch, part, 3):
        found = speed.roofline(QUICK)
    assert found.passed, found.summary


def test_one_operator_that_is_50_times_slower_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    with Slow(monkeypatch, "aten._softmax.", 50):
        found = speed.roofline(QUICK)
    assert not found.passed
    assert found.measures[0].name.startswith("softmax")
    assert {m.name.split()[0] for m in found.measures if m.value > m.limit} <= {"softmax"}


@pytest.mark.slow
def test_slow_copies_do_not_make_the_rest_look_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    with Slow(monkeypatch, "aten.clone.", 50):
        found = speed.roofline(QUICK)
    assert not found.passed
    assert found.measures[0].name.startswith("copy")


@pytest.mark.slow
def test_a_slow_product_is_found_by_the_other_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few(monkeypatch)
    monkeypatch.setattr(speed, "_ROWS", (1, 8))
    with Slow(monkeypatch, "aten.mm.", 50):
        found = speed.roofline(QUICK)
    assert not found.passed
    assert found.measures[0].name.startswith("linear")


def test_times_are_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(step=0.0)
    monkeypatch.setattr(speed, "time", clock)
    meter = speed.Meter(CPU, 3)
    waits: Iterator[float] = iter([9.0, 4.0, 2.0, 3.0])  # the first warms up
    assert meter.seconds(lambda: clock.sleep(next(waits))) == 2.0


def test_a_slowdown_that_does_not_come_again_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "time", Clock(step=0.0))
    meter = speed.Meter(CPU, 1)

    def measured(*values: float) -> Callable[[], float]:
        left = iter(values)
        return lambda: next(left)

    assert meter.confirmed(measured(5.0)) == 5.0
    assert meter.confirmed(measured(80.0, 6.0)) == 6.0
    assert meter.confirmed(measured(80.0, 70.0, 60.0, 90.0)) == 60.0


def test_a_copy_is_timed_by_the_best_of_three_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = speed.Meter(CPU, 1)
    times = iter([50.0, 2.0, 3.3])  # copy_, a product, a sum of two, which moves half as much again
    monkeypatch.setattr(meter, "seconds", lambda run: next(times))
    assert meter.copy_seconds(1 << 20) == 2.0


@pytest.mark.slow
def test_an_operator_on_the_host_of_the_simulated_device_is_found() -> None:
    # Who else has the processors slows the copies that it is compared with: once in a while all
    # is slow alike.
    tries = (on_device("roofline", "sim:slow-fallback") for _ in range(3))
    found = next(each for each in tries if not each.passed)
    slow = {measure.name.split()[0] for measure in found.measures if measure.value > measure.limit}
    assert slow == {"silu"}


@pytest.mark.slow
def test_the_healthy_simulated_device_passes() -> None:
    found = on_device("roofline", "sim")
    assert found.passed, found.summary


def test_what_a_cpu_takes_excuses_no_accelerator() -> None:
    cases = {case.name: case for case in speed._FORWARD}
    gpu = torch.device("cuda:0")
    for name, on_cpu, on_gpu in [("masked_fill", 20, 4), ("exp", 2, 2), ("sort", 40, 40)]:
        assert speed._cost(cases[name], CPU) == on_cpu
        assert speed._cost(cases[name], gpu) == on_gpu
