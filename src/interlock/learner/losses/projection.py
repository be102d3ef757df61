"""Log-probabilities in chunks of the vocabulary projection, and the gradients of a loss over them.

    hidden [M, d] ─ head ─> logits [chunk, V] ─> logprobs, entropy ─ loss_of ─> loss [chunk]
                            └──────────── gradients of hidden and head, at once <──┘

Every loss here is a sum of terms that each depend on the log-probability of one token. So a chunk's
gradient is known as soon as its log-probabilities are, and `chunked_loss` takes it in the forward
pass: the projection is never computed twice and no logits outlive their chunk.

Where a token was drawn from a kept set, its log-probability is over that (kept.py); the entropy is
always of the whole vocabulary.

Legend: M tokens whose log-probability is needed, d hidden size, V vocabulary
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips.products import Product, wide
from interlock.learner.losses.kept import KeptSets, narrowed

# Elements of the softmax worked on at a time on a CPU: their fp32 copies stay in its cache.
CACHED = 2**19


def chunked_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    loss_of: Callable[[Tensor, slice], Tensor],
    dtype: torch.dtype | None = None,
    product: Product = F.linear,
    kept: KeptSets | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the losses of M tokens, never holding logits of more than `chunk` of them.

    hidden [M, d], head [V, d], targets [M] int64. The head is rounded to `dtype` (None: hidden's);
    logits are of hidden's, and what goes back is multiplied in `dtype`. `loss_of` maps the
    log-probabilities [m] of a slice of the M rows to their losses [m], each of which depends on its
    own log-probability alone.
    -> loss [] fp32, with the gradients of hidden and head; logprobs [M], entropy [M] and mass [M],
    fp32 without gradients: of softmax(logits / temperature), logprobs over the token's `kept` set,
    and the log of what the whole softmax gives that set.
    """
    rest = (targets, temperature, chunk, loss_of, dtype or hidden.dtype, product, kept)
    return _ChunkedLoss.apply(hidden, head, *rest)


@torch.no_grad()
def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    dtype: torch.dtype | None = None,
    product: Product = F.linear,
    kept: KeptSets | None = None,
) -> tuple[Tensor, Tensor]:
    """logprobs [M] and entropy [M] as of `chunked_loss`, without gradients."""
    weight = head.to(dtype or hidden.dtype)
    columns = hidden.new_empty((3, len(targets)), dtype=torch.float32)
    for rows, sets in _with_sets(len(targets), chunk, kept):
        logits = project(hidden[rows], weight, product)  # [m, V]
        columns[:, rows] = _to_probabilities(logits, targets[rows], temperature, sets)
    return columns[0], columns[1]


def project(hidden: Tensor, weight: Tensor, product: Product) -> Tensor:
    """hidden [m, d], weight [V, d] -> logits [m, V] in hidden's dtype."""
    return (product if weight.dtype == hidden.dtype else wide)(hidden, weight, None)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        loss_of: Callable[[Tensor, slice], Tensor],
        dtype: torch.dtype,
        product: Product,
        kept: KeptSets | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight = head.to(dtype)
        columns = hidden.new_empty((3, len(targets)), dtype=torch.float32)
        logprobs = columns[0]
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden)
        learned = ctx.needs_input_grad[1]
        d_head = torch.zeros_like(head, dtype=torch.float32) if learned else None
        for rows, sets in _with_sets(len(targets), chunk, kept):
            logits = project(hidden[rows], weight, product)  # [m, V]
            columns[:, rows] = _to_probabilities(logits, targets[rows], temperature, sets)
            part, slope = _value_and_slope(loss_of, logprobs[rows], rows)
            loss += part
            # d logprob / d logits = (onehot(target) - p) / temperature, p over the kept set. At the
            # target, 1 - p is taken in fp32: of a sure token, p would round to 1 in the dtype.
            slope /= temperature
            logits *= -slope[:, None].to(logits.dtype)
            at_target = -slope * torch.expm1(logprobs[rows])
            logits.scatter_(1, targets[rows, None], at_target[:, None].to(logits.dtype))
            logits = logits.to(dtype)
            d_hidden[rows] = product(logits, weight.mT, None)
            if d_head is not None:
                add_product(d_head, logits.mT, hidden[rows].to(dtype))
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        logprobs, entropy, mass = columns.unbind()
        ctx.mark_non_differentiable(logprobs, entropy, mass)
        return loss, logprobs, entropy, mass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *kept_gradients(ctx, grads[0]), *[None] * 7


def kept_gradients(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Those of hidden and head that a forward pass has taken, times `scale`, that of its loss.

    None: the head is not learned.
    """
    d_hidden, d_head = ctx.saved_tensors
    if d_head is not None:
        d_head = d_head.mul_(scale).to(ctx.head_dtype)  # in place: it is as large as the head
    return (d_hidden * scale).to(d_hidden.dtype), d_head


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a copy of the product where the dtypes allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def slices(length: int, chunk: int) -> list[slice]:
    """Those of `chunk` rows that are `length` rows together."""
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _with_sets(
    length: int, chunk: int, kept: KeptSets | None
) -> Iterator[tuple[slice, KeptSets | None]]:
    """Slices of `chunk` rows, each with the sets of its rows."""
    rows = slices(length, chunk)
    return zip(rows, [None] * len(rows) if kept is None else kept.slices(rows), strict=True)


def _to_probabilities(
    logits: Tensor, targets: Tensor, temperature: float, kept: KeptSets | None
) -> Tensor:
    """Overwrite logits [m, V] with softmax(logits / temperature) over each row's kept set.

    -> [3, m] fp32: logprobs of the targets, entropy, log of the kept mass
    """
    columns = logits.new_zeros((3, len(targets)), dtype=torch.float32)
    on_cpu = logits.device.type == "cpu"
    block_rows = max(1, CACHED // logits.shape[1]) if on_cpu else len(targets)
    for rows, sets in _with_sets(len(targets), block_rows, kept):
        block = logits[rows] if temperature == 1 else logits[rows].float() / temperature
        log_p = F.log_softmax(block, dim=-1, dtype=torch.float32)
        columns[0, rows] = log_p.gather(1, targets[rows, None])[:, 0]
        p = log_p.exp()
        logits[rows] = p
        if sets is not None and (narrow := narrowed(log_p, sets)) is not None:
            narrow.confine(logits[rows])
            columns[0, rows] -= narrow.mass
            columns[2, rows] = narrow.mass
        columns[1, rows] = -p.mul_(log_p).sum(-1)
    return columns


def _value_and_slope(
    loss_of: Callable[[Tensor, slice], Tensor], logprobs: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of one chunk, and its derivative by each log-probability [m]."""
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        loss = loss_of(leaf, rows).sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope
