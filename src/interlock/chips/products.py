"""The ways there are to multiply by a weight: y = x Wᵀ + b, x [N, in], W [out, in], y [N, out].

    "torch"   what torch takes by itself: MKL for fp32 on x86, oneDNN for bf16, a vendor's library
    "mkl"     MKL with W packed, where an engine packs (engine/portable/prepacked.py); else "torch"
    "onednn"  oneDNN in every dtype, packed where an engine packs

Which of them is fast differs from CPU to CPU and is measured (probe.py). On other devices torch's
own is the only one. The operators are those that torch's compiler uses, torch.ops.mkl and
torch.ops.mkldnn.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips import vendors

# x [N, in], W [out, in], b [out] or None -> x Wᵀ + b
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# x [N, in], b -> x Wᵀ + b, with W in the order that the kernel reads it
PackedProduct = Callable[[Tensor, Tensor | None], Tensor]
KERNELS = ("torch", "mkl", "onednn")
_ONEDNN = (torch.float32, torch.bfloat16)


def plain(kernel: str) -> Product:
    """The product of weights as they are; with gradients where they are recorded."""
    return onednn if kernel == "onednn" else F.linear


def pack(kernel: str, weight: Tensor, rows: int) -> PackedProduct:
    """A copy of `weight` packed for products of about `rows` rows; any number is right.

    `kernel` is "mkl" or "onednn", and must be offered for the weight.
    """
    return _PACK[kernel](weight, rows)


@cache
def offered(kernel: str, dtype: torch.dtype, device: str) -> bool:
    """Whether this torch has the kernel for the CPU: tried, not read off flags.

    `device` is a kind, "cpu" or another, which has "torch" alone.
    """
    if kernel == "torch":
        return True
    if device != "cpu" or dtype not in _ONEDNN:
        return False
    one = torch.ones(1, 1, dtype=dtype)
    try:
        return pack(kernel, one, 1)(one, None).item() == plain(kernel)(one, one, None).item() == 1.0
    except (AttributeError, RuntimeError):  # torch without the operator, a CPU without the kernel
        return False


def wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in x's dtype of a narrower weight: of a vocabulary, whose logits go into exp.

    A logit of 20 in bfloat16 is off by up to 0.06, and so is its log-probability. Accelerators
    that can add up in fp32 what they multiply in the weight's dtype do so.
    """
    plain = weight.dtype == x.dtype or bias is not None or torch.is_grad_enabled()
    if not plain and vendors.of(x.device.type).wide_sums:
        return torch.mm(x.to(weight.dtype), weight.mT, out_dtype=x.dtype)
    return F.linear(x, weight.to(x.dtype), bias)


def grouped(x: Tensor, weights: Tensor, counts: Tensor, product: Product) -> Tensor:
    """Rows of x by the weight of their group: x [n, in], weights [E, out, in] -> [n, out].

    The first counts[0] rows belong to group 0, and so on; counts [E] int64 add up to n. In one
    operator where torch has it for these sizes and `product` is torch's own; else group by group
    with `product`, which is also what the operator does on a CPU, to the same bits. On other
    devices only the loop has to wait for the counts.
    """
    if _in_one(x, weights, product):
        groups = len(counts)  # cumsum, which would be plainer, is what some devices lack
        ends = counts.expand(groups, groups).tril().sum(-1).to(torch.int32)
        return F.grouped_mm(x, weights.mT, offs=ends)
    parts = zip(x.split(counts.tolist()), weights, strict=True)
    made = [product(part, weight, None) for part, weight in parts if len(part)]
    return torch.cat(made) if made else product(x, weights[0], None)


def _in_one(x: Tensor, weights: Tensor, product: Product) -> bool:
    """Whether torch has one operator for all groups; it asks for strides of whole 16 bytes.

    On a CPU its gradients in bfloat16 take half as long again as the loop's (docs/performance.md).
    """
    slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled()
    aligned = all(size * x.dtype.itemsize % 16 == 0 for size in weights.shape[1:])
    kinds = torch.float32, torch.bfloat16, torch.float16
    known = product is F.linear and hasattr(F, "grouped_mm")
    return known and aligned and not slow and x.dtype in kinds and len(x) > 0


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product, and both of its gradients, by oneDNN; torch's own of what that has not, such as
    float64."""
    if x.ndim == 2 and x.dtype in _ONEDNN:
        return _OneDnn.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), grad = ctx.saved_tensors, grads[0]
        d_x = _linear(grad, weight.mT, None) if ctx.needs_input_grad[0] else None
        d_weight = _linear(grad.mT, x.mT, None) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, grad.sum(0) if ctx.biased else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.numel():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _mkl(weight: Tensor, rows: int) -> PackedProduct:
    copy = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    # MKL packs the same way for any number of rows, so every call may claim its own.
    return lambda x, bias: torch.ops.mkl._mkl_linear(x, copy, weight, bias, len(x))


def _onednn(weight: Tensor, rows: int) -> PackedProduct:
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")


_PACK = {"mkl": _mkl, "onednn": _onednn}
