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

from interlock.chips import device
from interlock.errors import UserError
from interlock.models import attention
from interlock.models.decoder import Decoder
from interlock.qualify import endurance
from interlock.qualify import soak as soaking
from interlock.qualify.check import Evidence, Level, Subject
from interlock.qualify.endurance import _fits, _MemoryInUse, _slope, determinism, memory
from interlock.qualify.soak import _operands, _Repeated, soak

CPU = torch.device("cpu")
QUICK = Subject(CPU, Level.QUICK)
CHECK = """
import importlib, sys, msgspec, torch
torch.set_num_threads(1)
from interlock.chips import device
from interlock.qualify.check import Level, Subject
check = getattr(importlib.import_module(f"interlock.qualify.{sys.argv[1]}"), sys.argv[2])
found = check(Subject(device.claim(sys.argv[3]), Level.QUICK))
print(msgspec.json.encode(found).decode())
"""


def process(module: str, check: str, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, module, check, name],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def checked(module: str, check: str, name: str) -> Evidence:
    run = process(module, check, name)
    assert run.returncode == 0, run.stderr
    return msgspec.json.decode(run.stdout.splitlines()[-1], type=Evidence)


# The soak.


def test_a_sound_device_is_soaked_without_an_error() -> None:
    found = soak(Subject(CPU, Level.SOAK, minutes=1e-4))
    assert found.passed, found.summary
    assert found.figures["wrong elements"] == 0
    assert found.figures["results compared"] == 6 * len(found.measures)


@pytest.mark.parametrize(
    ("found", "band", "wrong", "rounded"),
    [
        ([1.0, 2.0], 0.0, 0, 0),
        ([1.0, 2.0000002], 0.0, 1, 0),
        ([1.0, 2.25], 0.5, 0, 1),
        ([1.0, 3.0], 0.5, 1, 0),
        ([1.25, torch.nan], 0.5, 1, 1),
        ([-torch.inf, 3.0], 0.5, 2, 0),
    ],
)
def test_a_repeat_is_judged_by_its_band(
    found: list[float], band: float, wrong: int, rounded: int
) -> None:
    work = _Repeated("w", lambda: torch.tensor(found), torch.tensor([1.0, 2.0]), band)
    for _ in range(2):
        work.repeat()
    assert (work.wrong, work.rounded) == (0, 0)  # nobody has waited for the device
    work.read()
    assert (work.wrong, work.rounded) == (2 * wrong, 2 * rounded)


def test_a_sign_bit_that_flips_in_a_copy_is_wrong() -> None:
    """The difference of both is what int32 has no absolute value of."""
    kept = torch.tensor([0x55555555, 7], dtype=torch.int32)
    work = _Repeated("copy", lambda: kept ^ torch.tensor([-(1 << 31), 0], dtype=torch.int32), kept)
    work.repeat()
    work.read()
    assert work.wrong == 1


def test_a_fast_device_multiplies_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen prefills in one product, each held against the same rows."""
    monkeypatch.setattr(soaking, "_FAST", 256)
    works = list(soaking._products(QUICK, 256))
    work = next(work for work in works if "4096 rows" in work.name)
    assert work.run().shape == (16, 256, 1024)
    work.repeat()
    work.read()
    assert work.wrong == 0
    work.expected = work.expected.clone()
    work.expected[3, 5] += 1
    work.repeat()
    work.read()
    assert work.wrong == 16


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
    plain: Callable[[Tensor, Tensor], Tensor] = soaking._burst
    calls = 0

    def flipping(x: Tensor, w: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = plain(x, w)
        if calls == 30 and found.dtype == torch.float32:
            found.view(torch.int32)[5, 0, 7] ^= 1
        return found

    monkeypatch.setattr(soaking, "_burst", flipping)
    monkeypatch.setattr(soaking, "_layers", lambda subject, hidden: [])
    found = soak(Subject(CPU, Level.SOAK, minutes=1e-4))
    assert calls == 96  # sixteen bursts, six rounds
    assert not found.passed
    assert found.figures["wrong elements"] == 1


@pytest.mark.slow
def test_bits_that_flip_are_found() -> None:
    found = checked("soak", "soak", "sim:bit-flips")
    assert not found.passed
    assert "wrong bits" in found.summary


@pytest.mark.slow
def test_another_order_of_summation_is_no_error() -> None:
    found = checked("soak", "soak", "sim:nondeterministic")
    assert found.passed, found.summary
    assert int(found.figures["elements that differ by rounding"]) > 0


def test_a_crash_says_where() -> None:
    run = process("soak", "soak", "sim:crash")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "507035" in last and "s into the soak" in last


# Determinism.


def test_a_sound_device_is_deterministic() -> None:
    found = determinism(QUICK)
    assert found.passed, found.summary
    assert len(found.measures) == 4


def test_prompts_reach_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the default level; its kernels add up in orders of their own."""
    longest: list[int] = []
    monkeypatch.setattr(endurance, "_digest", lambda tensors: "")
    for name in ("_learned", "_generated"):
        monkeypatch.setattr(endurance, name, lambda *given: longest.append(max(given[-1])) or {})
    determinism(QUICK)
    assert max(longest) <= attention.FUSED_ABOVE
    determinism(Subject(CPU, Level.DEFAULT))
    assert max(longest) > attention.FUSED_ABOVE


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


