"""Low-rank additions to linear maps (LoRA, arXiv 2106.09685): y + scale * (x Aᵀ) Bᵀ.

    x [N, in] ─┬─ W, frozen ─────────────────────────────> y [N, out]
               └─ A, all parts at once ─ [N, P r] ─ B, all parts at once ─ added to y

Where a parameter holds several published modules (queries, keys and values; gate and up), each has
an A and a B of its own, as PEFT has them: the A are stacked, and a row of B belongs to the part
that its row of W belongs to. Products take the B as the blocks of one matrix, zero elsewhere: one
product of more columns is faster than one of each part. Of what backward needs, only x, x Aᵀ, A and
the blocks are kept.

Legend: N tokens, n rows sorted by expert, P parts, r rank, E experts
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlock.chips.products import Product, grouped

Span = tuple[int, int]  # rows of W, and columns of y, from which to which


class LowRank(nn.Module):
    """Of one Linear: A [P r, in], B [rows of all parts, r], cast to x's dtype at their use."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spans: Sequence[Span],
        rank: int,
        scale: float,
        experts: int | None,
    ) -> None:
        """`experts`: how many have an A and a B each, [E, …]; None: there are none."""
        super().__init__()
        self.outputs = outputs
        self.spans, self.rank, self.scale = tuple(spans), rank, scale
        lead = () if experts is None else (experts,)
        rows = sum(end - start for start, end in spans)
        self.a = nn.Parameter(torch.empty(*lead, len(spans) * rank, inputs))
        self.b = nn.Parameter(torch.empty(*lead, rows, rank))
        self._kept: Tensor | None = None  # blocks, as long as B stays

    @torch.no_grad()
    def begin(self, noise: torch.Generator) -> None:
        """A drawn evenly from what a linear layer of its inputs begins with, B zero."""
        bound = self.a.shape[-1] ** -0.5
        self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=noise))
        self.b.zero_()
        self._kept = None

    @torch.no_grad()
    def keep(self) -> None:
        """B has the values that are read from now on, up to the next pass with gradients."""
        if self.b.ndim == 2:
            blocks = self._blocks(self.b.dtype)
            # In place: a recorded step reads what it once read.
            self._kept = blocks if self._kept is None else self._kept.copy_(blocks)

    @property
    def rows(self) -> list[slice]:
        """Of B, part by part."""
        ends = list(accumulate(end - start for start, end in self.spans))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [N, in], y [N, out], which is written to -> y and what is added to it."""
        a = self.a.to(x.dtype)
        if torch.is_grad_enabled():
            self._kept = None  # an update follows
            return _Added.apply(y, x, a, self._blocks(x.dtype), self.scale)
        blocks = self._blocks(x.dtype) if self._kept is None else self._kept.to(x.dtype)
        return y.addmm_(F.linear(x, a), blocks.mT, alpha=self.scale)

    def _blocks(self, dtype: torch.dtype) -> Tensor:
        """The B of all parts, [out, P r]: of the rows of a part, its r columns."""
        b = self.b.to(dtype)
        blocks = b.new_zeros(self.outputs, len(self.spans) * self.rank)
        for place, ((start, end), rows) in enumerate(zip(self.spans, self.rows, strict=True)):
            blocks[start:end, place * self.rank : (place + 1) * self.rank] = b[rows]
        return blocks

    def routed(self, x: Tensor, y: Tensor, counts: Tensor, product: Product) -> Tensor:
        """As `forward` for experts: rows x [n, in], y [n, out], and how many each has, [E]."""
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        downs = grouped(x, a, counts, product).split(self.rank, dim=1)
        for (start, end), rows, down in zip(self.spans, self.rows, downs, strict=True):
            up = grouped(down.contiguous(), b[:, rows].contiguous(), counts, product)
            more = torch.add(y[:, start:end], up, alpha=self.scale)
            y = torch.cat([y[:, :start], more, y[:, end:]], dim=1)
        return y


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, blocks: Tensor, scale: float) -> Tensor:
        down = F.linear(x, a)  # [N, P r]
        ctx.save_for_backward(x, down, a, blocks)
        ctx.scale = scale
        ctx.mark_dirty(y)
        return y.addmm_(down, blocks.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, down, a, blocks), grad = ctx.saved_tensors, grads[0]
        d_down = (grad @ blocks).mul_(ctx.scale)
        d_x = d_down @ a if ctx.needs_input_grad[1] else None
        d_blocks = (down.mT @ grad).mul_(ctx.scale).mT
        return grad, d_x, d_down.mT @ x, d_blocks, None
