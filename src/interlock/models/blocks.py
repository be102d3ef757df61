"""Weights stored as fp8, with one scale for every block of them: how DeepSeek publishes V3 and R1.

    NAME.weight            F8_E4M3  [R, C]
    NAME.weight_scale_inv  F32      [ceil(R / r), ceil(C / c)]     config.json: weight_block_size
                                                                   [r, c]; published: [128, 128]
    the weight at (i, j) is stored[i, j] * scale_inv[i // r, j // c]

Despite its name the scale is multiplied by. Blocks at the lower and the right edge may be cut off.
A file may mix: what has no scale is stored as it is (norms, router, embedding, head).

Legend: R, C rows and columns of a weight, r, c those of a block
"""

from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from interlock.models.finite import finite

STORED = "F8_E4M3"  # as a safetensors header names it
_SCALES = ("BF16", "F16", "F32")
_SUFFIX = "_scale_inv"
_Edge = Annotated[int, Meta(gt=0, le=2**24)]


class ScaledBlocks(msgspec.Struct, frozen=True):
    """`quantization_config` of a config.json. Keys not here say how activations are rounded while
    products run in fp8, and which weights are not fp8, which the files say themselves."""

    quant_method: Literal["fp8"]
    weight_block_size: tuple[_Edge, _Edge]  # rows, columns
    fmt: Literal["e4m3"] = "e4m3"

    def grid(self, shape: list[int]) -> list[int]:
        """Of the scales of a weight of this shape."""
        return [-(-size // edge) for size, edge in zip(shape, self.weight_block_size, strict=True)]


def read_blocks(config: dict[str, Any]) -> ScaledBlocks | None:
    """How the weights beside a config.json are stored; None: as they are.

    Raises msgspec.ValidationError for a quantisation that is not this one.
    """
    given = config.get("quantization_config")
    return None if given is None else msgspec.convert(given, ScaledBlocks)


def scale_of(name: str) -> str:
    """The name of a tensor's scales."""
    return name + _SUFFIX


def owner_of(name: str) -> str | None:
    """The tensor whose scales are so named; None: it has no such name."""
    return name.removesuffix(_SUFFIX) if name.endswith(f".weight{_SUFFIX}") else None


def problem(blocks: ScaledBlocks | None, shape: list[int], scale: Any) -> str | None:
    """What is wrong with a weight that is stored in fp8, if anything.

    `scale`: the safetensors slice of its scales, of which headers are read; None: there are none.
    """
    if blocks is None:
        return f"is stored as {STORED}, and config.json has no quantization_config that says how"
    if scale is None:
        return f"is stored as {STORED} and has no scales ({scale_of('….weight')})"
    if len(shape) != 2:
        return f"is stored as {STORED} and is no matrix"
    grid, edges = blocks.grid(shape), list(blocks.weight_block_size)
    if scale.get_shape() != grid:
        return (
            f"has scales of shape {scale.get_shape()}, where blocks of {edges} (weight_block_size) "
            f"ask for {grid}"
        )
    if scale.get_dtype() not in _SCALES:
        return f"has scales stored as {scale.get_dtype()}, and only {', '.join(_SCALES)} are read"
    return None


@torch.no_grad()
def dequantise(stored: Tensor, scale: Tensor, blocks: ScaledBlocks, out: Tensor) -> bool:
    """Write the weight [R, C] into `out`, of any float dtype, a row of blocks at a time.

    False, and it is not written to its end, where the weight is not finite in out's dtype.

    stored [R, C] float8_e4m3fn, scale [ceil(R/r), ceil(C/c)]. Products are rounded once, in fp32,
    and then to out's dtype; besides `out` there is memory for a row of blocks only.
    """
    rows, columns = blocks.weight_block_size
    for first, factors in zip(range(0, len(stored), rows), scale.float(), strict=True):
        part = stored[first : first + rows].to(torch.float32)
        part *= factors.repeat_interleave(columns)[: stored.shape[1]]
        if not finite(part, out.dtype):
            return False
        out[first : first + rows].copy_(part)
    return True