@pytest.mark.slow
def test_an_order_of_summation_that_changes_is_found() -> None:
    found = checked("endurance", "determinism", "sim:nondeterministic")
    assert not found.passed
    assert any(m.value > 0 and m.name.startswith("learner steps") for m in found.measures)


# Memory.


def test_a_sound_device_gives_memory_back() -> None:
    found = memory(QUICK)
    assert found.passed, found.summary


def test_a_small_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MB a cycle, of 64 MB."""
    lost = []
    plain = endurance._MemoryLoad._cache

    def leaking(self: endurance._MemoryLoad, noise: random.Random) -> None:
        plain(self, noise)
        lost.append(torch.ones(1 << 21, dtype=torch.uint8))

    monkeypatch.setattr(endurance._MemoryLoad, "_cache", leaking)
    found = memory(QUICK)
    assert not found.passed
    grown = next(measure for measure in found.measures if measure.name.startswith("growth"))
    assert grown.value == pytest.approx(2, rel=0.2)
    assert found.figures["cycles"] == 18  # believed after three windows


def test_what_an_allocator_keeps_at_first_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """In use grows for six cycles and then no more."""
    readings = iter([*range(0, 60 << 20, 10 << 20), *[60 << 20] * 40])
    monkeypatch.setattr(endurance, "_in_use", lambda place: _MemoryInUse(next(readings), 0))
    monkeypatch.setattr(endurance._MemoryLoad, "cycle", lambda self: None)
    found = memory(QUICK)
    assert found.passed, found.summary
    assert found.figures["cycles"] == 12


def test_memory_in_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = iter([True, False])
    monkeypatch.setattr(endurance, "_fits", lambda size, place: next(fits))
    monkeypatch.setattr(endurance._MemoryLoad, "cycle", lambda self: None)
    found = memory(QUICK)
    assert not found.passed
    assert "does not fit again" in found.summary


def test_what_only_the_driver_sees_grow_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(range(100))
    monkeypatch.setattr(endurance, "_in_use", lambda place: _MemoryInUse(7, next(readings) << 20))
    monkeypatch.setattr(endurance._MemoryLoad, "cycle", lambda self: None)
    found = memory(QUICK)
    assert not found.passed
    wrong = [(each.name, each.value) for each in found.measures if each.value > each.limit]
    assert wrong == [("growth of the memory in use by the driver, MB a cycle", 1.0)]
    assert found.figures["cycles"] == 18


def test_a_neighbour_on_the_device_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 10 GB in the first cycles, and keeps them."""
    readings = iter([0, 0, 0, *[10 << 30] * 40])
    monkeypatch.setattr(endurance, "_in_use", lambda place: _MemoryInUse(7, next(readings)))
    monkeypatch.setattr(endurance._MemoryLoad, "cycle", lambda self: None)
    assert memory(QUICK).passed


def test_a_device_that_tells_nothing_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endurance._MemoryLoad, "cycle", lambda self: None)
    monkeypatch.setattr(device, "memory", lambda place: device.Memory(0, 0, 0))
    with pytest.raises(UserError, match="does not tell its memory"):
        memory(QUICK)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("the device is lost, error code is 507901"), False),
    ],
)
def test_only_full_memory_is_no_fit(
    error: Exception, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **others: object) -> Tensor:
        raise error

    monkeypatch.setattr(torch, "empty", refuse)
    if full:
        assert not _fits(1, CPU)
    else:
        with pytest.raises(RuntimeError, match="lost"):
            _fits(1, CPU)


def test_a_slope_ignores_an_outlier() -> None:
    assert _slope([0, 10, 20, 9000, 40, 50]) == 10
    assert _slope([7, 7, 7, 7]) == 0


@pytest.mark.slow
def test_storages_that_are_lost_are_found() -> None:
    found = checked("endurance", "memory", "sim:memory-leak")
    assert not found.passed
    for view in ("by torch", "by the driver"):
        end, first = (
            found.figures[f"MB in use at {when}, {view}"] for when in ("the end", "first")
        )
        assert float(end) > float(first)
