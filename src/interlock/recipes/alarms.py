"""Alarms: what a run's figures say of it before its accuracy does.

    UpdateMetrics of every step ── first steps: the early level ─┬─> events
                                └─ last steps ───────────────────┤
    RolloutMetrics, held-out accuracy ──> reward_alarm.py ───────┘

The figures of earlier steps are read from the run's own log: a resumed run goes on watching.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from interlock.config.stages import Sampled
from interlock.recipes.reward_alarm import StepSeen, causes
from interlock.recipes.stage import Stage
from interlock.records.metrics import EventKind, RolloutMetrics, UpdateMetrics
from interlock.records.rl import Score

EARLY = 8  # steps that make up the early level
RECENT = 8  # and those that are held against it
_LEAST_SHARE = 0.5  # of the early effective sample size
_FELL, _ROSE = 0.5, 2.0  # masked share and k3, against their early levels
_MASKED = 1e-3  # less than that share early is no mask at work
_NOTABLE_K3 = 1e-4  # nats per token; below it is rounding


class Alarms:
    """Watches one stage. Each alarm is one event, and another only after it was over."""

    def __init__(self, stage: Stage[Sampled]) -> None:
        self._stage = stage
        tasks = stage.settings.task
        self._rewards = [reward for task in tasks for reward in task.reward]
        self._problems = stage.settings.eval.problems * len(tasks)
        lines = [
            line
            for line in stage.run.metrics()
            if line.stage == stage.index and line.step <= stage.done
        ]
        self._updates = [line.update for line in lines if line.step]
        self._paid = [StepSeen(line.rollout, line.accuracy) for line in lines]
        self._raised = set(self._alarms())

    def look(
        self, step: int, update: UpdateMetrics, rollout: RolloutMetrics, held_out: Score | None
    ) -> None:
        """Take in one step, and keep an event for each alarm that begins with it."""
        self._updates.append(update)
        self._paid.append(StepSeen(rollout, held_out.accuracy if held_out else None))
        now = self._alarms()
        for kind, message in now.items():
            if kind not in self._raised:
                self._stage.event(kind, f"step {step}: {message}")
        self._raised = set(now)

    def _alarms(self) -> dict[EventKind, str]:
        found = dict(alarms(self._updates))
        if cause := next(causes(self._paid, self._rewards, self._problems), None):
            found["reward_hacked"] = f"{cause}; look at such answers, and mend the reward"
        return found


def alarms(seen: Sequence[UpdateMetrics]) -> Iterator[tuple[EventKind, str]]:
    """The alarms of the ratios of learner to sampler after the last of these steps, each with its
    message.

    "sample_size_fell": the effective sample size of pi / mu, as a share of the tokens, is below
    half of its early level: few tokens carry the gradient (VCPO, arXiv 2602.17616).
    "mask_loosened": a smaller share of tokens is masked while the learner and the sampler move
    apart: the mask no longer meets what it is for (Ant Group's KPop note of May 2026).
    "off_policy_idle": off-policy masking was asked for, and has had no threshold for so many steps:
    where groups are always late, hardly any answer is of the learner's own weights.
    """
    sizes = _levels([(each.effective_share,) for each in seen])
    if sizes is not None:
        (early,), (late,) = sizes
        if late < _LEAST_SHARE * early:
            yield (
                "sample_size_fell",
                f"effective sample size {late:.2g} of the tokens, {early:.2g} at first: few carry "
                "the gradient; lower the staleness or the learning rate",
            )
    asked = [each for each in seen if each.off_policy_share is not None]
    if len(asked) >= EARLY + RECENT and asked[-1].off_policy_threshold is None:
        yield (
            "off_policy_idle",
            f"off_policy_quantile leaves nothing out: in {len(asked)} steps too few answers were "
            "sampled with the learner's own weights to tell a threshold; lower the staleness",
        )
    k3s = [None if each.mismatch is None else each.mismatch.k3 for each in seen]
    masks = _levels([(each.masked_share, k3) for each, k3 in zip(seen, k3s, strict=True)])
    if masks is not None:
        (masked_early, k3_early), (masked, k3) = masks
        apart = k3 > max(_ROSE * k3_early, _NOTABLE_K3)
        if masked_early > _MASKED and masked < _FELL * masked_early and apart:
            yield (
                "mask_loosened",
                f"{masked:.2g} of the tokens are masked, {masked_early:.2g} at first, while k3 "
                f"rose from {k3_early:.2g} to {k3:.2g}; narrow the mask, or lower the staleness",
            )


def _levels(
    rows: Sequence[tuple[float | None, ...]],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The means of the first and of the last steps that have all the figures; None: too few do."""
    whole = [tuple(v for v in row if v is not None) for row in rows if None not in row]
    if len(whole) < EARLY + RECENT:
        return None
    early, late = zip(*whole[:EARLY], strict=True), zip(*whole[-RECENT:], strict=True)
    return tuple(map(fmean, early)), tuple(map(fmean, late))
