"""The parts that every family's layers are made of: linear maps, norms and the dense MLP.

Weights are cast to the activations' dtype at their use: fp32 masters train under bf16 compute with
the very weights that are published. Parameters that are read together are stored together; a
module's `layout` says which part of which parameter every Hugging Face tensor is.

Legend: N tokens, d hidden size
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlock.chips.products import Product
from interlock.models.low_rank import LowRank

# (parameter name, index into it)
ParameterSlice = tuple[str, tuple[int | slice, ...]]
# Hugging Face name and where it is kept
LayoutEntry = tuple[str, ParameterSlice]


class Linear(nn.Module):
    """y = x Wᵀ + b, with W [out, in] cast to x's dtype; see Decoder.use for `product`.

    `adapter` adds to y (adapters.py). `lent`: what an engine has in the place of `product`
    (engine/portable/prepacked.py).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.product: Product = F.linear
        self.lent: Product | None = None
        self.adapter: LowRank | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = (self.lent or self.product)(x, self.weight.to(x.dtype), bias)
        return y if self.adapter is None else self.adapter(x, y)

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """As one tensor of its own."""
        yield from self.stacked(ours, {theirs: self.weight.shape[0]})

    def stacked(self, ours: str, rows: dict[str, int]) -> Iterator[LayoutEntry]:
        """As several tensors, stacked in the order of `rows`: Hugging Face module -> its rows."""
        for kind in ("weight",) if self.bias is None else ("weight", "bias"):
            start = 0
            for theirs, count in rows.items():
                yield f"{theirs}.{kind}", (f"{ours}.{kind}", (slice(start, start + count),))
                start += count


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; computed in fp32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., size] -> the same shape and dtype."""
        # Rounded to `dtype`, None: x's, as the published weight is.
        weight = self.weight.to(dtype or x.dtype).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, weight, self.eps)

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """As one tensor."""
        yield f"{theirs}.weight", (f"{ours}.weight", ())


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [N, 2I] -> [N, I]. Of what backward needs, only gate_up is kept."""
    return _SwiGlu.apply(gate_up) if torch.is_grad_enabled() else _gated(gate_up)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        d_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return torch.cat([d_gate, F.silu(gate).mul_(grads[0])], dim=-1)


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), x [N, d] -> [N, d]."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.gate_up = Linear(hidden, 2 * inner)
        self.down = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d] -> [N, d]."""
        return self.down(swiglu(self.gate_up(x)))

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """gate_proj and up_proj are kept in one parameter."""
        rows = {f"{theirs}.gate_proj": self.inner, f"{theirs}.up_proj": self.inner}
        yield from self.gate_up.stacked(f"{ours}.gate_up", rows)
        yield from self.down.layout(f"{ours}.down", f"{theirs}.down_proj")
