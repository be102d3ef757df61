"""Credit: from the rewards of a step's groups to one signed weight for every sampled token.

    ScoredGroup … ── shaped rewards ── advantages ─> Credited … ── shares ─> TrainingGroup …
                     of the answers that count        the groups that teach, dealt to the updates

An answer whose judge was not there (VerdictStatus.counts) is in none of it: mean, deviation,
baseline and shares are of the others, and its own weight is 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from statistics import fmean
from typing import NamedTuple

from interlock.config.losses import LossSettings
from interlock.learner.packing import TrainingGroup
from interlock.recipes.guard import label
from interlock.records.replay import KeptTokens
from interlock.records.rl import Completion, Group, ScoredGroup

MOST_ADVANTAGE = 10**9


class Credited(NamedTuple):
    """A group with how much better each of its completions did."""

    scored: ScoredGroup
    advantages: list[float]

    @property
    def teaches(self) -> bool:
        return any(self.advantages)


@dataclass(frozen=True)
class Credit:
    """Gives credit as a stage's settings say. max_tokens: the most of an answer."""

    loss: LossSettings
    max_tokens: int

    def of(self, scored: Sequence[ScoredGroup]) -> list[Credited]:
        """The advantages of all completions of one step.

        "batch_std": (r - group's mean) / standard deviation of all the step's rewards, which no
        easy or hard problem makes small (ScaleRL, arXiv 2510.13786). The others: see `advantages`.
        """
        rewards = [self._shaped(group) for group in scored]
        pairs = list(zip(rewards, scored, strict=True))
        kind = self.loss.advantage
        if kind != "batch_std":
            return [Credited(each, advantages(own, kind, each.counted)) for own, each in pairs]
        spread = _spread(
            [
                Fraction(reward)
                for own, each in pairs
                for reward, counts in zip(own, each.counted, strict=True)
                if counts
            ]
        )
        return [
            Credited(each, [_within(apart / (spread or 1)) for apart in _apart(own, each.counted)])
            for own, each in pairs
        ]

    def teaches(self, scored: ScoredGroup) -> bool:
        """Whether its completions differ in their rewards."""
        return any(_apart(self._shaped(scored), scored.counted))

    def minibatches(
        self, scored: Sequence[ScoredGroup], updates: int, staleness: Callable[[Group], int]
    ) -> list[list[TrainingGroup]]:
        """The groups that teach something, dealt out to the optimizer steps of this batch.

        Each is labelled with its worker and staleness: mismatch is measured by these (guard.py).
        """
        taught = [group for group in self.of(scored) if group.teaches]
        parts = [taught[first::updates] for first in range(updates)]
        return [self.training_groups(part, staleness) for part in parts if part]

    def training_groups(
        self, taught: Sequence[Credited], staleness: Callable[[Group], int]
    ) -> list[TrainingGroup]:
        """The groups of one optimizer step; a sampled token weighs advantage times share."""
        shares = _shares([each.scored for each in taught], self.loss.normalize, self.max_tokens)
        return [
            _training_group(each, own, self.loss.kl_beta, _label(each.scored.group, staleness))
            for each, own in zip(taught, shares, strict=True)
        ]

    def _shaped(self, scored: ScoredGroup) -> list[float]:
        """The rewards, less what answers lose for their length."""
        zone = self.loss.overlong_zone
        if not zone:
            return scored.rewards
        lengths = [sum(answer.mask) for answer in scored.group.completions]
        return [
            reward + overlong_penalty(length, self.max_tokens, zone)
            for reward, length in zip(scored.rewards, lengths, strict=True)
        ]


def overlong_penalty(length: int, max_tokens: int, zone: int) -> float:
    """What an answer of `length` tokens loses for it: DAPO (arXiv 2503.14476), eq. 13.

    0 up to max_tokens - zone, from there linear to -1 at max_tokens. zone 0: nothing.
    """
    over = length - (max_tokens - zone)
    return -min(1.0, over / zone) if zone and over > 0 else 0.0


def advantages(
    rewards: Sequence[float], kind: str, counted: Sequence[bool] | None = None
) -> list[float]:
    """How much better each completion did than its group; all zero when the rewards are equal.

    "mean_std": (r - mean) / std, GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).
    "mean": r - mean, Dr.GRPO (arXiv 2503.20783): no problem counts more for being lopsided.
    "leave_one_out": r - mean of the others, RLOO (arXiv 2402.14740): n / (n - 1) of "mean".

    What is not `counted` has 0 and is in no mean; of fewer than two, nothing is learned. Rewards
    are of any size: equal are those that differ by a millionth of the largest or less, and no
    advantage is above MOST_ADVANTAGE, which float32 still takes and clip_norm cuts down anyway.
    """
    apart = _apart(rewards, counted)
    size = len(apart) if counted is None else sum(counted)
    if not any(apart):
        return [0.0] * len(rewards)
    if kind == "mean":
        return [_within(each) for each in apart]
    if kind == "leave_one_out":
        return [_within(each * size / (size - 1)) for each in apart]
    farthest = max(map(abs, apart))
    units = [float(each / farthest) for each in apart]
    spread = sqrt(sum(unit**2 for unit in units) / size)
    return [unit / spread for unit in units]


