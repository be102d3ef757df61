"""Log-probabilities in chunks of the vocabulary projection, and the per-token losses over them.

    hidden [M, d] ─ head ─> logits [chunk, V] ─> logprobs, entropy ─ policy_loss ─> loss [chunk]
                            └──────────── gradients of hidden and head, at once <──┘

Every loss here is a sum of terms that each depend on the log-probability of one token. So a chunk's
gradient is known as soon as its log-probabilities are, and `chunked_loss` takes it in the forward
pass: the projection is never computed twice and no logits outlive their chunk.

Legend: M tokens whose log-probability is needed, d hidden size, V vocabulary
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips.products import Product, wide
from interlock.config.losses import LossSettings
from interlock.errors import TrainingError
from interlock.mismatch import Mismatch

# Elements of the softmax worked on at a time on a CPU: their fp32 copies stay in its cache.
CACHED = 2**19


@dataclass(frozen=True)
class Terms:
    """What the loss of each token is made of. All [M], fp32 but for `labels`; None: absent."""

    weights: Tensor  # signed: advantage times normalisation
    sampler: Tensor | None = None  # log mu, of the policy that sampled the token
    old: Tensor | None = None  # log pi_old, before the first update; None: this is the first
    reference: Tensor | None = None  # log pi_ref
    kl_weights: Tensor | None = None  # beta times normalisation
    completion: Tensor | None = None  # `completion_ratio`, which the geometric correction needs
    labels: Tensor | None = None  # int64: whose mismatch the token's counts as

    def __getitem__(self, rows: slice) -> "Terms":
        values = (getattr(self, f.name) for f in fields(self))
        return Terms(*(None if value is None else value[rows] for value in values))  # type: ignore


@dataclass(frozen=True)
class Sums:
    """Totals over tokens, which add up over micro-batches."""

    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    mismatch: Mismatch = field(default_factory=Mismatch)  # of pi_old against mu, the sampler
    corrected: int = 0  # tokens whose factor was truncated or masked
    vetoed: int = 0  # tokens whose factor is 0 because pi_old / mu is below tis_veto
    clipped: int = 0
    kl: float = 0.0  # k3 of the learner against the reference
    by_label: dict[int, Mismatch] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        left, right = self.by_label, other.by_label
        total = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "by_label"
        }
        by_label = {n: left.get(n, Mismatch()) + right.get(n, Mismatch()) for n in left | right}
        return Sums(**total, by_label=by_label)


def k3(log_ratio: Tensor) -> Tensor:
    """x - log x - 1 with x = exp(log_ratio).

    Unbiased for KL(q || p) when log_ratio = log p - log q on samples of q, see mismatch.py; the KL
    term of GRPO (arXiv 2402.03300, eq. 4).
    """
    return torch.expm1(log_ratio) - log_ratio


def completion_ratio(old: Tensor, sampler: Tensor, lengths: Sequence[int]) -> Tensor:
    """exp of the mean of log pi_old - log mu over a completion's tokens, at each of them.

    old and sampler [T] fp32, of completions of `lengths` tokens one after another -> [T] fp32.
    Kept in units of one token, as GSPO does (arXiv 2507.18071): a product over thousands of
    tokens would leave the range of any cap.
    """
    sizes = torch.tensor(lengths)
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)  # [T]
    total = torch.zeros(len(sizes), dtype=torch.float64)
    total.index_add_(0, owner, (old - sampler).double())
    return (total / sizes).exp().float()[owner]


def policy_loss(logprobs: Tensor, terms: Terms, settings: LossSettings | None) -> Tensor:
    """The loss of each token, [M] fp32; its sum is what is minimised.

    With `settings`, the clipped surrogate of PPO (arXiv 1707.06347, eq. 7) with DAPO's two bounds
    (arXiv 2503.14476), times a constant factor f for the sampler's policy mu (`_correct`):

        -w f min(r, 1 + clip_high)    where w > 0,    r = pi / pi_old, pi / mu in "bypass"
        -w f max(r, 1 - clip_low)     where w < 0

    Without, the weighted likelihood -w log pi. Both plus kl_weights k3(log pi_ref - log pi) where
    there are any. Raises TrainingError when log-probabilities that a term needs are missing, or
    would be ignored.
    """
    if (settings is None) != (terms.sampler is None):
        have, want = ("has no", "needs") if terms.sampler is None else ("has", "does not use")
        raise TrainingError(f"the batch {have} sampler log-probabilities, which this loss {want}")
    if settings is None:
        loss = -terms.weights * logprobs
    else:
        ratio, clip = _ratio(logprobs, terms, settings), _clip(terms.weights, settings)
        loss = (
            -terms.weights
            * _correct(logprobs, terms, settings)[0]
            * torch.where(terms.weights > 0, torch.minimum(ratio, clip), torch.maximum(ratio, clip))
        )
    if terms.kl_weights is None:
        return loss
    if terms.reference is None:
        raise TrainingError("the batch has KL weights, but the learner holds no reference policy")
    return loss + terms.kl_weights * k3(terms.reference - logprobs)


def _ratio(logprobs: Tensor, terms: Terms, settings: LossSettings) -> Tensor:
    old = logprobs.detach() if terms.old is None else terms.old
    if settings.correction == "bypass":
        assert terms.sampler is not None
        old = terms.sampler
    return (logprobs - old).exp()


def _clip(weights: Tensor, settings: LossSettings) -> Tensor:
    """The bound of the ratio beyond which a token gives no gradient."""
    return torch.where(weights > 0, 1 + settings.clip_high, 1 - settings.clip_low)


def _mismatch(logprobs: Tensor, terms: Terms) -> Tensor:
    """log pi_old - log mu, with pi_old the policy before the first update in every correction."""
    assert terms.sampler is not None
    return (logprobs.detach() if terms.old is None else terms.old) - terms.sampler


def _correct(
    logprobs: Tensor, terms: Terms, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The constant factor of each token; whether it was truncated or masked; whether vetoed; [M].

    With rho = pi_old / mu of the token, settings.correction is one of:

        "truncated"  min(rho, tis_cap), 0 if rho < tis_veto. Truncated importance sampling: Yao et
                     al. 2025, "Your efficient RL framework secretly brings you off-policy RL
                     training"; the veto, of one token here: verl, docs/algo/rollout_corr_math.md
        "masked"     rho, 0 outside [mask_low, mask_high]. IcePop: Zhao et al. 2025, "Small leak
                     can sink a great ship"; Ring-1T, arXiv 2510.18855
        "geometric"  as "truncated", with `completion_ratio` capped, and each token's rho vetoed
        "bypass"     1: mu is the old policy, and one clipped ratio carries staleness and mismatch;
                     verl, the same page
        "off"        1
    """
    rho = _mismatch(logprobs, terms).exp()
    none = torch.zeros_like(rho, dtype=torch.bool)
    match settings.correction:
        case "bypass" | "off":
            return torch.ones_like(rho), none, none
        case "masked":
            outside = (rho < settings.mask_low) | (rho > settings.mask_high)
            return torch.where(outside, 0.0, rho), outside, none
        case "truncated":
            ratio = rho
        case "geometric":
            assert terms.completion is not None
            ratio = terms.completion
    vetoed = rho < settings.tis_veto
    factor = torch.where(vetoed, 0.0, ratio.clamp(max=settings.tis_cap))
    return factor, (ratio > settings.tis_cap) & ~vetoed, vetoed


