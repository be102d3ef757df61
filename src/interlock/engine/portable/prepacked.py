"""Projections packed for the matrix products of a CPU, for as long as sequences run.

    W ──once──> W in the order the kernel reads it ──> x Wᵀ, step after step

With few rows, half of a product's time goes into bringing W into that order. A packed copy takes
the memory of the weights and the time of a few decoding steps; it is made when an engine begins to
decode and dropped when nothing runs or the weights change, so it is never stale and never there in
an update.
The operators are those torch's compiler uses (torch.ops.mkl, torch.ops.mkldnn); where torch or the
CPU lacks them, and on every other device, nothing is packed.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.models.decoder import Decoder
from interlock.models.layers import Linear

MOST_ROWS = 96  # of a product; from here on packing W costs little beside the product itself
LEAST_STEPS = 16  # packing takes the time that about eight steps gain

Multiply = Callable[[Tensor, Tensor | None], Tensor]


class Packed:
    """x Wᵀ + b of few rows from a packed copy of W, of more rows from W itself."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        """weight [out, in] fp32 or bf16 on a CPU. `rows`: how many are expected; any are right."""
        make = _mkl if weight.dtype == torch.float32 else _onednn
        self._multiply = make(weight, rows)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim != 2 or len(x) > MOST_ROWS:
            return F.linear(x, weight, bias)
        return self._multiply(x, bias)


class PackedProducts:
    """Packs the projections of one decoder while that pays, and lets go of the copies."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._packed = False

    def begin(self, rows: int, steps: int) -> None:
        """From now on multiply with packed weights, if `steps` steps of `rows` rows are worth it.

        The decoder's weights must not change before `end`. Does nothing when they are packed.
        """
        offered = _offered(self._decoder.head)
        if self._packed or not (offered and 1 < rows <= MOST_ROWS and steps >= LEAST_STEPS):
            return
        self._packed = True
        for each in self._linears():
            each.product = Packed(each.weight, rows)
        self._decoder.head_product = Packed(self._decoder.head, rows)

    def end(self) -> None:
        """Multiply with the weights themselves again; the copies are freed."""
        if self._packed:
            for each in self._linears():
                each.product = F.linear
            self._decoder.head_product = F.linear
        self._packed = False

    def _linears(self) -> list[Linear]:
        return [module for module in self._decoder.modules() if isinstance(module, Linear)]


def _offered(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and _works(weight.dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Tried, not read off the CPU's flags: oneDNN packs bfloat16 for some CPUs only."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    one = torch.ones(1, 1, dtype=dtype)
    try:
        return Packed(one, 1)(one, one, None).item() == 1.0
    except (AttributeError, RuntimeError):  # torch without the operator, a CPU without the kernel
        return False


def _mkl(weight: Tensor, rows: int) -> Multiply:
    copy = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    # MKL packs the same way for any number of rows, so every call may claim its own.
    return lambda x, bias: torch.ops.mkl._mkl_linear(x, copy, weight, bias, len(x))


def _onednn(weight: Tensor, rows: int) -> Multiply:
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")
