"""Whether the values of a tensor are all finite: what reads weights asks it of every one."""

from torch import Tensor


def finite(tensor: Tensor) -> bool:
    """False where a value of the tensor, of any shape and float dtype but fp8, is NaN or infinite.

    NaN is the least and the largest of values that hold one. That is one pass without a copy, where
    `isfinite` makes a tensor or two.
    """
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in tensor.aminmax())
