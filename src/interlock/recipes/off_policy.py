"""Off-policy sequence masking: bad answers that the policy would hardly give any more are left out.

    learner.logprobs ── gap of each answer = mean of log mu - log pi ─┬─> beyond the threshold and
                                                                      │   with a negative advantage:
    gaps of on-policy answers of the last steps ── quantile ──────────┘   its weights become 0

DeepSeek-V3.2 (arXiv 2512.02556, section 3.1) gives the rule and no threshold; those in use differ
by a factor of 5,000. So it is taken from what the run's own sampler and learner differ by on the
same weights (group's staleness 0, before the first update), and is `off_policy_least` at the least:
in float32 on one machine that spread is of rounding alone, and every late answer would be beyond.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.learner.packing import TrainingGroup
from interlock.records.metrics import UpdateMetrics

WINDOW = 1024  # on-policy answers, the latest
ENOUGH = 64  # of them; with fewer nothing is left out
_KEPT = "on_policy_gaps"  # in the stage's memory


class OffPolicy:
    """Decides for one stage which answers are left out. `memory`: the stage's, in checkpoints."""

    def __init__(self, loss: LossSettings, memory: dict[str, Any]) -> None:
        self._loss, self._memory = loss, memory
        self._new: list[float] = []  # of the step that is not finished
        self._answers = self._dropped = 0

    @property
    def active(self) -> bool:
        return self._loss.off_policy_quantile > 0

    @property
    def threshold(self) -> float | None:
        """Nats per token; None while too few on-policy answers are known."""
        return threshold(self._memory.get(_KEPT, []), self._loss)

    def kept(
        self,
        batch: Sequence[TrainingGroup],
        now: Sequence[Sequence[Tensor]],
        before: Sequence[Sequence[Tensor]],
    ) -> list[TrainingGroup]:
        """The batch of one update, with the weights of what is left out at 0.

        now, before: log-probabilities as Learner.logprobs gives them, of the learner as it is and
        as it was before the step's first update. An answer is left out by the first: pi in the
        paper's rule is the policy that is updated, however many updates ago it sampled. The spread
        is measured by the second, in every batch of the step. KL weights stay as they are.
        """
        limit, found = self.threshold, []
        for group, own, then in zip(batch, now, before, strict=True):
            gaps = gaps_of(group, own)
            if group.label.endswith("/0"):  # guard.label: worker/staleness
                self._new += [gap for gap in gaps_of(group, then) if gap is not None]
            pairs = zip(group.weights, gaps, strict=True)
            out = [limit is not None and _is_out(*pair, limit) for pair in pairs]
            self._answers += len(out)
            self._dropped += sum(out)
            weights = [
                [0.0] * len(values) if dropped else values
                for values, dropped in zip(group.weights, out, strict=True)
            ]
            found.append(msgspec.structs.replace(group, weights=weights))
        return found

    def finish(self, update: UpdateMetrics) -> UpdateMetrics:
        """The step's figures with those of the mask; what was measured is kept from here on."""
        if not self.active:
            return update
        share = self._dropped / self._answers if self._answers else None
        update = msgspec.structs.replace(
            update, off_policy_share=share, off_policy_threshold=self.threshold
        )
        known = self._memory.get(_KEPT, []) + self._new
        self._memory[_KEPT] = known[-WINDOW:]
        self._new, self._answers, self._dropped = [], 0, 0
        return update


def threshold(known: Sequence[float], loss: LossSettings) -> float | None:
    """The quantile of on-policy answers' gaps, `off_policy_least` at least; nats per token."""
    if len(known) < ENOUGH:
        return None
    ordered = sorted(known)
    place = math.ceil(loss.off_policy_quantile * len(ordered)) - 1  # the smallest with that share
    return max(ordered[max(place, 0)], loss.off_policy_least)


def gaps_of(group: TrainingGroup, logprobs: Sequence[Tensor]) -> list[float | None]:
    """Of each completion, the mean of log mu - log pi over its tokens with a weight; None: no such.

    A difference that is no number says nothing, and counts 0.
    """
    found: list[float | None] = []
    for weights, sampler, own in zip(
        group.weights, group.sampler_logprobs or (), logprobs, strict=True
    ):
        apart = [
            0.0 if math.isnan(mu - pi) else mu - pi
            for weight, mu, pi in zip(weights, sampler, own.tolist(), strict=True)
            if weight
        ]
        found.append(math.fsum(apart) / len(apart) if apart else None)
    return found


def _is_out(weights: Sequence[float], gap: float | None, limit: float) -> bool:
    return gap is not None and gap > limit and min(weights) < 0
