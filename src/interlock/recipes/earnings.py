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


class Earnings(NamedTuple):
    """As RolloutMetrics has them."""

    rewards: dict[str, RewardMetrics]
    verdict: float | None
    length_slope: float | None
    length_share: float | None
    length_tie: float | None


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
    groups = [_counted(each, lists.get(each.group.problem.task, [])) for each in scored]
    every = [answer for group in groups for answer in group]
    if not every:
        return Earnings({}, None, None, None, None)

    def within(figure: Callable[[_Answer], float]) -> list[float]:
        found = [[figure(answer) for answer in group] for group in groups if len(group) > 1]
        return [value for values in found for value in _centred(values)]

    reward, verified = within(lambda each: each.reward), within(lambda each: each.verified)
    length, undeclared = within(lambda each: each.length), within(lambda each: each.undeclared)
    slope, tie = _slope(length, reward), _correlation(length, undeclared)
    rewards = {}
    for name, settings in _by_name(tasks).items():
        if values := [value for each in every if (value := each.value(name)) is not None]:
            earned = within(lambda each: each.earned(name))  # noqa: B023  called at once
            rewards[name] = RewardMetrics(
                weight=mean(each.weight for each in settings),
                low=min(each.bounds[0] for each in settings),
                high=max(each.bounds[1] for each in settings),
                mean=mean(values),
                earned=mean(each.earned(name) for each in every),
                share=_slope(reward, earned),
                tie=_correlation(earned, verified),
                at_low=_share(values, min(each.bounds[0] for each in settings)),
                at_high=_share(values, max(each.bounds[1] for each in settings)),
            )
    return Earnings(
        rewards,
        mean(each.verified for each in every),
        None if slope is None else _TOKENS * slope,
        None if tie is None else tie**2,
        _correlation(length, verified),
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


def _slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of the line through y over x, both without their means; None where x does not vary."""
    (a, wide), (b, high) = _scaled(x), _scaled(y)
    if not a:
        return None
    return _dot(a, b) / _dot(a, a) * (high / wide) if b else 0.0


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """None where one of them does not vary."""
    (a, _), (b, _) = _scaled(x), _scaled(y)
    if not a or not b:
        return None
    return max(-1.0, min(1.0, _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))))


def _scaled(x: Sequence[float]) -> tuple[list[float], float]:
    """As far as from -1 to 1, and the unit: no square is beyond the largest float. [] of zeros."""
    unit = max(map(abs, x), default=0.0)
    return ([value / unit for value in x], unit) if 0 < unit < math.inf else ([], 1.0)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(map(operator.mul, a, b))
