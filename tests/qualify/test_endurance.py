"""Soak, determinism and memory: on the CPU, with faults planted, and on the simulated device."""

import os
import random
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor

from interlock.models.decoder import Decoder
from interlock.qualify import endurance
from interlock.qualify.check import Evidence, Level, Subject
from interlock.qualify.endurance import _operands, _slope, _Work, determinism, memory, soak

CPU = torch.device("cpu")
QUICK = Subject(CPU, Level.QUICK)
CHECK = """
import sys, msgspec, torch
torch.set_num_threads(1)
from interlock.chips import device
from interlock.qualify import endurance
from interlock.qualify.check import Level, Subject
found = getattr(endurance, sys.argv[1])(Subject(device.resolve(sys.argv[2]), Level.QUICK))
print(msgspec.json.encode(found).decode())
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def process(check: str, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, check, name],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def checked(check: str, name: str) -> Evidence:
    run = process(check, name)
    assert run.returncode == 0, run.stderr
    return msgspec.json.decode(run.stdout.splitlines()[-1], type=Evidence)


# The soak.


def test_a_sound_device_is_soaked_without_an_error() -> None:
    found = soak(Subject(CPU, Level.SOAK, minutes=1e-4))
    assert found.passed, found.summary
    assert found.figures["wrong results"] == 0
    assert found.figures["results compared"] == 6 * len(found.measures)


@pytest.mark.parametrize(
    ("found", "band", "wrong", "rounded", "worst"),
    [
        ([1.0, 2.0], 0.0, 0, 0, 0.0),
        ([1.0, 2.0000002], 0.0, 1, 0, 2.384185791015625e-07),
        ([1.0, 2.25], 0.5, 0, 1, 0.25),
        ([1.0, 3.0], 0.5, 1, 0, 1.0),
        ([1.0, torch.nan], 0.5, 1, 0, torch.inf),
        ([-torch.inf, 2.0], 0.5, 1, 0, torch.inf),
    ],
)
def test_a_repeat_is_judged_by_its_band(
    found: list[float], band: float, wrong: int, rounded: int, worst: float
) -> None:
    work = _Work("w", lambda: torch.tensor(found), torch.tensor([1.0, 2.0]), band)
    work.repeat()
    assert (work.wrong, work.rounded, work.worst) == (wrong, rounded, worst)


@pytest.mark.parametrize("pattern", ["random", "ones", "alternating", "large and small"])
def test_products_are_the_same_in_any_order_of_summation(pattern: str) -> None:
    """Summed in bfloat16, term by term, in three orders: the same bits as in float64."""
    noise = torch.Generator().manual_seed(1)
    x, w = _operands(pattern, 3, 1024, noise)
    w = w[:, :8]
    exact = (x.double() @ w.double()).bfloat16()
    x, w = x.bfloat16(), w.bfloat16()
    for order in (range(1024), range(1023, -1, -1), torch.randperm(1024, generator=noise).tolist()):
        total = torch.zeros(3, 8, dtype=torch.bfloat16)
        for k in order:
            total += x[:, k, None] * w[k]
        assert torch.equal(total, exact)
    assert torch.count_nonzero(x, 1).tolist() == [256] * 3


def test_a_single_flipped_bit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest bit of one element in one product of some thousands."""
    plain: Callable[[Tensor, Tensor], Tensor] = endurance._burst
    calls = 0

    def flipping(x: Tensor, w: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = plain(x, w)
        if calls == 30 and found.dtype == torch.float32:
            found.view(torch.int32)[5, 0, 7] ^= 1
        return found

    monkeypatch.setattr(endurance, "_burst", flipping)
    monkeypatch.setattr(endurance, "_layers", lambda subject, hidden: [])
    found = soak(Subject(CPU, Level.SOAK, minutes=1e-4))
    assert calls == 96  # sixteen bursts, six rounds
    assert not found.passed
    assert found.figures["wrong results"] == 1


def test_bits_that_flip_are_found() -> None:
    found = checked("soak", "sim:bit-flips")
    assert not found.passed
    assert "wrong bits" in found.summary


def test_another_order_of_summation_is_no_error() -> None:
    found = checked("soak", "sim:nondeterministic")
    assert found.passed, found.summary
    assert int(found.figures["results that differ by rounding"]) > 0


def test_a_crash_says_where() -> None:
    run = process("soak", "sim:crash")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "507035" in last and "s into the soak" in last


# Determinism.


def test_a_sound_device_is_deterministic() -> None:
    found = determinism(QUICK)
    assert found.passed, found.summary
    assert len(found.measures) == 4


def test_a_step_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are a little different every time."""
    plain = Decoder.logits
    noise = torch.Generator().manual_seed(3)

    def shaken(self: Decoder, hidden: Tensor) -> Tensor:
        found = plain(self, hidden)
        return found * (1 + 1e-6 * torch.rand((), generator=noise).item())

    monkeypatch.setattr(Decoder, "logits", shaken)
    found = determinism(QUICK)
    assert not found.passed
    wrong = [measure.name for measure in found.measures if measure.value > 0]
    assert [name for name in wrong if name.startswith("generation in float32")]


def test_an_order_of_summation_that_changes_is_found() -> None:
    found = checked("determinism", "sim:nondeterministic")
    assert not found.passed
    assert any(m.value > 0 and m.name.startswith("learner steps") for m in found.measures)


# Memory.


def test_a_sound_device_gives_memory_back() -> None:
    found = memory(QUICK)
    assert found.passed, found.summary


def test_a_small_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MB a cycle, of 64 MB."""
    lost = []
    plain = endurance._Use._cache

    def leaking(self: endurance._Use, noise: random.Random) -> None:
        plain(self, noise)
        lost.append(torch.ones(1 << 21, dtype=torch.uint8))

    monkeypatch.setattr(endurance._Use, "_cache", leaking)
    found = memory(QUICK)
    assert not found.passed
    grown = next(measure for measure in found.measures if measure.name.startswith("growth"))
    assert grown.value == pytest.approx(2, rel=0.2)
    assert found.figures["cycles"] == 18  # believed after three windows


def test_what_an_allocator_keeps_at_first_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """In use grows for six cycles and then no more."""
    readings = iter([*range(0, 60 << 20, 10 << 20), *[60 << 20] * 40])
    monkeypatch.setattr(endurance, "_in_use", lambda place: next(readings))
    monkeypatch.setattr(endurance._Use, "cycle", lambda self, noise: None)
    found = memory(QUICK)
    assert found.passed, found.summary
    assert found.figures["cycles"] == 12


def test_memory_in_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = iter([True, False])
    monkeypatch.setattr(endurance, "_fits", lambda size, place: next(fits))
    monkeypatch.setattr(endurance._Use, "cycle", lambda self, noise: None)
    found = memory(QUICK)
    assert not found.passed
    assert "does not fit again" in found.summary


def test_a_slope_ignores_an_outlier() -> None:
    assert _slope([0, 10, 20, 9000, 40, 50]) == 10
    assert _slope([7, 7, 7, 7]) == 0


def test_storages_that_are_lost_are_found() -> None:
    found = checked("memory", "sim:memory-leak")
    assert not found.passed
    assert float(found.figures["MB in use at the end"]) > float(found.figures["MB in use at first"])
