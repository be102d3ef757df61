"""The rules by which a token's ratio teaches: one small function each, and RULES by name.

    logprobs, base, weights ─ RULES[settings.rule] ─> loss of each token, which ones it bounds

In all of them r = pi / pi_old is a token's ratio (pi / mu with correction = "bypass"), and w its
weight, whose sign is the advantage's. A token that gives no gradient any more is masked.

Legend: M tokens whose log-probability is needed
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from interlock.config.losses import LossSettings, RuleName
from interlock.learner.losses.terms import Terms


@dataclass(frozen=True)
class Policies:
    """What a rule is given of some tokens. All [M] fp32."""

    logprobs: Tensor  # log pi: what the gradient goes through
    base: Tensor  # log pi_old, or log mu
    weights: Tensor
    sequence: Tensor | None = None  # see Terms

    @property
    def ratio(self) -> Tensor:
        return (self.logprobs - self.base).exp()


class Ruled(NamedTuple):
    """What a rule makes of some tokens. All [M]."""

    loss: Tensor  # fp32
    bounded: Tensor  # bool: the ratio is beyond what the rule lets through
    masked: Tensor  # bool: of these, the ones that give no gradient


def policies(logprobs: Tensor, terms: Terms, settings: LossSettings) -> Policies:
    """What the rules see; with "bypass", the sampler is the old policy."""
    base = logprobs.detach() if terms.old is None else terms.old
    if settings.correction == "bypass":
        assert terms.sampler is not None
        base = terms.sampler
    return Policies(logprobs, base, terms.weights, terms.sequence)


def clip(given: Policies, settings: LossSettings) -> Ruled:
    """PPO (arXiv 1707.06347, eq. 7) as GRPO has it, with the two bounds of DAPO (2503.14476).

    -w min(r, 1 + clip_high) where w > 0, -w max(r, 1 - clip_low) where w < 0.
    """
    return _clipped(given.ratio, given.weights, settings.clip_low, settings.clip_high)


def gspo(given: Policies, settings: LossSettings) -> Ruled:
    """GSPO (arXiv 2507.18071): `clip` of s, the geometric mean of r over the completion.

    Every token has the ratio sg[s] pi / sg[pi] (its section 4.3). With normalize = "sequence" the
    sum over a completion has the value and the gradient of -A min(s, …) / N, eq. 5 there.
    """
    ratio = (given.logprobs - given.logprobs.detach()).exp()
    if given.sequence is not None:
        ratio = ratio * given.sequence
    return _clipped(ratio, given.weights, settings.gspo_low, settings.gspo_high)


def cispo(given: Policies, settings: LossSettings) -> Ruled:
    """CISPO (arXiv 2506.13585): -w sg[min(r, cispo_cap)] log pi. Every token teaches."""
    ratio = given.ratio.detach()
    bounded = ratio > settings.cispo_cap
    loss = -given.weights * ratio.clamp(max=settings.cispo_cap) * given.logprobs
    return Ruled(loss, bounded, torch.zeros_like(bounded))


def sapo(given: Policies, settings: LossSettings) -> Ruled:
    """SAPO (arXiv 2511.20347): -w 4 / tau sigmoid(tau (r - 1)), a gate in place of a bound.

    tau is sapo_positive where w > 0, else sapo_negative. The slope at r = 1 is that of -w r.
    """
    tau = torch.where(given.weights > 0, settings.sapo_positive, settings.sapo_negative)
    loss = -given.weights * torch.sigmoid(tau * (given.ratio - 1)) * 4 / tau
    none = torch.zeros_like(loss, dtype=torch.bool)
    return Ruled(loss, none, none)


def dppo(given: Policies, settings: LossSettings) -> Ruled:
    """DPPO with the binary total variation (arXiv 2602.04879): -w r, 0 where pi has gone too far.

    That is where pi - mu > dppo_high and w > 0, or mu - pi > dppo_low and w < 0: a difference of
    probabilities, so that a rare token may move by a large ratio and a likely one by none.
    """
    apart = given.logprobs.detach().exp() - given.base.exp()
    beyond = torch.where(given.weights > 0, apart > settings.dppo_high, -apart > settings.dppo_low)
    loss = torch.where(beyond, 0.0, -given.weights * given.ratio)
    return Ruled(loss, beyond, beyond)


def _clipped(ratio: Tensor, weights: Tensor, low: float, high: float) -> Ruled:
    bound = torch.where(weights > 0, 1 + high, 1 - low)
    kept = torch.where(weights > 0, torch.minimum(ratio, bound), torch.maximum(ratio, bound))
    beyond = torch.where(weights > 0, ratio > bound, ratio < bound)
    return Ruled(-weights * kept, beyond, beyond)


RULES: dict[RuleName, Callable[[Policies, LossSettings], Ruled]] = {
    "clip": clip,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "dppo": dppo,
}
