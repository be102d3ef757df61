"""Mixture of experts: a token passes the few of many that a gate chooses, and the shared one.

    x [N, d] ─ Router ─> choice, weights [N, k]
             ─ k rows per token, sorted by expert ─ each expert on its rows ─ rows back in order
             ─ weighted sum over k ─ + shared(x) ─> [N, d]

The gate and the weighted sum run in fp32. Rows move only by permutations, so no device ever adds to
one place in an order left to chance: the same input gives the same bits and the same gradients.

Balancing (DeepSeek-V3, arXiv 2412.19437, section 2.1.2): the layer counts how often each expert was
chosen, and `balance` moves a bias that joins the choice but not the weights. The bias is no part of
the loss and has no gradient.

A choice may be given: the experts that another engine's router took (records/replay.py). Weights
are always of this router's own scores, so its gradient flows as ever; -1 leaves a token its own.

Legend: N tokens, d hidden size, E experts, k experts per token, G groups of experts, I inner size
        of an expert
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlock.chips.products import Product, grouped
from interlock.models.architecture import Routing
from interlock.models.layers import LayoutEntry, Mlp, swiglu
from interlock.models.low_rank import LowRank


class Router(nn.Module):
    """Which experts each token passes, and with what weights."""

    def __init__(self, hidden: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.weight = nn.Parameter(torch.empty(routing.experts, hidden))
        # fp32 whatever the dtype of the rest: bf16 would swallow the small steps of `balance`.
        self.correction = (
            nn.Parameter(torch.empty(routing.experts, dtype=torch.float32), requires_grad=False)
            if routing.corrected
            else None
        )

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [N, d], given [N, k] -> choice [N, k] int64, weights [N, k] fp32."""
        routing = self.routing
        logits = F.linear(x.float(), self.weight.to(x.dtype).float())  # [N, E]
        scores = logits.softmax(-1) if routing.gate == "softmax" else logits.sigmoid()
        choice = self._choose(scores.detach())
        if given is not None:
            choice = torch.where(given < 0, choice, given.to(choice.dtype))
        weights = scores.gather(1, choice)
        if routing.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return choice, weights * routing.scale

    def _choose(self, scores: Tensor) -> Tensor:
        """scores [N, E] -> the k best experts [N, k], all from the best groups."""
        routing = self.routing
        if self.correction is not None:
            scores = scores + self.correction
        if routing.kept_groups < routing.groups:
            grouped = scores.unflatten(1, (routing.groups, -1))  # [N, G, E/G]
            worth = grouped.topk(routing.group_top, dim=-1).values.sum(-1)  # [N, G]
            kept = worth.topk(routing.kept_groups, dim=-1).indices
            closed = torch.ones_like(worth, dtype=torch.bool).scatter(1, kept, False)
            scores = grouped.masked_fill(closed[..., None], -torch.inf).flatten(1)
        return scores.topk(routing.per_token, dim=-1).indices

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """The gate, and the bias of the choice where there is one."""
        yield f"{theirs}.weight", (f"{ours}.weight", ())
        if self.correction is not None:
            yield f"{theirs}.e_score_correction_bias", (f"{ours}.correction", ())


class Experts(nn.Module):
    """The sparse layer's place of an Mlp: x [N, d] -> [N, d]."""

    def __init__(self, hidden: int, routing: Routing) -> None:
        super().__init__()
        self.router = Router(hidden, routing)
        count, inner = routing.experts, routing.inner
        self.gate_up = nn.Parameter(torch.empty(count, 2 * inner, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, inner))
        self.shared = Mlp(hidden, routing.shared_inner) if routing.shared_inner else None
        self.product: Product = F.linear  # see Decoder.use
        self.gate_up_adapter: LowRank | None = None  # adapters.py
        self.down_adapter: LowRank | None = None
        self.routed: Tensor | None = None  # [E] tokens per expert in the last forward pass
        self.choice: Tensor | None = None  # [N, k] of the last forward pass
        self.load: Tensor | None = None  # [E] the same, summed since the last `balance`

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """x [N, d], given [N, k] -> [N, d]; also sets `routed` and `choice`."""
        choice, weights = self.router(x, given)
        self.choice = choice
        count, per_token = len(self.gate_up), choice.shape[1]
        order = choice.flatten().argsort(stable=True)  # [N k]
        self.routed = choice.flatten().bincount(minlength=count)
        rows = x.repeat_interleave(per_token, dim=0).index_select(0, order)  # [N k, d]
        inner = self._each(rows, self.gate_up, self.gate_up_adapter)  # [N k, 2I]
        out = self._each(swiglu(inner), self.down, self.down_adapter)
        out = out.index_select(0, order.argsort()).unflatten(0, (-1, per_token))  # [N, k, d]
        mixed = (out * weights[..., None]).sum(1).to(x.dtype)
        return mixed if self.shared is None else mixed + self.shared(x)

    def _each(self, rows: Tensor, weights: Tensor, adapter: LowRank | None) -> Tensor:
        """Rows [N k, in], sorted, by the weights [E, out, in] of the expert that each goes to."""
        assert self.routed is not None
        y = grouped(rows, weights.to(rows.dtype), self.routed, self.product)
        return y if adapter is None else adapter.routed(rows, y, self.routed, self.product)

    def count(self) -> None:
        """Add the last forward pass to the load. Not in `forward`, which checkpointing repeats."""
        assert self.routed is not None
        self.load = self.routed.clone() if self.load is None else self.load.add_(self.routed)

    @torch.no_grad()
    def balance(self, speed: float) -> None:
        """Move the bias of each expert by `speed`, up if its load is below the mean, else down."""
        assert self.router.correction is not None and self.load is not None
        load = self.load.float()
        self.router.correction.add_(torch.sign(load.mean() - load), alpha=speed)
        self.load = None

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """All experts are kept in two parameters; in a checkpoint each has tensors of its own."""
        inner = self.down.shape[2]
        yield from self.router.layout(f"{ours}.router", f"{theirs}.gate")
        for expert in range(len(self.down)):
            name = f"{theirs}.experts.{expert}"
            yield f"{name}.gate_proj.weight", (f"{ours}.gate_up", (expert, slice(0, inner)))
            yield f"{name}.up_proj.weight", (f"{ours}.gate_up", (expert, slice(inner, 2 * inner)))
            yield f"{name}.down_proj.weight", (f"{ours}.down", (expert,))
        if self.shared is not None:
            yield from self.shared.layout(f"{ours}.shared", f"{theirs}.shared_experts")
