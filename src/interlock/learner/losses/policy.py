"""The loss of each token of a policy, and the statistics of a step.

    logprobs [M], Terms [M] ─ rule (rules.py) x factor (corrections.py) + KL ─> loss [M]
                            └─ sums ─> Sums, which add up over micro-batches

projection.py makes the log-probabilities in chunks, and takes the loss's gradient.

Legend: M tokens whose log-probability is needed
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.errors import TrainingError
from interlock.learner.losses.corrections import correct, off_sampler
from interlock.learner.losses.kept import KeptSums
from interlock.learner.losses.mismatches import mismatches
from interlock.learner.losses.rules import RULES, Ruled, policies
from interlock.learner.losses.terms import Terms, k3
from interlock.mismatch import Mismatch


@dataclass(frozen=True)
class Sums:
    """Totals over tokens, which add up over micro-batches."""

    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    mismatch: Mismatch = field(default_factory=Mismatch)  # of pi_old against mu, the sampler
    corrected: int = 0  # tokens whose factor was truncated or masked
    vetoed: int = 0  # tokens whose factor is 0 because pi_old / mu is below tis_veto
    clipped: int = 0  # tokens of a weight whose ratio is beyond what the rule lets through
    masked: int = 0  # tokens of a weight that gave no gradient, by the rule or by the factor
    learned: int = 0  # tokens of a weight, which the next two are sums over
    ratio: float = 0.0  # of pi / mu
    ratio_squared: float = 0.0
    kl: float = 0.0  # k3 of the learner against the reference
    ahead: int = 0  # tokens predicted by the layer for multi-token prediction
    ahead_loss: float = 0.0  # their -log p
    kept: KeptSums = field(default_factory=KeptSums)
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


def policy_loss(logprobs: Tensor, terms: Terms, settings: LossSettings | None) -> Tensor:
    """The loss of each token, [M] fp32; its sum is what is minimised.

    With `settings`, that of its rule (rules.py) times a constant factor for the sampler's policy
    (corrections.py). Without, the weighted likelihood -w log pi. Both plus what `_kl` gives, where
    there are KL weights. Raises TrainingError when log-probabilities that a term needs are missing,
    or would be ignored.
    """
    if (settings is None) != (terms.sampler is None):
        have, want = ("has no", "needs") if terms.sampler is None else ("has", "does not use")
        raise TrainingError(f"the batch {have} sampler log-probabilities, which this loss {want}")
    if settings is None:
        loss = -terms.weights * logprobs
    else:
        factor = correct(logprobs, terms, settings)[0]
        loss = factor * _ruled(logprobs, terms, settings).loss
    if terms.kl_weights is None:
        return loss
    return loss + terms.kl_weights * _kl(logprobs, terms, settings)


def _ruled(logprobs: Tensor, terms: Terms, settings: LossSettings) -> Ruled:
    return RULES[settings.rule](policies(logprobs, terms, settings), settings)


def _kl(logprobs: Tensor, terms: Terms, settings: LossSettings | None) -> Tensor:
    """k3(log pi_ref - log pi) of each token [M]; "unbiased": times r = pi / pi_old, pi / mu with
    "bypass", through which the gradient goes, too (DeepSeek-V3.2, arXiv 2512.02556, section 3.1).

    k3 alone has its expectation under pi, but the tokens were drawn from pi_old, and its gradient
    is that of the forward KL. The ratio is the token's in every rule. What was drawn from an older
    mu is corrected for with "bypass" alone: the factor of the other corrections is the rule's.
    """
    if terms.reference is None:
        raise TrainingError("the batch has KL weights, but the learner holds no reference policy")
    estimate = k3(terms.reference - logprobs)
    if settings is None or settings.kl_estimate == "k3":
        return estimate
    return policies(logprobs, terms, settings).ratio * estimate


@torch.no_grad()
def sums(logprobs: Tensor, entropy: Tensor, terms: Terms, settings: LossSettings | None) -> Sums:
    """The statistics of one micro-batch; logprobs and entropy are [M]."""
    loss = policy_loss(logprobs, terms, settings)
    values: dict[str, Any] = {"loss": loss.double().sum(), "entropy": entropy.double().sum()}
    by_label: dict[int, Mismatch] = {}
    if terms.reference is not None:
        values["kl"] = k3(terms.reference - logprobs).double().sum()
    if settings is not None:
        values |= _of_ratios(logprobs, terms, settings)
        by_label = mismatches(off_sampler(logprobs, terms), terms.labels)
    found = {name: value.item() for name, value in values.items()}
    total = sum(by_label.values(), Mismatch())
    kept = {} if terms.labels is None else by_label
    return Sums(tokens=len(logprobs), **found, mismatch=total, by_label=kept)


def _of_ratios(logprobs: Tensor, terms: Terms, settings: LossSettings) -> dict[str, Tensor]:
    """What the rule and the factor did, and how uneven pi / mu is; the fields of Sums, all []."""
    assert terms.sampler is not None
    learned = terms.weights != 0
    ruled = _ruled(logprobs, terms, settings)
    factor, corrected, vetoed = correct(logprobs, terms, settings)
    ratio = (logprobs - terms.sampler)[learned].double().exp()
    return {
        "corrected": corrected.sum(),
        "vetoed": vetoed.sum(),
        "clipped": (ruled.bounded & learned).sum(),
        "masked": ((ruled.masked | (factor == 0)) & learned).sum(),
        "learned": learned.sum(),
        "ratio": ratio.sum(),
        "ratio_squared": ratio.square().sum(),
    }
