"""Divergences of student and teacher after each token, in closed form, with their slopes.

With p of the student, q of the teacher, both softmax(logits / temperature), and m = beta q +
(1 - beta) p (generalised Jensen-Shannon divergence: GKD, arXiv 2306.13649, eq. 1 and below it):

    beta    divergence                               temperature times its slope by a word's logit
    0       KL(q || p) = sum q (log q - log p)       p - q
    0 to 1  beta KL(q || m) + (1 - beta) KL(p || m)  (1 - beta) p (log p - log m - KL(p || m))
    1       KL(p || q) = sum p (log p - log q)       p (log p - log q - KL(p || q))

Where only the teacher's top k are known, all other words are one bucket on both sides: k + 1
probabilities that add up to 1, whose divergence is never above that of the whole vocabulary. (With
the k renormalised instead, nothing would keep the student from the words outside.)

On samples of the student, what a differentiable loss of one log-probability teaches is not always
what its value estimates: k1 = log pi - log nu has no expected gradient, k2 = k1^2 / 2 that of the
reverse KL, k3 that of the forward KL. The policy gradient, whose weights are log nu - log pi taken
as constants, has the reverse KL's (tests/learner/test_distillation.py).

Legend: b rows of a chunk, V vocabulary, n words that are compared, k alternatives, T completion
        tokens of all groups
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-7  # of the teacher's probability outside of its top k, which rounding may make negative


@dataclass(frozen=True)
class Divergence:
    """How distributions are compared. `top_k`: of the sets whose overlap is measured."""

    beta: float = 1.0
    temperature: float = 1.0
    top_k: int = 16


class Tops(NamedTuple):
    """What a teacher says of all T completion tokens, one after another; on the CPU."""

    own: Tensor  # [T] fp32, log nu of the tokens themselves
    ids: Tensor  # [T, k] int64, its likeliest first; k may be 0
    logprobs: Tensor  # [T, k] fp32, log nu of these


def divergence(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of student and teacher, log_p and log_q [b, n], all finite.

    -> the divergence [b]; its slope [b, n] by the logits of p; the reverse KL [b]
    """
    p, apart = log_p.exp(), log_p - log_q
    reverse = (p * apart).sum(-1)
    if beta == 1:
        return reverse, p * (apart - reverse[:, None]), reverse
    q = log_q.exp()
    if beta == 0:
        return -(q * apart).sum(-1), p - q, reverse
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
    apart = log_p - log_m
    ours, theirs = (p * apart).sum(-1), (q * (log_q - log_m)).sum(-1)
    slope = p.mul_(apart - ours[:, None]).mul_(1 - beta)
    return beta * theirs + (1 - beta) * ours, slope, reverse


def bucketed(
    log_p: Tensor, ids: Tensor, log_q: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `divergence`, of the words `ids` [b, k], different ones, and of all others as one.

    log_p [b, V] is the student's; log_q [b, k] the teacher's of the words. The reverse KL is that
    of the k + 1. The teacher's rest is what is left to 1, and at least LEAST.
    """
    rest = log_p.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)  # exact, however small
    rest = rest.clamp(min=-80.0)  # where k is the whole vocabulary
    left = (1 - log_q.exp().sum(-1, keepdim=True)).clamp(min=LEAST).log()
    coarse_p = torch.cat([log_p.gather(1, ids), rest], dim=1)
    value, coarse, reverse = divergence(coarse_p, torch.cat([log_q, left], dim=1), beta)
    # A word's share of its bucket's slope is its share of the bucket.
    slope = (log_p - rest).exp() * coarse[:, -1:]
    return value, slope.scatter(1, ids, coarse[:, :-1]), reverse


def overlapping(log_p: Tensor, ids: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """How far the likeliest words of both agree: two [b].

    The share of the teacher's `ids` [b, k] that are among the k likeliest of log_p [b, V]; and the
    mean of log q - log p over those common words, each weighted by p: 0 where there are none. 97 to
    99 % of both masses are on few common words where distillation works (arXiv 2604.13016).
    """
    least = log_p.topk(ids.shape[1]).values[:, -1:]
    ours = log_p.gather(1, ids)
    common = ours >= least
    weight = torch.where(common, ours.exp(), 0.0)
    total = weight.sum(-1).clamp(min=torch.finfo(log_p.dtype).tiny)
    advantage = (weight * (log_q - ours)).sum(-1) / total
    return common.to(log_p.dtype).mean(-1), advantage


def shared(ours: Tops, theirs: Tops) -> tuple[Tensor, Tensor]:
    """What `overlapping` says of all T tokens, where both tell their k likeliest."""
    same = theirs.ids[:, :, None] == ours.ids[:, None, :]  # [T, k, k], at most one of a row
    common = same.any(-1)
    log_p = torch.where(same, ours.logprobs[:, None, :], 0.0).sum(-1)
    weight = torch.where(common, log_p.exp(), 0.0)
    total = weight.sum(-1).clamp(min=torch.finfo(log_p.dtype).tiny)
    return common.float().mean(-1), (weight * (theirs.logprobs - log_p)).sum(-1) / total
