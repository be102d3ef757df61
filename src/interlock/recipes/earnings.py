"""What the rewards of one step pay for: each of a weighted list apart, being right, and length.

    verdicts, lengths ──less the mean of their group──> columns ──> shares, ties, the length's slope

Within a group, because that is what an advantage sees: how much harder one problem is than another
says nothing of what is taught. A column is [N] floats, one for each completion that counts, of
groups with at least two of them; a figure is None where a column it needs does not vary.
"""

import math
import operator
from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

from interlock.config.rewards import AnyReward, LengthReward, OverlongReward
from interlock.config.tasks import TaskSettings
from interlock.records.metrics import RewardMetrics
from interlock.records.rl import Completion, ScoredGroup, Verdict

_ABOUT_LENGTH = (LengthReward, OverlongReward)
_TOKENS = 100  # that the slope is per
Columns = Sequence[Sequence[float]]  # of each group


class Earnings(NamedTuple):
    """As RolloutMetrics has them."""

    rewards: dict[str, RewardMetrics]
    reward_error: float | None = None
    verdict: float | None = None
    verdict_error: float | None = None
    length_slope: float | None = None
    length_share: float | None = None
    length_tie: float | None = None
    length_tie_error: float | None = None


class _Answer(NamedTuple):
    settings: Sequence[AnyReward]
    verdict: Verdict
    completion: Completion

    @property
    def reward(self) -> float:
        return self.verdict.reward

    @property
    def verified(self) -> float:
        """What the verifier itself gives: of a list its own part, else whether it is right."""
        if self.settings:
            return self.verdict.parts.get("accuracy", 0.0)
        return self.reward if self.verdict.correct is None else float(self.verdict.correct)

    @property
    def length(self) -> float:
        return float(sum(self.completion.mask))

    @property
    def undeclared(self) -> float:
        """Its reward without those that are declared to be about length."""
        return self.reward - sum(
            each.weight * self.verdict.parts.get(each.called, 0.0)
            for each in self.settings
            if isinstance(each, _ABOUT_LENGTH)
        )

    def value(self, name: str) -> float | None:
        own = any(each.called == name for each in self.settings)
        return self.verdict.parts.get(name) if own else None

    def earned(self, name: str) -> float:
        weight = sum(each.weight for each in self.settings if each.called == name)
        return weight * self.verdict.parts.get(name, 0.0)


def earnings(scored: Sequence[ScoredGroup], tasks: Sequence[TaskSettings]) -> Earnings:
    """`tasks`: those of the stage, which say what is paid for."""
    lists = {task.called: task.reward for task in tasks}
    found = (_counted(each, lists.get(each.group.problem.task, [])) for each in scored)
    groups = [group for group in found if group]
    if not groups:
        return Earnings({})

    def column(figure: Callable[[_Answer], float]) -> list[list[float]]:
        return [_centred([figure(answer) for answer in group]) for group in groups]

    reward, verified = column(lambda each: each.reward), column(lambda each: each.verified)
    length, undeclared = column(lambda each: each.length), column(lambda each: each.undeclared)
    slope, tie = _slope(_flat(length), _flat(reward)), _tie(length, undeclared)
    length_tie = _tie(length, verified)
    return Earnings(
        {
            name: each
            for name, settings in _by_name(tasks).items()
            if (each := _reward(name, settings, groups, reward, verified)) is not None
        },
        _error([mean(each.reward for each in group) for group in groups]),
        mean(each.verified for group in groups for each in group),
        _error([mean(each.verified for each in group) for group in groups]),
        None if slope is None else _TOKENS * slope,
        None if tie is None else tie[0] ** 2,
        *(length_tie or (None, None)),
    )


def _reward(
    name: str,
    settings: Sequence[AnyReward],
    groups: Sequence[Sequence[_Answer]],
    reward: Columns,
    verified: Columns,
) -> RewardMetrics | None:
    """Of one of them; None where no answer has it. `reward`, `verified`: without their means."""
    every = [answer for group in groups for answer in group]
    values = [value for each in every if (value := each.value(name)) is not None]
    if not values:
        return None
    low, high = min(each.bounds[0] for each in settings), max(each.bounds[1] for each in settings)
    earned = [[each.earned(name) for each in group] for group in groups]
    within = [_centred(group) for group in earned]
    tie, tie_error = _tie(within, verified) or (None, None)
    return RewardMetrics(
        weight=mean(each.weight for each in settings),
        low=low,
        high=high,
        mean=mean(values),
        earned=mean(value for group in earned for value in group),
        error=_error([mean(group) for group in earned]),
        share=_slope(_flat(reward), _flat(within)),
        tie=tie,
        tie_error=tie_error,
        at_low=_share(values, low),
        at_high=_share(values, high),
    )


def _by_name(tasks: Sequence[TaskSettings]) -> dict[str, list[AnyReward]]:
    found: dict[str, list[AnyReward]] = {}
    for each in (each for task in tasks for each in task.reward):
        found.setdefault(each.called, []).append(each)
    return found


def _counted(scored: ScoredGroup, rewards: Sequence[AnyReward]) -> list[_Answer]:
    pairs = zip(scored.verdicts, scored.group.completions, strict=True)
    return [_Answer(rewards, v, c) for v, c in pairs if v.status.counts]


def _share(values: Sequence[float], bound: float) -> float:
    return mean(float(math.isclose(value, bound, abs_tol=1e-9)) for value in values)


def _centred(values: Sequence[float]) -> list[float]:
    middle = mean(values)  # exact: of equal values nothing is left
    return [value - middle for value in values]


def _error(means: Sequence[float]) -> float | None:
    """The standard error of their mean, of independent ones; None of one."""
    scaled, unit = _scaled(_centred(means))
    if len(means) < 2 or not scaled:
        return 0.0 if len(means) > 1 else None
    return unit * math.sqrt(_dot(scaled, scaled) / (len(means) - 1) / len(means))


def _slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of the line through y over x, both without their means; None where x does not vary."""
    (a, wide), (b, high) = _scaled(x), _scaled(y)
    if not a:
        return None
    return _dot(a, b) / _dot(a, a) * (high / wide) if b else 0.0


def _tie(x: Columns, y: Columns) -> tuple[float, float] | None:
    """Correlation within groups, and its standard error were it none; None where one is constant.

    The error is that over all permutations within every group (Fisher): the variance of a group's
    sum of products is its two sums of squares over n - 1.
    """
    (a, wide), (b, high) = _scaled(_flat(x)), _scaled(_flat(y))
    if not a or not b:
        return None
    norm = math.sqrt(_dot(a, a) * _dot(b, b))
    chance = math.fsum(
        _squares(own, wide) * _squares(other, high) / (len(own) - 1)
        for own, other in zip(x, y, strict=True)
        if len(own) > 1
    )
    return max(-1.0, min(1.0, _dot(a, b) / norm)), math.sqrt(chance) / norm


def _squares(x: Sequence[float], unit: float) -> float:
    return math.fsum((value / unit) ** 2 for value in x)


def _flat(groups: Columns) -> list[float]:
    return [value for group in groups for value in group]


def _scaled(x: Sequence[float]) -> tuple[list[float], float]:
    """As far as from -1 to 1, and the unit: no square is beyond the largest float. [] of zeros."""
    unit = max(map(abs, x), default=0.0)
    return ([value / unit for value in x], unit) if 0 < unit < math.inf else ([], 1.0)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(map(operator.mul, a, b))
