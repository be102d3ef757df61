"""Packed products against plain ones, for numbers of rows they were not packed for too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from interlock.engine.portable.prepacked import LEAST_STEPS, MOST_ROWS, Packed, packed
from interlock.errors import TrainingError
from interlock.models.decoder import Decoder
from interlock.models.layers import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(192, 64), (33, 17), (1000, 576)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(
    dtype: torch.dtype, shape: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    weight, b = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype) if bias else None
    multiply = Packed(weight, 64)
    for rows in (1, 2, 3, 7, 31, 64, MOST_ROWS, MOST_ROWS + 1, 300):
        x = torch.randn(rows, shape[1]).to(dtype)
        exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
        error = (multiply(x, weight, b).double() - exact).abs().max()
        # The result is rounded to dtype, and its terms are added up in fp32.
        terms = 2 * shape[1] * torch.finfo(torch.float32).eps
        assert error <= torch.finfo(dtype).eps * exact.abs().max() + terms


def products(decoder: Decoder) -> set[object]:
    maps = [module.product for module in decoder.modules() if isinstance(module, Linear)]
    return {type(product) for product in (*maps, decoder.head_product)}


def test_weights_are_packed_for_one_call_and_plain_after_it(tiny: Callable[..., Decoder]) -> None:
    decoder = tiny().requires_grad_(False)
    plain = products(decoder)
    with pytest.raises(TrainingError), packed(decoder, 4, LEAST_STEPS):
        assert products(decoder) == {Packed}
        raise TrainingError("in the middle")
    assert products(decoder) == plain
    x = torch.randn(4, decoder.arch.hidden)
    with packed(decoder, 4, LEAST_STEPS):
        before = decoder.logits(x)
    decoder.head.mul_(2)
    with packed(decoder, 4, LEAST_STEPS):
        torch.testing.assert_close(decoder.logits(x), 2 * before)


@pytest.mark.parametrize(("rows", "steps"), [(1, 100), (MOST_ROWS + 1, 100), (64, LEAST_STEPS - 1)])
def test_what_would_not_pay_is_not_packed(
    rows: int, steps: int, tiny: Callable[..., Decoder]
) -> None:
    decoder = tiny().requires_grad_(False)
    with packed(decoder, rows, steps):
        assert Packed not in products(decoder)
