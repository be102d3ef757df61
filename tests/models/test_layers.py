"""The layers' own backward passes against autograd's."""

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_close
from torch import Tensor

from interlock.models.layers import RMSNorm, swiglu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_swiglu_and_its_gradient_are_those_of_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 14, dtype=torch.float64)).to(dtype).requires_grad_()
    slope = torch.randn(5, 7).to(dtype)
    exact = x.detach().double().requires_grad_()

    def plain(x: Tensor) -> list[Tensor]:
        gate, up = x.chunk(2, dim=-1)
        out = F.silu(gate) * up
        return [out, *torch.autograd.grad(out, x, slope.to(x.dtype))]

    found = swiglu(x)
    (grad,) = torch.autograd.grad(found, x, slope)
    assert found.dtype == grad.dtype == dtype
    for ours, *other in zip((found, grad), plain(exact), plain(x), strict=True):
        assert_close(ours, *other, dtype=dtype)


def test_swiglu_keeps_nothing_but_its_input() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor.data_ptr()), tensor)[1], lambda tensor: tensor
    ):
        swiglu(x)
    assert kept == [x.data_ptr()]


def test_a_norm_multiplies_in_fp32_by_the_weight_as_it_is_published() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(6, 48).bfloat16()
    h = x.float()
    h = h / (h.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.bfloat16().float()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    # The reciprocal root may round otherwise: one bfloat16 value in a few hundred is a neighbour.
    torch.testing.assert_close(found.float(), h.bfloat16().float(), rtol=2**-7, atol=0)
    assert (found == h.bfloat16()).float().mean() > 0.97
