"""Steps of AdamW on large parameters: right on healthy devices, and what is skipped is named."""

import on_device
import pytest
import torch

from interlock.qualify import optimizer
from interlock.qualify.check import Level, Subject

CPU = Subject(torch.device("cpu"), Level.QUICK)


def test_a_healthy_device_passes() -> None:
    told = optimizer.updates(CPU)
    assert told.passed, told.summary
    assert len(told.measures) == len(optimizer._SIZES) * len(optimizer._FORMS)


def test_the_exact_update_is_that_of_the_paper() -> None:
    """Loshchilov & Hutter, arXiv 1711.05101, algorithm 2, in a plain loop."""
    x, slopes = 0.02, [1.0, -0.5, 2.0]
    told = optimizer._updated(
        [torch.tensor([x])],
        [[torch.tensor([g])] for g in slopes],
        torch.device("cpu"),
        torch.float64,
        "one by one",
    )
    x, m, v = torch.tensor([x]).double().item(), 0.0, 0.0
    for t, g in enumerate(slopes, start=1):
        x *= 1 - 1e-2 * 0.1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert told[0].item() == pytest.approx(x, rel=1e-12)


def test_parameters_that_are_skipped_are_named() -> None:
    told = on_device.evidence("optimizer:updates", "sim:skipped-parameters")
    wrong = {measure.name for measure in told.measures if measure.value > measure.limit}
    assert wrong == {"fused, 1048577 elements", "fused, 3145728 elements"}
