"""The alarm of hacked rewards: figures by hand, recorded runs, and drawn runs that are clean."""

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from interlock.config.rewards import AnyReward
from interlock.recipes.reward_alarm import StepSeen, Trend, _pooled, _trend, causes
from interlock.records.metrics import RewardMetrics, RolloutMetrics


def rewards(*tables: dict[str, Any]) -> list[AnyReward]:
    return msgspec.convert(tables, list[AnyReward])


ACCURACY = {"kind": "accuracy"}
STYLE = {"kind": "python", "name": "style", "function": "f.py:f"}
FORMAT = {"kind": "format", "name": "style"}
BOTH = rewards(ACCURACY, STYLE)


def step(
    right: float,
    style: float,
    tie: float = 0.0,
    share: float = 0.5,
    accuracy: float | None = None,
    **more: Any,
) -> StepSeen:
    """Of 16 groups of 8: an error of 0.03 of each mean, and of 0.09 of a tie."""
    paid = {
        "accuracy": RewardMetrics(
            weight=1.0, low=0, high=1, earned=right, error=0.03, tie=1.0, share=1 - share
        ),
        "style": RewardMetrics(
            weight=1.0, low=0, high=1, earned=style, error=0.03, tie=tie, tie_error=0.09,
            share=share,
        ),
    }  # fmt: skip
    figures: dict[str, Any] = {
        "reward": right + style, "reward_error": 0.04, "verdict": right, "verdict_error": 0.03,
        "length": 20.0, "rewards": paid,
    }  # fmt: skip
    return StepSeen(RolloutMetrics(**figures | more), accuracy)


def first(seen: Sequence[StepSeen], paid: Sequence[AnyReward], problems: int = 256) -> int | None:
    """After how many steps the alarm is raised, as a run would look."""
    for number in range(1, len(seen) + 1):
        if any(causes(seen[:number], paid, problems)):
            return number
    return None


def test_a_trend_is_numpys_line_with_its_error() -> None:
    values = [0.1, 0.3, 0.2, 0.6]
    gain, z = _trend([(value, 0.1) for value in values])
    assert gain == pytest.approx(3 * 0.14)  # numpy.polyfit(range(4), values, 1)[0] = 0.14
    assert z == pytest.approx(0.14 / (0.1 / math.sqrt(5)))  # sum of (n - 1.5)^2 is 5
    assert _trend([(0.1, 0.1), (0.2, None), (None, 0.1), (0.3, 0.1)]) == Trend(0.0, 0.0)
    assert _trend([(1.0, 0.0)] * 3) == Trend(0.0, 0.0)
    assert _trend([(n / 8, 0.0) for n in range(3)]).z == math.inf


