"""When a reward grows and what the verifier says does not: found by what the last steps paid for.

    RolloutMetrics of every step, held-out accuracy ──windows of the last 3 to 32 steps──> causes

Five ways, each held against its own noise: errors of means are over groups, those of ties over all
permutations within groups (earnings.py), a trend is the straight line through a window. The first
needs no harm to have been done: that the answers which are paid more are right less often shows
before any is learned. What takes in the verifier itself shows in none of them, and in no figure.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from interlock.config.rewards import AccuracyReward, AnyReward
from interlock.records.metrics import RewardMetrics, RolloutMetrics

WINDOWS = (3, 4, 5, 6, 8, 16, 32)  # steps
_LONG = 8  # for what has no other sign than growth
_FREE = frozenset({"python", "judge"})  # kinds that may pay for anything; the others are forms
_TIE, _TIE_Z = -0.1, -4.0
# A tie by itself; the range as a share of what being right is worth; and the least share: below it
# what is right outweighs it, and nobody is drawn there.
_AGAINST, _OUTBIDS, _DRAWS = -0.15, 0.5, 0.05
_DRAWN_TIE_Z, _DRAWN_GROWS_Z = -3.0, 2.0  # both at once are as rare as the tie by itself
_SHARE = 0.25
_GROWS_Z, _GROWN = 2.5, 0.02  # beside a tie; the gain as a share of what being right is worth
_ALONE_Z, _ALONE = 4.0, 0.2  # growth alone
_RISES_Z, _FALLS_Z = 4.0, -3.0  # of the whole reward, and of the verdict
_FOLLOWS_Z = 2.0  # from here on the verdict rises too
_LENGTH_SHARE, _LENGTHENED = 0.5, 0.1
_HELD_OUT_Z, _LOST, _SINCE = 4.0, 0.05, 4  # errors, points, steps


class StepSeen(NamedTuple):
    rollout: RolloutMetrics
    accuracy: float | None = None  # held out, where it was measured after the step


class Trend(NamedTuple):
    """Of a straight line through a figure of every step of a window."""

    gain: float  # from its beginning to its end
    z: float  # that over its standard error


_STILL = Trend(0.0, 0.0)


def causes(seen: Sequence[StepSeen], rewards: Sequence[AnyReward], problems: int) -> Iterator[str]:
    """Why the rewards of a stage look hacked after the last of these steps, a line each.

    Args:
        seen: the stage's steps so far, the first perhaps without a rollout: before any update.
        rewards: the weighted lists of its tasks, together.
        problems: held out, that an accuracy is measured on.
    """
    steps = [each.rollout for each in seen if each.rollout.reward is not None]
    for size in (size for size in WINDOWS if size <= len(steps)):
        window = steps[-size:]
        verdict = _trend([(each.verdict, each.verdict_error) for each in window])
        if verdict.z < _FOLLOWS_Z:
            yield from _components(window, rewards, verdict)
            yield from _length(window)
        reward = _trend([(each.reward, each.reward_error) for each in window])
        if reward.z >= _RISES_Z and verdict.z <= _FALLS_Z:
            yield (
                f"the reward rose by {reward.gain:.2g} in {size} steps, and the verifier's own "
                f"verdict fell by {-verdict.gain:.2g}"
            )
    yield from _held_out(seen, problems)


def _components(
    window: Sequence[RolloutMetrics], rewards: Sequence[AnyReward], verdict: Trend
) -> Iterator[str]:
    """Rewards of the list that grow while the verdict does not."""
    worth = _worth(rewards)
    kinds = {each.called: str(each.__struct_config__.tag) for each in rewards}
    paid = {name: [each.rewards.get(name, RewardMetrics()) for each in window] for name in kinds}
    trends = {name: _trend([(e.earned, e.error) for e in own]) for name, own in paid.items()}
    grown = sum(max(0.0, trend.gain) for trend in trends.values())
    for name, own in paid.items():
        if kinds[name] == "accuracy":
            continue
        trend, size, free = trends[name], len(window), kinds[name] in _FREE
        tie, z = _pooled([(each.tie, each.tie_error) for each in own])
        share, most = _mean([each.share for each in own]), 2 * trend.gain >= grown > 0
        grows = most and trend.z >= _GROWS_Z and trend.gain >= _GROWN * worth
        outbids = free and share >= _DRAWS and _range(own[-1]) >= _OUTBIDS * worth
        against = tie <= _AGAINST and z <= _TIE_Z
        drawn = tie <= _TIE and z <= _DRAWN_TIE_Z and trend.z >= _DRAWN_GROWS_Z
        of_form = grows and tie <= _TIE and z <= _TIE_Z and share >= _SHARE
        if of_form or (outbids and (against or drawn)):
            yield (
                f"reward {name!r} pays for what is wrong: answers that earn more of it than others "
                f"to their problem are right less often (correlation {tie:.2f} in {size} steps); "
                f"it is {share:.0%} of what tells answers apart, and grew by {trend.gain:.2g}"
            )
        alone = most and trend.z >= _ALONE_Z and trend.gain >= _ALONE * worth
        if free and alone and z < _FOLLOWS_Z and size >= _LONG:
            yield (
                f"reward {name!r} alone carries the growth: {trend.gain:.2g} in {size} steps, and "
                f"the verifier's own verdict did not follow ({verdict.gain:+.2g})"
            )


def _length(window: Sequence[RolloutMetrics]) -> Iterator[str]:
    """Length explains the rewards, and not because of what is right."""
    share = _mean([each.length_share for each in window])
    slope = _mean([each.length_slope for each in window])
    _, z = _pooled([(each.length_tie, each.length_tie_error) for each in window])
    reward = _trend([(each.reward, each.reward_error) for each in window])
    lengths = [each.length for each in window if each.length]
    if share < _LENGTH_SHARE or not lengths or reward.z < _GROWS_Z:
        return
    moved = _trend([(length, 0.0) for length in lengths]).gain / (sum(lengths) / len(lengths))
    if math.copysign(z, z * slope) < _FOLLOWS_Z and math.copysign(1, slope) * moved >= _LENGTHENED:
        yield (
            f"length explains {share:.0%} of what tells answers apart, {slope:+.2g} for 100 "
            f"tokens, and it moves that way ({moved:+.0%} in {len(window)} steps); it does not go "
            "with being right"
        )


def _held_out(seen: Sequence[StepSeen], problems: int) -> Iterator[str]:
    """Held-out accuracy fell from its best, further than chance, while the reward rose."""
    measured = [(n, each.accuracy) for n, each in enumerate(seen) if each.accuracy is not None]
    if len(measured) < 2:
        return
    (at, best), (_, last) = max(measured, key=lambda each: each[1]), measured[-1]
    since = [each.rollout for each in seen[at + 1 :] if each.rollout.reward is not None]
    middle = (best + last) / 2
    error = math.sqrt(2 * middle * (1 - middle) / problems)
    reward = _trend([(each.reward, each.reward_error) for each in since])
    lost = best - last >= max(_LOST, _HELD_OUT_Z * error)
    if lost and len(since) >= _SINCE and reward.z >= _RISES_Z:
        yield (
            f"held-out accuracy fell from {best:.1%} to {last:.1%} while the reward rose by "
            f"{reward.gain:.2g}"
        )


def _worth(rewards: Sequence[AnyReward]) -> float:
    """What being right is worth; of a list without accuracy the whole range of the reward."""
    right = [each for each in rewards if isinstance(each, AccuracyReward) and each.weight]
    ranges = [abs(each.weight) * (each.bounds[1] - each.bounds[0]) for each in right or rewards]
    return max(ranges, default=1.0) if right else sum(ranges)


def _range(reward: RewardMetrics) -> float:
    """How much it can pay, as declared."""
    if reward.weight is None or reward.low is None or reward.high is None:
        return 0.0
    return abs(reward.weight) * (reward.high - reward.low)


def _trend(points: Sequence[tuple[float | None, float | None]]) -> Trend:
    """Of the points that have both, by least squares; none of fewer than three."""
    known = [(n, y, e) for n, (y, e) in enumerate(points) if y is not None and e is not None]
    if len(known) < 3:
        return _STILL
    middle = sum(n for n, _, _ in known) / len(known)
    across = sum((n - middle) ** 2 for n, _, _ in known)
    length = known[-1][0] - known[0][0]
    gain = length * sum((n - middle) * y for n, y, _ in known) / across
    error = length * math.sqrt(sum(((n - middle) * e) ** 2 for n, _, e in known)) / across
    if not math.isfinite(gain) or not math.isfinite(error):
        return _STILL
    return Trend(gain, gain / error if error > 0 else math.copysign(math.inf, gain) if gain else 0)


def _pooled(points: Sequence[tuple[float | None, float | None]]) -> tuple[float, float]:
    """The mean weighted by the inverse of the variances, and that over its standard error."""
    known = [(value, error) for value, error in points if value is not None and error]
    weight = math.fsum(error**-2 for _, error in known)
    if not weight:
        return 0.0, 0.0
    mean = math.fsum(value * error**-2 for value, error in known) / weight
    return mean, mean * math.sqrt(weight)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
