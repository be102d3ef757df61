"""What the recipe decides: advantages, and how much each token weighs. By hand, and in general."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.losses import LossSettings
from interlock.config.stages import Grpo
from interlock.config.tasks import TaskSettings
from interlock.recipes.grpo import advantages, minibatches, training_groups
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Sampling,
    ScoredGroup,
    Segment,
    Verdict,
)


def scored(rewards: Sequence[float], lengths: Sequence[int]) -> ScoredGroup:
    completions = [
        Completion.sampled([5] * length, [-0.5] * length, FinishReason.STOP, "x", 0)
        for length in lengths
    ]
    problem = Problem("p", [{"role": "user", "content": "q"}], "a")
    return ScoredGroup(
        Group(problem, [1, 2], completions, "w"), [Verdict(reward) for reward in rewards]
    )


def settings(updates: int = 1, **loss: object) -> Grpo:
    return Grpo(
        task=[TaskSettings(name="arithmetic")],
        steps=1,
        updates_per_step=updates,
        sampling=Sampling(max_tokens=10),
        loss=LossSettings(**loss),  # type: ignore[arg-type]
    )


def fresh(_: Group) -> int:
    return 0


def test_advantages_by_hand() -> None:
    # Mean 1/4; deviations 3/4, -1/4, -1/4, -1/4; variance (9 + 3) / 64 = 3/16.
    std = math.sqrt(3) / 4
    assert advantages([1, 0, 0, 0], "mean_std") == pytest.approx([0.75 / std] + [-0.25 / std] * 3)
    assert advantages([1, 0, 0, 0], "mean") == pytest.approx([0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        ([2.0, -1.0], [1.0, -1.0]),
        ([1e308, 0.0], [1.0, -1.0]),
        ([1e308, -1e308], [1.0, -1.0]),  # their difference is no float
        ([1.7e308, 1.7e308, -1.7e308], [0.5**0.5, 0.5**0.5, -(2**0.5)]),
        ([1e-9, 0.0], [1.0, -1.0]),
        ([5e-324, 0.0], [1.0, -1.0]),
        ([1000.0, 1001.0], [-1.0, 1.0]),
    ],
)
def test_advantages_of_rewards_of_any_size(rewards: list[float], found: list[float]) -> None:
    assert advantages(rewards, "mean_std") == pytest.approx(found)


def test_an_advantage_without_a_spread_stays_within_float32() -> None:
    assert advantages([1e308, -1e308], "mean") == [1e9, -1e9]
    assert advantages([3.0, -1.0], "mean") == [2.0, -2.0]


@pytest.mark.parametrize(
    "rewards", [[0.0, 0.0], [1.0, 1.0, 1.0], [0.1 + 0.2, 0.3], [1e308, 1e308], [-1e9, -1e9 - 1e-6]]
)
def test_equal_rewards_teach_nothing(rewards: list[float]) -> None:
    assert advantages(rewards, "mean_std") == [0.0] * len(rewards)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=16))
def test_advantages_are_centred_and_of_unit_spread(rewards: list[float]) -> None:
    found = advantages(rewards, "mean_std")
    if any(found):
        assert sum(found) == pytest.approx(0, abs=1e-6)
        assert sum(value**2 for value in found) / len(found) == pytest.approx(1)


def test_a_group_of_equal_rewards_is_left_out_and_changes_no_share() -> None:
    taught, equal = scored([1, 0], [2, 3]), scored([1, 1], [7, 7])
    alone = training_groups([taught], settings(), fresh)
    assert minibatches([equal, taught, equal], settings(), fresh) == [alone]
    assert minibatches([equal], settings(), fresh) == []


def test_every_token_weighs_the_same() -> None:
    groups = training_groups([scored([1, 0], [2, 3]), scored([0, 1], [1, 4])], settings(), fresh)
    # Ten tokens in all; advantages are +1 and -1.
    assert groups[0].weights == [pytest.approx([0.1] * 2), pytest.approx([-0.1] * 3)]
    assert groups[1].weights == [pytest.approx([-0.1]), pytest.approx([0.1] * 4)]
    assert groups[0].prompt == [1, 2]
    assert groups[0].sampler_logprobs == [[-0.5] * 2, [-0.5] * 3]
    assert groups[0].kl_weights is None


def test_every_completion_weighs_the_same() -> None:
    groups = training_groups([scored([1, 0], [2, 4])], settings(normalize="sequence"), fresh)
    # Two completions: 1/2 each, spread over 2 and 4 tokens.
    assert groups[0].weights == [pytest.approx([1 / 4] * 2), pytest.approx([-1 / 8] * 4)]


def test_dr_grpo_divides_by_a_constant_and_not_by_the_spread() -> None:
    groups = training_groups(
        [scored([1, 0, 0, 0], [1, 2, 3, 4])],
        settings(normalize="constant", advantage="mean"),
        fresh,
    )
    # Four completions of at most ten tokens: 1/40 a token, times 3/4 or -1/4.
    assert groups[0].weights[0] == pytest.approx([3 / 160])
    assert groups[0].weights[3] == pytest.approx([-1 / 160] * 4)


def test_the_kl_term_has_the_same_share_and_no_sign() -> None:
    groups = training_groups([scored([1, 0], [2, 3])], settings(kl_beta=0.5), fresh)
    assert groups[0].kl_weights == [pytest.approx([0.1] * 2), pytest.approx([0.1] * 3)]


@pytest.mark.parametrize(
    ("normalize", "first", "second"),
    [("token", 1 / 5, 1 / 5), ("sequence", 1 / 6, 1 / 4), ("constant", 1 / 20, 1 / 20)],
)
def test_what_was_given_is_read_and_not_learned(
    normalize: str, first: float, second: float
) -> None:
    """Two sampled tokens, three of a tool, one sampled; and two sampled ones."""
    turns = [
        Segment([5, 6], [-0.5, -0.25], 3),
        Segment([1, 2, 3]),
        Segment([7], [-0.125], 4),
    ]
    answers = [
        Completion(turns, FinishReason.STOP, "x"),
        Completion.sampled([8, 9], [-0.5, -0.5], FinishReason.STOP, "x", 4),
    ]
    own = Group(Problem("p", [], ""), [1], answers, "w")
    group = ScoredGroup(own, [Verdict(1.0), Verdict(0.0)])
    (found,) = training_groups([group], settings(normalize=normalize, kl_beta=0.5), fresh)
    assert found.completions == [[5, 6, 1, 2, 3, 7], [8, 9]]
    assert found.weights == [
        pytest.approx([first, first, 0, 0, 0, first]),
        pytest.approx([-second, -second]),
    ]
    assert found.kl_weights is not None
    assert found.kl_weights[0] == pytest.approx([first / 2, first / 2, 0, 0, 0, first / 2])


def test_each_optimizer_step_has_the_whole_weight() -> None:
    groups = [scored([1, 0], [1 + i, 2]) for i in range(5)]
    parts = minibatches(groups, settings(updates=2), fresh)
    assert [len(part) for part in parts] == [3, 2]
    for part in parts:
        shares = [abs(w) for group in part for answer in group.weights for w in answer]
        assert sum(shares) == pytest.approx(1)  # advantages are +1 and -1
    assert len(minibatches(groups[:1], settings(updates=2), fresh)) == 1
