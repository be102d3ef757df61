"""`[stage.loss]`: what a token teaches."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlock.config.fields import NonNegative, Rate, SettingsTable, Weight

RuleName = Literal["clip", "gspo", "cispo", "sapo", "dppo"]
Small = Annotated[float, Meta(gt=0, lt=1)]  # below what the ratio 1, or a probability, can lose

# Settings that one rule alone reads.
_OF_RULE: dict[str, RuleName] = {
    "clip_low": "clip",
    "clip_high": "clip",
    "gspo_low": "gspo",
    "gspo_high": "gspo",
    "cispo_cap": "cispo",
    "sapo_positive": "sapo",
    "sapo_negative": "sapo",
    "dppo_low": "dppo",
    "dppo_high": "dppo",
}


# And those that some corrections alone read.
_OF_CORRECTION = {
    "tis_cap": ("truncated", "geometric"),
    "tis_veto": ("truncated", "geometric"),
    "mask_low": ("masked",),
    "mask_high": ("masked",),
}


class LossSettings(SettingsTable, frozen=True):
    """`[stage.loss]`: the policy-gradient loss.

    Each formula, and where it is from, is in learner/losses/ and recipes/credit.py.
    """

    # pi / pi_old is clipped to [1 - clip_low, 1 + clip_high]; DAPO: 0.28 above.
    clip_low: Small = 0.2
    clip_high: Rate = 0.2
    normalize: Literal["token", "sequence", "constant"] = "token"  # DAPO / GRPO / Dr.GRPO
    # GRPO / Dr.GRPO / RLOO / group's mean, standard deviation of the whole step (ScaleRL)
    advantage: Literal["mean_std", "mean", "leave_one_out", "batch_std"] = "mean_std"
    # Weight of the KL against the model that the stage began with.
    kl_beta: Weight = 0.0
    # What is done about the ratio of learner to sampler probability, token by token:
    # "truncated": times min(ratio, tis_cap); "masked": times the ratio, 0 outside the mask;
    # "geometric": as truncated, with the geometric mean over the completion; "bypass": the sampler
    # is the old policy of the rule's ratio; "off": nothing.
    correction: Literal["truncated", "masked", "geometric", "bypass", "off"] = "truncated"
    tis_cap: Rate = 2.0
    tis_veto: Weight = 1e-4  # a token whose ratio is lower counts 0
    mask_low: Weight = 0.5
    mask_high: Rate = 5.0
    # What bounds a token's ratio (learner/losses/rules.py).
    rule: RuleName = "clip"
    gspo_low: Small = 3e-4  # of the completion's geometric mean, as clip_low and clip_high
    gspo_high: Rate = 4e-4
    cispo_cap: Rate = 5.0
    sapo_positive: Rate = 1.0  # steepness where the advantage is positive
    sapo_negative: Rate = 1.05
    dppo_low: Small = 0.2  # most that the probability may have fallen below the sampler's
    dppo_high: Small = 0.2  # or risen above it
    kl_estimate: Literal["k3", "unbiased"] = "k3"  # "unbiased": times pi / pi_old (DeepSeek-V3.2)
    # Steps after which the learner's weights become the KL's reference; 0: never. R1-Zero: 400.
    reference_every: NonNegative = 0
    # Off-policy sequence masking (DeepSeek-V3.2): an answer of a negative advantage counts 0 where
    # its mean of log mu - log pi is above this quantile of what on-policy answers of the run had,
    # and above off_policy_least. 0: off; 0.99 is a start.
    off_policy_quantile: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    off_policy_least: Weight = 1e-3  # nats per token; what guard.warn calls notable
    # Tokens before max_tokens over which an answer loses up to 1 of its reward (DAPO); 0: off.
    overlong_zone: NonNegative = 0

    def conflicts(self) -> Iterator[str]:
        """What does not go together: what follows "stage.0.loss." in a message."""
        defaults = {field.name: field.default for field in msgspec.structs.fields(LossSettings)}
        for name, rule in _OF_RULE.items():
            if self.rule != rule and getattr(self, name) != defaults[name]:
                yield f"{name} is of rule = {rule!r}, and the rule is {self.rule!r}; remove it"
        for name, some in _OF_CORRECTION.items():
            if self.correction not in some and getattr(self, name) != defaults[name]:
                yield (
                    f"{name} is of correction = {' or '.join(map(repr, some))}, and that is "
                    f"{self.correction!r}; remove it"
                )
        if self.tis_veto >= 1:
            yield f"tis_veto = {self.tis_veto} leaves out tokens whose ratio is 1; set one below"
        if not self.mask_low <= 1 <= self.mask_high:
            yield (
                f"mask_low = {self.mask_low} and mask_high = {self.mask_high} leave out tokens "
                "whose ratio is 1; set one below and one above"
            )
        if not self.off_policy_quantile and self.off_policy_least != defaults["off_policy_least"]:
            yield (
                "off_policy_least is of a mask, and off_policy_quantile is 0, which is none; set "
                "that, or remove it"
            )
        if self.rule == "dppo" and self.correction != "bypass":
            yield (
                f"correction = {self.correction!r} would count the sampler twice, which dppo's "
                'ratio is against; set correction = "bypass"'
            )
        for name in ("kl_estimate", "reference_every"):
            if not self.kl_beta and getattr(self, name) != defaults[name]:
                yield f"{name} says how the KL is taken, and kl_beta is 0; set that, or remove it"
