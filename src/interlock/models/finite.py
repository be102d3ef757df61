"""Whether the values of a tensor are all finite: what reads weights asks it of every one."""

import torch
from torch import Tensor


def finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """False where a value of the tensor, of any shape and float dtype but fp8, is NaN or infinite,
    or would be in `dtype`.

    NaN is the least and the largest of values that hold one, and rounding keeps their order. That
    is one pass without a copy, where `isfinite` makes a tensor or two.
    """
    if not tensor.numel():
        return True
    return all(bool(bound.to(dtype or bound.dtype).isfinite()) for bound in tensor.aminmax())
