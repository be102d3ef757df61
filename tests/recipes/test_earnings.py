"""What the rewards of a step pay for: by hand, and against numpy over drawn rewards."""

import math
from itertools import permutations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.tasks import TaskSettings
from interlock.recipes.earnings import Earnings, earnings
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Verdict,
    VerdictStatus,
)

Figures = tuple[float, float, int]  # accuracy, style, tokens
TASK = msgspec.convert(
    {
        "name": "arithmetic",
        "reward": [
            {"kind": "accuracy"},
            {"kind": "python", "name": "style", "function": "f.py:f", "weight": 2.0},
            {"kind": "overlong", "zone": 4, "weight": 0.5},
        ],
    },
    TaskSettings,
)


def answer(length: int) -> Completion:
    return Completion.sampled([5] * length, [-0.5] * length, FinishReason.STOP, "x", 0)


def paid(accuracy: float, style: float, overlong: float) -> Verdict:
    parts = {"accuracy": accuracy, "style": style, "overlong": overlong}
    return Verdict(accuracy + 2 * style + 0.5 * overlong, bool(accuracy), parts=parts)


def group(*pairs: tuple[Verdict, int], task: str = "arithmetic") -> ScoredGroup:
    completions = [answer(length) for _, length in pairs]
    problem = Problem("p", [], "", task=task)
    return ScoredGroup(Group(problem, [1], completions, "w"), [verdict for verdict, _ in pairs])


def test_by_hand() -> None:
    scored = [
        group((paid(1, 0.0, 0.0), 10), (paid(0, 1.0, -1.0), 30)),  # 1.0 and 1.5
        group((paid(1, 0.5, 0.0), 10), (paid(1, 0.5, 0.0), 20)),  # nothing to choose
    ]
    found = earnings(scored, [TASK])
    rewards = found.rewards
    # Within the first group, half the distance each: reward -0.25 and 0.25.
    assert rewards["accuracy"].share == pytest.approx(-2.0)  # (0.5 * -0.25 + -0.5 * 0.25) / 0.125
    assert rewards["style"].share == pytest.approx(4.0)
    assert rewards["overlong"].share == pytest.approx(-1.0)
    assert [rewards[name].earned for name in rewards] == [0.75, 1.0, -0.125]
    assert [rewards[name].mean for name in rewards] == [0.75, 0.5, -0.25]
    assert (rewards["style"].at_low, rewards["style"].at_high) == (0.25, 0.25)
    assert (rewards["overlong"].low, rewards["overlong"].high) == (-1.0, 0.0)
    assert (rewards["style"].weight, rewards["style"].tie) == (2.0, pytest.approx(-1.0))
    assert found.verdict == 0.75
    # Tokens -10, 10, -5, 5: 100 * (10 * 0.25 * 2) / 250.
    assert found.length_slope == pytest.approx(2.0)
    # Without the overlong part the first group has -0.5 and 0.5: (5 + 5)^2 / (250 * 0.5).
    assert found.length_share == pytest.approx(100 / 125)
    assert found.length_tie == pytest.approx(-10 / math.sqrt(250 * 0.5))
    assert found.length_tie_error == pytest.approx(math.sqrt(200 * 0.5 / (250 * 0.5)))
    assert found.reward_error == pytest.approx(abs(1.25 - 2.0) / 2)  # of two groups
    assert found.verdict_error == pytest.approx(0.25)
    assert (rewards["style"].error, rewards["style"].tie_error) == (0.0, pytest.approx(1.0))


def test_without_a_list_the_verdict_is_the_verifiers_own() -> None:
    task = TaskSettings("arithmetic")
    plain = earnings([group((Verdict(0.3), 5), (Verdict(0.7), 5))], [task])
    assert plain == Earnings({}, verdict=0.5)  # lengths do not vary
    told = [group((Verdict(9.0, False), 5), (Verdict(2.0, True), 10))]
    assert earnings(told, [task]) == Earnings(
        {}, None, 0.5, None, pytest.approx(-140), 1.0, 1.0, 1.0
    )


def test_answers_that_were_not_judged_are_in_nothing() -> None:
    lost = Verdict.failed(VerdictStatus.UNAVAILABLE, "away")
    failed = Verdict.failed(VerdictStatus.CRASHED, "gone")
    assert earnings([group((lost, 5), (lost, 9))], [TASK]) == Earnings({})
    found = earnings([group((lost, 5), (paid(1, 1, 0), 9), (failed, 3))], [TASK])
    assert found.rewards["style"].mean == 1.0  # of those that have it
    assert found.rewards["style"].earned == 1.0  # 2 and 0
    assert found.verdict == 0.5


def test_of_several_tasks_each_pays_by_its_own_list() -> None:
    other = TaskSettings("arithmetic", label="plain")
    scored = [group((paid(1, 1, 0), 5)), group((Verdict(1.0, True), 5), task="plain")]
    found = earnings(scored, [TASK, other])
    assert found.rewards["style"].mean == 1.0
    assert found.rewards["style"].earned == 1.0
    assert found.verdict == 1.0


drawn = st.tuples(
    st.sampled_from([0.0, 1.0]), st.floats(0, 1), st.floats(-1, 0), st.integers(1, 30)
)


@given(st.lists(st.lists(drawn, min_size=1, max_size=6), min_size=1, max_size=4))
def test_shares_add_up_and_ties_are_numpys(
    groups: list[list[tuple[float, float, float, int]]],
) -> None:
    scored = [group(*((paid(*each[:3]), each[3]) for each in own)) for own in groups]
    found = earnings(scored, [TASK])
    verdicts = [verdict for each in scored for verdict in each.verdicts]
    total = math.fsum(each.earned or 0.0 for each in found.rewards.values())
    assert total == pytest.approx(float(np.mean([verdict.reward for verdict in verdicts])))
    rows = [np.array([(v.reward, v.parts["accuracy"], v.parts["style"]) for v in each.verdicts])
            for each in scored]  # fmt: skip
    reward, right, style = np.concatenate([own - own.mean(axis=0) for own in rows]).T
    shares = [each.share for each in found.rewards.values()]
    if np.abs(reward).max() > 1e-6:
        assert math.fsum(share or 0.0 for share in shares) == pytest.approx(1.0, abs=1e-6)
    if min(np.abs(right).max(), np.abs(style).max()) > 1e-6:
        expected = style @ right / math.sqrt((style @ style) * (right @ right))
        assert found.rewards["style"].tie == pytest.approx(expected, abs=1e-6)


def test_the_error_of_a_tie_is_that_of_all_permutations() -> None:
    right, style = (1.0, 0.0, 0.0, 1.0), (0.1, 0.7, 0.2, 0.4)
    ties = []
    for order in permutations(style):
        own = [(paid(a, b, 0), 5) for a, b in zip(right, order, strict=True)]
        for x, y in [(0.3, 0.9), (0.9, 0.3)]:
            other = (paid(1, x, 0), 5), (paid(0, y, 0), 5)
            ties.append(earnings([group(*own), group(*other)], [TASK]).rewards["style"])
    found = [each.tie or 0.0 for each in ties]
    assert np.mean(found) == pytest.approx(0.0, abs=1e-9)
    assert ties[0].tie_error == pytest.approx(float(np.std(found)))


def test_the_largest_rewards_overflow_nothing() -> None:
    found = earnings([group((Verdict(1e308), 1), (Verdict(-1e308), 3))], [TaskSettings("x")])
    assert found.length_share == 1.0
    assert found.verdict == 0.0
