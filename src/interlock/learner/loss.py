"""Log-probabilities in chunks of the vocabulary projection, and the per-token losses over them.

    hidden [M, d] ─ head ─> logits [chunk, V] ─> logprobs, entropy ─ policy_loss ─> loss [chunk]
                            └──────────── gradients of hidden and head, at once <──┘

Every loss here is a sum of terms that each depend on the log-probability of one token. So a chunk's
gradient is known as soon as its log-probabilities are, and `chunked_loss` takes it in the forward
pass: the projection is never computed twice and no logits outlive their chunk.

Legend: M tokens whose log-probability is needed, d hidden size, V vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.config import Loss
from interlock.errors import TrainingError

# Elements of the softmax worked on at a time on a CPU: their fp32 copies stay in its cache.
_CACHED = 2**19


@dataclass(frozen=True)
class Terms:
    """What the loss of each token is made of. All [M] fp32; None: absent for every token."""

    weights: Tensor  # signed: advantage times normalisation
    sampler: Tensor | None = None  # log mu, of the policy that sampled the token
    old: Tensor | None = None  # log pi_old, before the first update; None: this is the first
    reference: Tensor | None = None  # log pi_ref
    kl_weights: Tensor | None = None  # beta times normalisation

    def __getitem__(self, rows: slice) -> "Terms":
        values = (getattr(self, field.name) for field in fields(self))
        return Terms(*(None if value is None else value[rows] for value in values))  # type: ignore


@dataclass(frozen=True)
class Sums:
    """Totals over tokens, which add up over micro-batches."""

    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    mismatch: float = 0.0  # k3 of the learner against the sampler
    mismatch_max: float = 0.0  # largest |log pi_old - log mu|; a maximum, not a sum
    above_two: int = 0  # tokens with pi_old / mu > 2
    vetoed: int = 0
    clipped: int = 0
    kl: float = 0.0  # k3 of the learner against the reference

    def __add__(self, other: "Sums") -> "Sums":
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        total["mismatch_max"] = max(self.mismatch_max, other.mismatch_max)
        return Sums(**total)


def k3(log_ratio: Tensor) -> Tensor:
    """x - log x - 1 with x = exp(log_ratio).

    Unbiased for KL(q || p) when log_ratio = log p - log q on samples of q: Schulman, "Approximating
    KL divergence" (2020); the KL term of GRPO (arXiv 2402.03300, eq. 4).
    """
    return torch.expm1(log_ratio) - log_ratio


def policy_loss(logprobs: Tensor, terms: Terms, settings: Loss | None) -> Tensor:
    """The loss of each token, [M] fp32; its sum is what is minimised.

    With `settings`, the clipped surrogate of PPO (arXiv 1707.06347, eq. 7) with DAPO's two bounds
    (arXiv 2503.14476), times truncated importance sampling of the sampler's policy mu (Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training"):

        -w min(rho, cap) min(r, 1 + clip_high)    where w > 0,    r = pi / pi_old
        -w min(rho, cap) max(r, 1 - clip_low)     where w < 0,    rho = pi_old / mu, 0 if < tis_veto

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
        ratio, clip = _ratio(logprobs, terms), _clip(terms.weights, settings)
        loss = (
            -terms.weights
            * _truncation(logprobs, terms, settings)
            * torch.where(terms.weights > 0, torch.minimum(ratio, clip), torch.maximum(ratio, clip))
        )
    if terms.kl_weights is None:
        return loss
    if terms.reference is None:
        raise TrainingError("the batch has KL weights, but the learner holds no reference policy")
    return loss + terms.kl_weights * k3(terms.reference - logprobs)


def _ratio(logprobs: Tensor, terms: Terms) -> Tensor:
    old = logprobs.detach() if terms.old is None else terms.old
    return (logprobs - old).exp()


def _clip(weights: Tensor, settings: Loss) -> Tensor:
    """The bound of the ratio beyond which a token gives no gradient."""
    return torch.where(weights > 0, 1 + settings.clip_high, 1 - settings.clip_low)


def _mismatch(logprobs: Tensor, terms: Terms) -> Tensor:
    """log pi_old - log mu."""
    assert terms.sampler is not None
    return (logprobs.detach() if terms.old is None else terms.old) - terms.sampler


