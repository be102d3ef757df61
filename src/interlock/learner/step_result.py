"""What one optimizer step did, for those who log and watch it.

Sums over all micro-batches and ranks ── step_result ──> StepResult: means over the tokens
"""

import math
from collections.abc import Sequence

import msgspec

from interlock.config.losses import LossSettings
from interlock.learner.balance import ExpertLoad
from interlock.learner.losses.kept import KeptSums
from interlock.learner.losses.policy import Sums
from interlock.learner.packing import MicroBatch
from interlock.mismatch import Mismatch


class StepResult(msgspec.Struct, frozen=True):
    """One optimizer step. Means are over `tokens`; None where the step had no such thing."""

    loss: float  # the sum over tokens: the weights hold the normalisation
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # whose log-probabilities were computed
    skipped: bool  # loss or gradient not finite: nothing was updated
    entropy: float
    mismatch: Mismatch | None  # learner against sampler, on the sampler's tokens; SFT has none
    clipped_share: float | None
    corrected_share: float | None  # share of tokens whose factor was truncated or masked
    vetoed: int | None  # tokens whose factor is 0 because pi / mu is below tis_veto
    kl: float | None  # k3 against the reference
    by_label: dict[str, Mismatch]  # the same, of the tokens under each label
    # Of the tokens with a weight, those that gave no gradient: by the rule or the factor.
    masked_share: float | None = None
    effective_share: float | None = None  # (sum r)^2 / (n sum r^2), r = pi / mu of those n tokens
    expert_load: ExpertLoad | None = None  # of a mixture
    mtp_loss: float | None = None  # nats per token that was predicted two ahead
    kept: KeptSums | None = None  # of the tokens that were drawn from kept sets


def step_result(
    total: Sums,
    grad_norm: float,
    lr: float,
    skipped: bool,
    batch: MicroBatch,
    loss: LossSettings | None,
    labels: Sequence[str],
    load: ExpertLoad | None = None,
) -> StepResult:
    tokens, sampled = total.tokens, loss is not None
    return StepResult(
        loss=total.loss,
        grad_norm=grad_norm,
        lr=lr,
        tokens=tokens,
        skipped=skipped,
        entropy=total.entropy / tokens,
        mismatch=total.mismatch if sampled else None,
        clipped_share=total.clipped / tokens if sampled else None,
        corrected_share=total.corrected / tokens if sampled else None,
        vetoed=total.vetoed if sampled else None,
        kl=None if batch.kl_weights is None else total.kl / tokens,
        by_label={labels[place]: found for place, found in total.by_label.items()},
        masked_share=total.masked / total.learned if total.learned else None,
        effective_share=_effective(total) if sampled else None,
        expert_load=load,
        mtp_loss=total.ahead_loss / total.ahead if total.ahead else None,
        kept=total.kept if total.kept.tokens else None,
    )


def _effective(total: Sums) -> float | None:
    """The effective sample size of pi / mu, over the size; VCPO, arXiv 2602.17616, watches it."""
    squares = total.learned * total.ratio_squared
    if math.isinf(squares):  # of a token whose ratio no float holds, beside which no other counts
        return 1 / total.learned
    return total.ratio**2 / squares if squares else None
