"""Masters between the values of a narrower dtype: what they round to, and what comes through."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interlock.models.adapters import merged
from interlock.models.cells import narrowest, spread
from interlock.records.adapters import AdapterForm

NARROW = [torch.bfloat16, torch.float16]


def spread_copy(stored: Tensor, name: str = "w") -> Tensor:
    wide = stored.float()
    spread(wide, stored.dtype, name)
    return wide


@given(bits=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=64))
@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_rounds_to_itself(dtype: torch.dtype, bits: list[int]) -> None:
    stored = torch.tensor(bits, dtype=torch.int16).view(dtype)

    again = spread_copy(stored).to(dtype)

    number = ~stored.isnan()
    assert torch.equal(again.view(torch.int16)[number], stored.view(torch.int16)[number])
    assert again.isnan().equal(stored.isnan())


def test_all_bfloat16_values_but_zeros_and_infinities_move() -> None:
    stored = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    stored = stored[~stored.isnan()]

    wide = spread_copy(stored)

    stays = (stored == 0) | stored.isinf()
    assert torch.equal(wide[stays], stored[stays].float())
    moved = (wide != stored.float())[~stays].float().mean()
    assert moved > 0.9999  # one place in 65,535 is the middle
    assert torch.equal(wide.to(torch.bfloat16), stored)


def test_what_lies_between_two_values_stays() -> None:
    between = torch.tensor([0.1, 1 / 3, -2.7])
    wide = between.clone()
    spread(wide, torch.bfloat16, "w")
    assert torch.equal(wide, between)


@pytest.mark.parametrize(("dtype", "move"), [(torch.bfloat16, 1e-5), (torch.float16, 2e-6)])
def test_a_small_move_comes_through_on_the_whole(dtype: torch.dtype, move: float) -> None:
    stored = torch.full((1000, 400), 0.1).to(dtype)  # the next value is 50 and 30 moves off

    rounded = (spread_copy(stored) + move).to(dtype)
    from_the_values = (stored.float() + move).to(dtype)

    assert torch.equal(from_the_values, stored)  # to nearest, nothing comes through
    change = (rounded.float() - stored.float()).mean(dim=1)  # of rows of 400 weights
    assert change.mean().item() == pytest.approx(move, rel=0.02)
    gap = torch.nextafter(stored[0, 0], torch.tensor(1.0).to(dtype)).float() - stored[0, 0].float()
    share = move / gap.item()
    spread_of_rows = gap.item() * (share * (1 - share) / 400) ** 0.5  # of independent weights
    assert change.std().item() == pytest.approx(spread_of_rows, rel=0.1)


def test_it_hangs_on_name_and_place_alone() -> None:
    stored = torch.full((300_000,), 0.1).bfloat16()
    first, again, other = (spread_copy(stored, name) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert torch.corrcoef(torch.stack([first, other]))[0, 1].abs() < 0.01
    halves = torch.stack([first[: 1 << 17], first[1 << 17 : 2 << 17]])
    assert torch.corrcoef(halves)[0, 1].abs() < 0.02


def test_the_widest_cells_count() -> None:
    assert narrowest(torch.float32, torch.bfloat16, torch.float16) == torch.bfloat16
    assert narrowest(torch.float16, torch.float32) == torch.float16
    assert narrowest(torch.float32, None) is None


def test_a_small_adapter_is_not_lost_in_the_merge() -> None:
    form = AdapterForm(rank=1, alpha=1.0)
    name = "model.layers.0.mlp.up_proj"
    weight = torch.full((512, 512), 0.1).bfloat16()
    a, b = torch.full((1, 512), 0.01), torch.full((512, 1), 0.002)  # 2e-5 for every weight
    before = f"base_model.model.{name}"
    adapter = {f"{before}.lora_A.weight": a, f"{before}.lora_B.weight": b}

    ((_, found),) = merged([(f"{name}.weight", weight)], adapter, form)

    assert found.dtype == torch.bfloat16
    assert (found.float() - weight.float()).mean().item() == pytest.approx(2e-5, rel=0.02)