def _truncation(logprobs: Tensor, terms: Terms, settings: Loss) -> Tensor:
    rho = _mismatch(logprobs, terms).exp()
    return torch.where(rho < settings.tis_veto, 0.0, rho.clamp(max=settings.tis_cap))


@torch.no_grad()
def sums(logprobs: Tensor, entropy: Tensor, terms: Terms, settings: Loss | None) -> Sums:
    """The statistics of one micro-batch; logprobs and entropy are [M]."""
    loss = policy_loss(logprobs, terms, settings)
    values: dict[str, Any] = {"loss": loss.double().sum(), "entropy": entropy.double().sum()}
    if terms.reference is not None:
        values["kl"] = k3(terms.reference - logprobs).double().sum()
    if settings is not None:
        mismatch = _mismatch(logprobs, terms)
        ratio, clip = _ratio(logprobs, terms), _clip(terms.weights, settings)
        beyond = torch.where(terms.weights > 0, ratio > clip, ratio < clip)
        values["mismatch"] = k3(mismatch).double().sum()
        values["mismatch_max"] = mismatch.abs().max()
        values["above_two"] = (mismatch.exp() > 2).sum()
        values["vetoed"] = (mismatch.exp() < settings.tis_veto).sum()
        values["clipped"] = (beyond & (terms.weights != 0)).sum()
    return Sums(tokens=len(logprobs), **{name: value.item() for name, value in values.items()})


def chunked_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    chunk: int,
    loss_of: Callable[[Tensor, slice], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses of M tokens, never holding logits of more than `chunk` of them.

    hidden [M, d], head [V, d] (cast to hidden's dtype), targets [M] int64. `loss_of` maps the
    log-probabilities [m] of a slice of the M rows to their losses [m], each of which depends on its
    own log-probability alone.
    -> loss [] fp32, with the gradients of hidden and head; logprobs [M] and entropy [M], fp32
    without gradients, both of softmax(logits / temperature).
    """
    return _ChunkedLoss.apply(hidden, head, targets, temperature, chunk, loss_of)


@torch.no_grad()
def token_logprobs(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """logprobs [M] and entropy [M] as of `chunked_loss`, without gradients."""
    weight = head.to(hidden.dtype)
    logprobs, entropy = hidden.new_empty((2, len(targets)), dtype=torch.float32)
    for rows in _slices(len(targets), chunk):
        logits = F.linear(hidden[rows], weight)  # [m, V]
        logprobs[rows], entropy[rows] = _to_probabilities(logits, targets[rows], temperature)
    return logprobs, entropy


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = head.to(hidden.dtype)
        logprobs, entropy = hidden.new_empty((2, len(targets)), dtype=torch.float32)
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros_like(head, dtype=torch.float32)
        for rows in _slices(len(targets), chunk):
            logits = F.linear(hidden[rows], weight)  # [m, V]
            logprobs[rows], entropy[rows] = _to_probabilities(logits, targets[rows], temperature)
            part, slope = _value_and_slope(loss_of, logprobs[rows], rows)
            loss += part
            # d logprob / d logits = (onehot(target) - p) / temperature. At the target, 1 - p is
            # taken in fp32: of a sure token, p alone would round to 1 in the compute dtype.
            slope /= temperature
            logits *= -slope[:, None].to(logits.dtype)
            at_target = -slope * torch.expm1(logprobs[rows])
            logits.scatter_(1, targets[rows, None], at_target[:, None].to(logits.dtype))
            torch.mm(logits, weight, out=d_hidden[rows])
            d_head += logits.T @ hidden[rows]
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(logprobs, entropy)
        return loss, logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        scale = grads[0]
        d_head = (d_head * scale).to(ctx.head_dtype)
        return (d_hidden * scale).to(d_hidden.dtype), d_head, None, None, None, None


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _to_probabilities(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Overwrite logits [m, V] with softmax(logits / temperature).

    -> logprobs of the targets [m], entropy [m], fp32
    """
    logprobs, entropy = logits.new_empty((2, len(targets)), dtype=torch.float32)
    on_cpu = logits.device.type == "cpu"
    block_rows = max(1, _CACHED // logits.shape[1]) if on_cpu else len(targets)
    for rows in _slices(len(targets), block_rows):
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