def _apart(
    rewards: Sequence[float | Fraction], counted: Sequence[bool] | None = None
) -> list[Fraction]:
    """How far each reward is from the mean of those that count; all 0 when these are equal."""
    which = [True] * len(rewards) if counted is None else counted
    exact = [Fraction(reward) for reward in rewards]
    own = [reward for reward, counts in zip(exact, which, strict=True) if counts]
    if len(own) < 2 or max(own) - min(own) <= max(map(abs, own)) / 10**6:
        return [Fraction()] * len(rewards)
    middle = sum(own, Fraction()) / len(own)
    return [
        reward - middle if counts else Fraction()
        for reward, counts in zip(exact, which, strict=True)
    ]


def _spread(rewards: Sequence[Fraction]) -> Fraction:
    """Their standard deviation about their mean, within a float's rounding; 0 of equal ones."""
    apart = _apart(rewards)
    farthest = max(map(abs, apart), default=Fraction())
    if not farthest:
        return Fraction()
    return farthest * Fraction(sqrt(fmean(float(each / farthest) ** 2 for each in apart)))


def _within(advantage: Fraction) -> float:
    most = Fraction(MOST_ADVANTAGE)
    return float(max(-most, min(advantage, most)))


def _training_group(
    taught: Credited, shares: Sequence[float], kl_beta: float, name: str
) -> TrainingGroup:
    """`shares`: see `_shares`; `name`: the label."""
    answers = taught.scored.group.completions
    return TrainingGroup(
        prompt=taught.scored.group.prompt_tokens,
        completions=[answer.tokens for answer in answers],
        weights=[
            _where_sampled(answer, advantage * share)
            for advantage, share, answer in zip(taught.advantages, shares, answers, strict=True)
        ],
        sampler_logprobs=[answer.logprobs for answer in answers],
        kl_weights=[
            _where_sampled(answer, kl_beta * share)
            for share, answer in zip(shares, answers, strict=True)
        ]
        if kl_beta
        else None,
        label=name,
        sampled=drawn(taught.scored.group),
        kept=kept_sets(taught.scored.group),
        prompt_routes=answers[0].prompt_routes,
        routes=routes if any(routes := [answer.routes for answer in answers]) else [],
    )


def drawn(group: Group) -> list[list[bool]] | None:
    """Which tokens of its completions were sampled; None: all of them."""
    masks = [answer.mask for answer in group.completions]
    return None if all(map(all, masks)) else masks


def kept_sets(group: Group) -> list[KeptTokens | None] | None:
    """What the tokens of its completions were drawn from; None: it is told of none."""
    sets = [answer.kept for answer in group.completions]
    return sets if any(sets) else None


def _label(group: Group, staleness: Callable[[Group], int]) -> str:
    return label(group.worker, staleness(group))


def _where_sampled(answer: Completion, weight: float) -> list[float]:
    """[N]: what was given, such as a tool's result, is read and not learned."""
    return [weight if sampled else 0.0 for sampled in answer.mask]


def _shares(groups: Sequence[ScoredGroup], normalize: str, max_tokens: int) -> list[list[float]]:
    """The share of the whole loss that one sampled token of each completion has; 0 where the
    completion does not count.

    "token": every token counts the same (DAPO, arXiv 2503.14476). "sequence": every completion
    counts the same, its tokens share that (GRPO, arXiv 2402.03300). "constant": a token counts
    1 / max_tokens of a completion (Dr.GRPO, arXiv 2503.20783).
    """
    lengths = [
        [
            sum(answer.mask) if counts else 0
            for answer, counts in zip(group.group.completions, group.counted, strict=True)
        ]
        for group in groups
    ]
    tokens, count = sum(map(sum, lengths)), sum(map(sum, (group.counted for group in groups)))

    def share(length: int) -> float:
        match normalize:
            case "token":
                return 1 / tokens
            case "sequence":
                return 1 / (count * length)
        return 1 / (count * max_tokens)

    return [[share(length) if length else 0.0 for length in group] for group in lengths]