@torch.no_grad()
def sums(logprobs: Tensor, entropy: Tensor, terms: Terms, settings: LossSettings | None) -> Sums:
    """The statistics of one micro-batch; logprobs and entropy are [M]."""
    loss = policy_loss(logprobs, terms, settings)
    values: dict[str, Any] = {"loss": loss.double().sum(), "entropy": entropy.double().sum()}
    by_label: dict[int, Mismatch] = {}
    if terms.reference is not None:
        values["kl"] = k3(terms.reference - logprobs).double().sum()
    if settings is not None:
        ratio, clip = _ratio(logprobs, terms, settings), _clip(terms.weights, settings)
        beyond = torch.where(terms.weights > 0, ratio > clip, ratio < clip)
        _, corrected, vetoed = _correct(logprobs, terms, settings)
        values["corrected"] = corrected.sum()
        values["vetoed"] = vetoed.sum()
        values["clipped"] = (beyond & (terms.weights != 0)).sum()
        by_label = mismatches(_mismatch(logprobs, terms), terms.labels)
    found = {name: value.item() for name, value in values.items()}
    total = sum(by_label.values(), Mismatch())
    kept = {} if terms.labels is None else by_label
    return Sums(tokens=len(logprobs), **found, mismatch=total, by_label=kept)


def mismatches(log_ratio: Tensor, labels: Tensor | None = None) -> dict[int, Mismatch]:
    """What mismatch.mismatch gives, of the tokens of each label that has any.

    log_ratio [M]: log pi - log mu; labels [M] int64, None: all have label 0.
    """
    if labels is None:
        labels = torch.zeros_like(log_ratio, dtype=torch.int64)
    count = int(labels.max()) + 1
    apart = log_ratio.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    nats = k3(apart).nan_to_num(nan=math.inf, posinf=math.inf)  # inf - inf
    parts = [torch.ones_like(apart), nats, (apart.exp() > 2).float()]
    table = apart.new_zeros((count, 3), dtype=torch.float64)
    table.index_add_(0, labels, torch.stack(parts, dim=1).double())
    largest = apart.new_zeros(count).scatter_reduce_(0, labels, apart.abs(), "amax")
    rows = zip(table.tolist(), largest.tolist(), strict=True)
    return {
        label: Mismatch(int(tokens), total / tokens, top, above_two / tokens)
        for label, ((tokens, total, above_two), top) in enumerate(rows)
        if tokens
    }


