"""The device's own random numbers: healthy ones pass, and each way to be bad is named."""

import on_device
import pytest
import torch
from torch import Tensor

from interlock.qualify import random_numbers
from interlock.qualify.check import Level, Subject, beyond

CPU = Subject(torch.device("cpu"), Level.QUICK)
COUNT = random_numbers._COUNT


def uniform(seed: int = 0) -> Tensor:
    return torch.rand(COUNT, generator=torch.Generator().manual_seed(seed))


def wrong(x: Tensor) -> set[str]:
    return {m.name for m in random_numbers._judged("x", x.double(), x) if beyond(m)}


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_device_passes(seed: int) -> None:
    told = random_numbers.drawn(Subject(CPU.device, Level.QUICK, seed=seed))
    assert told.passed, told.summary
    assert len(told.measures) == 39


def test_numbers_that_repeat_are_found() -> None:
    told = on_device.evidence("random_numbers:drawn", "sim:repeated-noise")
    bad = {measure.name for measure in told.measures if beyond(measure)}
    assert bad == {f"{each}: blocks that were before" for each in random_numbers._DISTRIBUTIONS}


def test_what_is_not_uniform_is_found() -> None:
    x = uniform()
    assert wrong(x) == set()
    assert wrong(x * 0.9999) == {"x: -log10 p of the upper end"}
    assert wrong(x.clamp(min=1e-4) + 1e-9) >= {"x: -log10 p of the lower end"}
    assert wrong(x**1.01) == {"x: Kolmogorov-Smirnov"}
    assert wrong(torch.cat([x[:-1], torch.tensor([torch.nan])])) >= {"x: numbers that cannot be"}


def test_what_is_told_by_the_number_before_is_found() -> None:
    x = uniform()
    mixed = x.clone()
    mixed[128::2] = torch.where(uniform(1)[128::2] < 0.1, x[:-128:2], x[128::2])
    assert "x: told by number 128 before, sigmas" in wrong(mixed)


def test_a_block_is_known_wherever_it_stands() -> None:
    x = uniform()
    x[700_001 : 700_001 + 20] = x[3:23]
    assert random_numbers._repeated(x) == 20 - random_numbers._BLOCK + 1