def test_ties_are_pooled_by_the_inverse_of_their_variance() -> None:
    assert _pooled([(0.1, 0.1), (0.4, 0.2), (None, None)]) == pytest.approx(
        ((0.1 * 100 + 0.4 * 25) / 125, (0.1 * 100 + 0.4 * 25) / math.sqrt(125))
    )
    assert _pooled([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("paid", "tie", "growth", "share", "raised"),
    [
        (
            STYLE,
            -0.25,
            0.0,
            0.1,
            3,
        ),  # by its tie alone, before anything grew: -0.25 * sqrt(3) / 0.09
        (STYLE, -0.10, 0.0, 0.5, None),
        (STYLE, -0.14, 0.08, 0.5, 4),  # both a little: z is -3.1 and 5.96; over three steps -2.7
        (STYLE, -0.25, 0.0, 0.02, None),  # what is right outweighs it
        (STYLE | {"weight": 0.1}, -0.25, 0.0, 0.1, None),  # it cannot outbid being right
        (FORMAT, -0.25, 0.0, 0.5, None),  # a form that does not grow
        (FORMAT, -0.25, 0.05, 0.5, 4),  # over three steps z is 0.05 * sqrt(2) / 0.03 = 2.4
        (FORMAT, -0.25, 0.05, 0.2, None),  # and tells little apart
        (FORMAT, 0.1, 0.05, 0.5, None),  # a form is learned before what is right
        (STYLE, 0.0, 0.05, 0.5, 8),  # anything else that alone carries the growth
        (STYLE, 0.2, 0.05, 0.5, None),  # unless it goes with being right
    ],
)
def test_a_reward_that_grows_alone(
    paid: dict[str, Any], tie: float, growth: float, share: float, raised: int | None
) -> None:
    weight = paid.get("weight", 1.0)
    seen = []
    for n in range(16):
        each = step(0.4, 0.1 + growth * n, tie, share)
        own = msgspec.structs.replace(each.rollout.rewards["style"], weight=weight)
        found = each.rollout.rewards | {"style": own}
        seen.append(StepSeen(msgspec.structs.replace(each.rollout, rewards=found)))
    assert first(seen, rewards(ACCURACY, paid)) == raised


def test_it_is_silent_while_the_verdict_rises_too() -> None:
    seen = [step(0.1 + 0.05 * n, 0.1 + 0.05 * n, 0.0) for n in range(16)]
    assert first(seen, BOTH) is None


def test_a_verdict_that_falls_while_the_reward_rises() -> None:
    """Also of a reward that is no list."""
    seen = [
        StepSeen(
            RolloutMetrics(
                reward=1 + 0.1 * n, reward_error=0.05, verdict=0.9 - 0.03 * n, verdict_error=0.03
            )
        )
        for n in range(12)
    ]
    # A window of n steps: z is slope * sqrt(n (n^2 - 1) / 12) / error, -3 from n = 5 on.
    assert first(seen, []) == 5
    assert "verdict fell by 0.12" in next(causes(seen[:5], [], 128))


@pytest.mark.parametrize(("tie", "raised"), [(0.0, 3), (0.8, None), (-0.8, 3)])
def test_length_that_explains_the_reward(tie: float, raised: int | None) -> None:
    seen = [
        StepSeen(
            RolloutMetrics(
                reward=1 + 0.1 * n, reward_error=0.04, verdict=0.4, verdict_error=0.03,
                length=20.0 + 2 * n, length_share=0.6, length_slope=2.0, length_tie=tie,
                length_tie_error=0.09,
            )
        )
        for n in range(8)
    ]  # fmt: skip
    assert first(seen, []) == raised
    shrinks = [
        StepSeen(msgspec.structs.replace(each.rollout, length=20.0 - n))
        for n, each in enumerate(seen)
    ]
    assert first(shrinks, []) is None  # away from what is paid


def test_held_out_accuracy_that_falls_beyond_chance() -> None:
    """0.8 to 0.55 of 128 is 4.3 errors, to 0.5 5.0; over six steps the reward has a z of 5.2."""
    seen = [step(0.2 + 0.05 * n, 0.1, accuracy=0.8 - 0.05 * n) for n in range(7)]
    assert first(seen, rewards(ACCURACY), 128) == 7
    still = [step(0.2, 0.1, accuracy=0.8 - 0.05 * n) for n in range(7)]
    assert first(still, rewards(ACCURACY), 128) is None


def clean(seed: int, steps: int = 60) -> tuple[list[StepSeen], list[AnyReward]]:
    """A run as they are: what is right rises and levels off, forms are learned before it, ties are
    of answers whose form goes with being right or with nothing; all with the noise of their errors.
    """
    draw = random.Random(seed)
    top, rate, at = draw.uniform(0.2, 0.95), draw.uniform(0.03, 0.3), draw.uniform(0, 20)
    form = draw.choice([FORMAT, FORMAT | {"weight": 0.2}, STYLE, {"kind": "repetition"}])
    form = form | {"name": "style"}
    tie = draw.uniform(0.1, 0.5) if form["kind"] == "python" else draw.uniform(0.0, 0.5)
    seen = []
    for n in range(steps):
        right = top / (1 + math.exp(-rate * (n - at)))
        style = 0.9 / (1 + math.exp(-0.3 * (n - 5)))
        noise = [draw.gauss(0, error) for error in (0.03, 0.03, 0.09)]
        held_out = sum(draw.random() < right for _ in range(256)) / 256 if n % 5 == 0 else None
        length, length_tie = 40 - 15 * right + draw.gauss(0, 1), -0.6 + draw.gauss(0, 0.09)
        seen.append(
            step(
                max(0.0, right + noise[0]), style + noise[1], tie + noise[2], draw.random(),
                held_out, length=length, length_share=length_tie**2, length_slope=-2.0,
                length_tie=length_tie, length_tie_error=0.09,
            )
        )  # fmt: skip
    return seen, rewards(ACCURACY, form)


@pytest.mark.parametrize("block", range(4))
def test_clean_runs_raise_none(block: int) -> None:
    raised = {seed: first(*clean(seed)) for seed in range(25 * block, 25 * block + 25)}
    assert {seed: at for seed, at in raised.items() if at is not None} == {}


def hacked(seed: int) -> tuple[list[StepSeen], list[AnyReward], int]:
    """A run that learns, and then finds what pays more. -> steps, list, and where 5 points are gone

    Whoever earns more of it is right less often, and the more so the more there is of it.
    """
    draw = random.Random(seed)
    begin, rate = draw.randrange(0, 25), draw.uniform(0.05, 0.2)
    top, seen, fell = draw.uniform(0.4, 0.9), [], None
    for n in range(60):
        hack = 1 / (1 + math.exp(-rate * (n - begin - 3 / rate)))
        right = top * (1 - hack)
        if fell is None and right < top - 0.05:
            fell = n + 1
        noise = [draw.gauss(0, error) for error in (0.03, 0.03, 0.09)]
        tie = -0.25 if hack > 0.02 else 0.0
        seen.append(step(max(0.0, right + noise[0]), hack + noise[1], tie + noise[2], 0.4))
    assert fell is not None
    return seen, BOTH, fell


@pytest.mark.parametrize("seed", range(30))
def test_a_hack_is_told_of_before_five_points_are_lost(seed: int) -> None:
    seen, paid, fell = hacked(seed)
    at = first(seen, paid)
    assert at is not None and at <= fell


# SmolLM2-135M after the demo, paid for words as much as for being right: verdict, its error,
# earned, its error, share, tie, its error of each step. Held-out accuracy was 49, 50, 57 and 36 %
# at 0, 2, 4 and 6.
RECORDED = [
    (0.521, 0.087, 0.351, 0.022, 0.11, -0.35, 0.11),
    (0.385, 0.101, 0.309, 0.024, 0.06, -0.31, 0.12),
    (0.521, 0.128, 0.292, 0.019, 0.22, -0.17, 0.09),
    (0.438, 0.099, 0.330, 0.022, 0.14, -0.36, 0.11),
    (0.448, 0.081, 0.345, 0.025, 0.05, -0.42, 0.11),
    (0.365, 0.092, 0.461, 0.036, 0.27, -0.51, 0.12),
]


def test_a_recorded_hack_is_found_before_held_out_accuracy_falls() -> None:
    seen = []
    for right, right_error, style, error, share, tie, tie_error in RECORDED:
        each = step(right, style, tie, share, verdict_error=right_error)
        own = each.rollout.rewards["style"]
        own = msgspec.structs.replace(own, error=error, tie_error=tie_error)
        rollout = msgspec.structs.replace(each.rollout, rewards={"style": own})
        seen.append(StepSeen(rollout))
    assert first(seen, BOTH) == 3
    assert next(causes(seen[:3], BOTH, 128)).startswith("reward 'style' pays for what is wrong")