def chunked_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    loss_of: Callable[[Tensor, slice], Tensor],
    dtype: torch.dtype | None = None,
    product: Product = F.linear,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses of M tokens, never holding logits of more than `chunk` of them.

    hidden [M, d], head [V, d], targets [M] int64. The head is rounded to `dtype` (None: hidden's);
    logits are of hidden's, and what goes back is multiplied in `dtype`. `loss_of` maps the
    log-probabilities [m] of a slice of the M rows to their losses [m], each of which depends on its
    own log-probability alone.
    -> loss [] fp32, with the gradients of hidden and head; logprobs [M] and entropy [M], fp32
    without gradients, both of softmax(logits / temperature).
    """
    rest = (targets, temperature, chunk, loss_of, dtype or hidden.dtype, product)
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
) -> tuple[Tensor, Tensor]:
    """logprobs [M] and entropy [M] as of `chunked_loss`, without gradients."""
    weight = head.to(dtype or hidden.dtype)
    logprobs, entropy = hidden.new_empty((2, len(targets)), dtype=torch.float32)
    for rows in slices(len(targets), chunk):
        logits = project(hidden[rows], weight, product)  # [m, V]
        logprobs[rows], entropy[rows] = _to_probabilities(logits, targets[rows], temperature)
    return logprobs, entropy


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = head.to(dtype)
        logprobs, entropy = hidden.new_empty((2, len(targets)), dtype=torch.float32)
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros_like(head, dtype=torch.float32)
        for rows in slices(len(targets), chunk):
            logits = project(hidden[rows], weight, product)  # [m, V]
            logprobs[rows], entropy[rows] = _to_probabilities(logits, targets[rows], temperature)
            part, slope = _value_and_slope(loss_of, logprobs[rows], rows)
            loss += part
            # d logprob / d logits = (onehot(target) - p) / temperature. At the target, 1 - p is
            # taken in fp32: of a sure token, p alone would round to 1 in the compute dtype.
            slope /= temperature
            logits *= -slope[:, None].to(logits.dtype)
            at_target = -slope * torch.expm1(logprobs[rows])
            logits.scatter_(1, targets[rows, None], at_target[:, None].to(logits.dtype))
            logits = logits.to(dtype)
            d_hidden[rows] = product(logits, weight.mT, None)
            add_product(d_head, logits.mT, hidden[rows].to(dtype))
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(logprobs, entropy)
        return loss, logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        scale = grads[0]
        d_head = d_head.mul_(scale).to(ctx.head_dtype)  # in place: it is as large as the head
        return (d_hidden * scale).to(d_hidden.dtype), d_head, *[None] * 6


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a copy of the product where the dtypes allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def slices(length: int, chunk: int) -> list[slice]:
    """Those of `chunk` rows that are `length` rows together."""
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _to_probabilities(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Overwrite logits [m, V] with softmax(logits / temperature).

    -> logprobs of the targets [m], entropy [m], fp32
    """
    logprobs, entropy = logits.new_empty((2, len(targets)), dtype=torch.float32)
    on_cpu = logits.device.type == "cpu"
    block_rows = max(1, CACHED // logits.shape[1]) if on_cpu else len(targets)
    for rows in slices(len(targets), block_rows):
        block = logits[rows] if temperature == 1 else logits[rows].float() / temperature
        log_p = F.log_softmax(block, dim=-1, dtype=torch.float32)
        logprobs[rows] = log_p.gather(1, targets[rows, None])[:, 0]
        p = log_p.exp()
        logits[rows] = p
        entropy[rows] = -p.mul_(log_p).sum(-1)
    return logprobs, entropy


def _value_and_slope(
    loss_of: Callable[[Tensor, slice], Tensor], logprobs: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of one chunk, and its derivative by each log-probability [m]."""
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        loss = loss_of(leaf, rows).sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope
