"""`[stage.loss]`: what a token teaches."""

from typing import Annotated, Literal

from msgspec import Meta

from interlock.config.fields import Rate, SettingsTable, Weight


class LossSettings(SettingsTable, frozen=True):
    """`[stage.loss]`: the policy-gradient loss.

    Each formula, and where it is from, is in learner/loss.py and recipes/grpo.py.
    """

    # pi / pi_old is clipped to [1 - clip_low, 1 + clip_high]; DAPO: 0.28 above.
    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    clip_high: Rate = 0.2
    normalize: Literal["token", "sequence", "constant"] = "token"  # DAPO / GRPO / Dr.GRPO
    advantage: Literal["mean_std", "mean"] = "mean_std"  # GRPO / Dr.GRPO
    # Weight of k3 against the model that the stage began with.
    kl_beta: Weight = 0.0
    # What is done about the ratio of learner to sampler probability, token by token:
    # "truncated": times min(ratio, tis_cap); "masked": times the ratio, 0 outside the mask;
    # "geometric": as truncated, with the geometric mean over the completion; "bypass": the sampler
    # is the old policy of the clipped ratio; "off": nothing.
    correction: Literal["truncated", "masked", "geometric", "bypass", "off"] = "truncated"
    tis_cap: Rate = 2.0
    tis_veto: Weight = 1e-4  # a token whose ratio is lower counts 0
    mask_low: Weight = 0.5
    mask_high: Rate = 5.0
