"""Tensors of more than 2^31 elements, and of what a small device could hold."""

import on_device
import pytest
import torch

from interlock.chips import device
from interlock.qualify import addresses
from interlock.qualify.check import Level, Subject, beyond

CPU = Subject(torch.device("cpu"), Level.QUICK)


def test_a_small_device_is_asked_for_what_it_could_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "room", lambda place: 64 << 20)
    told = addresses.reached(CPU)
    assert told.passed, told.summary
    assert told.figures["elements"] == 32 << 20


def test_a_row_that_is_not_reached_is_found() -> None:
    large, at = torch.zeros(9, 4, dtype=torch.int8), torch.tensor([0, 8])
    rows = torch.ones(2, 4, dtype=torch.int8)
    assert addresses._written(lambda x, at, rows: x[:1].fill_(1), large, at, rows) == 4
    assert addresses._written(addresses._WRITES["index_put_"], large, at, rows) == 0
    large[4] = 1
    told = addresses._told("x", lambda: addresses._read(addresses._nonzero, large, at, rows))
    assert beyond(told) and "[0, 4, 8]" in told.name


@pytest.mark.slow
def test_what_begins_anew_at_2_31_elements_is_found() -> None:
    told = on_device.evidence("addresses:reached", "sim:far-addresses")
    assert told.figures["elements"] == addresses._ROWS * addresses._COLUMNS
    assert {m.name for m in told.measures if beyond(m)} == {"index_select"}
