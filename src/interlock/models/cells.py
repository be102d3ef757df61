"""Masters between the values that a narrower dtype has, from the first step on.

    w, of a checkpoint ── spread ──> w + less than half a gap ── rounded to nearest ──> w

bfloat16 has nothing between 0.1 and 0.1005. fp32 masters that begin on its values and move by 1e-5
a step round back to where they began for many steps: what is computed or saved in bfloat16 does not
learn meanwhile. Begun anywhere in the cell that rounds to w, as large a share of the weights steps
over to the next value as the move is of the cell, so that what is learned comes through on the
whole, as with stochastic rounding (arXiv 1502.02551), and nothing is drawn anew: a weight that does
not move stays where it is.
"""

from zlib import crc32

import torch
from torch import Tensor

_DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # bits of an fp32 that rounding leaves out
_FINITE = 0x7F800000
_SIZE = 0x7FFFFFFF
_CHUNK = 1 << 17  # what is computed for one stays in a core's cache


def narrowest(*dtypes: torch.dtype | None) -> torch.dtype | None:
    """The one with the widest cells, if any of them is narrower than fp32."""
    narrow = [each for each in dtypes if each is not None and each in _DROPPED]
    return max(narrow, key=lambda each: _DROPPED[each], default=None)


@torch.no_grad()
def spread(weight: Tensor, dtype: torch.dtype | None, name: str) -> None:
    """Move what `dtype` can hold exactly, in place, to anywhere in the cell that rounds to it.

    How far hangs on `name` and the place alone, the same on every device. Zeros, and values that
    are not finite or lie between those of `dtype` already, stay; with None all do.

    Args:
        weight: fp32, contiguous, of any shape.
        name: of the tensor: two of the same shape are spread differently.
    """
    if dtype is None:
        return
    assert weight.dtype == torch.float32 and weight.is_contiguous()
    half = 1 << (_DROPPED[dtype] - 1)
    flat = weight.view(-1).view(torch.int32)
    places = torch.arange(min(_CHUNK, len(flat)), dtype=torch.int32, device=weight.device)
    for start in range(0, len(flat), _CHUNK):
        bits = flat[start : start + _CHUNK]
        size = bits & _SIZE
        held = (bits & (2 * half - 1) == 0) & (size != 0) & (size < _FINITE)
        offset = _mixed(places[: len(bits)], crc32(f"{name}/{start}".encode()))
        bits += (offset & (2 * half - 1)).sub_(half).clamp_(min=1 - half).mul_(held)


def _mixed(places: Tensor, seed: int) -> Tensor:
    """int32 in which neighbours have nothing in common: xor, shift and multiply, modulo 2^32."""
    number = places ^ (seed - (1 << 31))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x045D9F3B)):
        number ^= (number >> shift) & (_SIZE >> (shift - 1))  # zeros come in, not the sign
        number *= factor
    return number ^ ((number >> 16) & 0xFFFF)
