"""Projections packed for the matrix products of a CPU, for as long as sequences run.

    W ──once──> W in the order the kernel reads it ──> x Wᵀ, step after step

With few rows, half of a product's time goes into bringing W into that order, with the 256 of a
part of a prompt still a sixth. A packed copy takes the memory of the weights and the time of a few
decoding steps; it is made when an engine begins to decode and dropped when nothing runs or the
weights change, so it is never stale and never there in an update. Of a vocabulary narrower than its
logits, a wide copy is kept as long. What an adapter adds is multiplied beside it, as the learner
does: W with B A added and rounded to bfloat16 is further from that (docs/lora.md).
What a kernel packs, and whether there is one, says chips/products.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips.products import Product, offered, pack, wide
from interlock.models.decoder import Decoder
from interlock.models.layers import Linear

MOST_ROWS = 512  # of a product; from here on packing W costs little beside the product itself
LEAST_STEPS = 16  # packing takes the time that about eight steps gain


class Packed:
    """x Wᵀ + b of few rows from a packed copy of W, of more rows from W itself."""

    def __init__(self, kernel: str, weight: Tensor, rows: int, otherwise: Product) -> None:
        """weight [out, in] fp32 or bf16 on a CPU. `rows`: how many are expected; any are right."""
        self._multiply = pack(kernel, weight, rows)
        self._otherwise = otherwise

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim != 2 or len(x) > MOST_ROWS:
            return self._otherwise(x, weight, bias)
        return self._multiply(x, bias)


class PackedProducts:
    """Packs the projections of one decoder while that pays, and lets go of the copies."""

    def __init__(self, decoder: Decoder, kernel: str) -> None:
        """`kernel`: what the decoder uses without them, too."""
        self._decoder, self._kernel = decoder, kernel
        self._packed = self._widened = False  # the projections; the vocabulary

    def begin(self, rows: int, steps: int) -> None:
        """From now on multiply with packed weights, if `steps` steps of `rows` rows are worth it.

        The decoder's weights must not change before `end`. Does nothing when they are packed; who
        was alone, which packing gains nothing, may get company.
        """
        if steps < LEAST_STEPS:
            return
        wide_dtype = torch.promote_types(self._decoder.dtype, torch.float32)
        if 1 < rows <= MOST_ROWS and not self._packed:
            self._packed = True
            for each in self._linears() if self._packs(self._decoder.dtype) else ():
                each.lent = Packed(self._kernel, each.weight, rows, each.product)
            if self._packs(wide_dtype):
                self._widened = True
                head = self._decoder.head.to(wide_dtype)
                self._decoder.head_product = Packed(self._kernel, head, rows, wide)
        if not self._widened and wide_dtype != self._decoder.head.dtype:
            self._widened = True
            head = self._decoder.head.to(wide_dtype)
            self._decoder.head_product = lambda x, _, bias: F.linear(x, head, bias)

    def end(self) -> None:
        """Multiply with the weights themselves again; the copies are freed."""
        if self._packed or self._widened:
            for each in self._linears():
                each.lent = None
            self._decoder.head_product = wide
        self._packed = self._widened = False

    def _packs(self, dtype: torch.dtype) -> bool:
        place = self._decoder.embed.device.type
        return self._kernel != "torch" and offered(self._kernel, dtype, place)

    def _linears(self) -> list[Linear]:
        return [module for module in self._decoder.modules() if isinstance(module, Linear)]
