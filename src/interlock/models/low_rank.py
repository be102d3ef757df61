"""Low-rank additions to linear maps (LoRA, arXiv 2106.09685): y + scale * (x Aᵀ) Bᵀ.

    x [N, in] ─┬─ W, frozen ─────────────────────────────> y [N, out]
               └─ A, all parts at once ─ [N, P r] ─ B of each part ─ added to its columns of y

Where a parameter holds several published modules (queries, keys and values; gate and up), each has
an A and a B of its own, as PEFT has them: the A are stacked, and a row of B belongs to the part
that its row of W belongs to. Of what backward needs, only x and x Aᵀ are kept.

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
        self, inputs: int, spans: Sequence[Span], rank: int, scale: float, experts: int | None
    ) -> None:
        """`experts`: how many have an A and a B each, [E, …]; None: there are none."""
        super().__init__()
        self.spans, self.rank, self.scale = tuple(spans), rank, scale
        lead = () if experts is None else (experts,)
        rows = sum(end - start for start, end in spans)
        self.a = nn.Parameter(torch.empty(*lead, len(spans) * rank, inputs))
        self.b = nn.Parameter(torch.empty(*lead, rows, rank))

    @torch.no_grad()
    def begin(self, noise: torch.Generator) -> None:
        """A drawn evenly from what a linear layer of its inputs begins with, B zero."""
        bound = self.a.shape[-1] ** -0.5
        self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=noise))
        self.b.zero_()

    @property
    def rows(self) -> list[slice]:
        """Of B, part by part."""
        ends = list(accumulate(end - start for start, end in self.spans))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [N, in], y [N, out], which is written to -> y and what is added to it."""
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        parts = list(zip(self.spans, self.rows, strict=True))
        if torch.is_grad_enabled():
            return _Added.apply(y, x, a, b, parts, self.scale)
        _add(y, F.linear(x, a), b, parts, self.scale)
        return y

    def routed(self, x: Tensor, y: Tensor, counts: Tensor, product: Product) -> Tensor:
        """As `forward` for experts: rows x [n, in], y [n, out], and how many each has, [E]."""
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        downs = grouped(x, a, counts, product).split(self.rank, dim=1)
        for (start, end), rows, down in zip(self.spans, self.rows, downs, strict=True):
            up = grouped(down.contiguous(), b[:, rows].contiguous(), counts, product)
            more = torch.add(y[:, start:end], up, alpha=self.scale)
            y = torch.cat([y[:, :start], more, y[:, end:]], dim=1)
        return y


def _add(
    y: Tensor, down: Tensor, b: Tensor, parts: Sequence[tuple[Span, slice]], scale: float
) -> None:
    rank = b.shape[1]
    for place, ((start, end), rows) in enumerate(parts):
        own = down[:, place * rank : (place + 1) * rank]
        y[:, start:end].addmm_(own, b[rows].mT, alpha=scale)


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        parts: Sequence[tuple[Span, slice]],
        scale: float,
    ) -> Tensor:
        down = F.linear(x, a)  # [N, P r]
        _add(y, down, b, parts, scale)
        ctx.save_for_backward(x, down, a, b)
        ctx.parts, ctx.scale = parts, scale
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, down, a, b), grad = ctx.saved_tensors, grads[0]
        rank = b.shape[1]
        d_down, d_b = torch.empty_like(down), torch.empty_like(b)
        for place, ((start, end), rows) in enumerate(ctx.parts):
            own, columns = slice(place * rank, (place + 1) * rank), grad[:, start:end]
            d_down[:, own] = columns @ b[rows]
            d_b[rows] = columns.mT @ down[:, own]
        d_down *= ctx.scale
        d_x = d_down @ a if ctx.needs_input_grad[1] else None
        return grad, d_x, d_down.mT @ x, d_b * ctx.scale, None, None
