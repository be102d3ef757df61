"""What the recipe decides: advantages, and how much each token weighs. By hand, and in general."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.losses import LossSettings
from interlock.config.stages import Grpo
from interlock.config.tasks import TaskSettings
from interlock.learner.packing import TrainingGroup
from interlock.recipes.credit import Credit, Credited, advantages, overlong_penalty
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Sampling,
    ScoredGroup,
    Segment,
    Verdict,
    VerdictStatus,
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


def weighed(groups: Sequence[ScoredGroup], given: Grpo) -> list[TrainingGroup]:
    credit = credit_of(given)
    return credit.training_groups(credit.of(groups), fresh)


def credit_of(given: Grpo) -> Credit:
    return Credit(given.loss, given.sampling.max_tokens)


def minibatches(groups: Sequence[ScoredGroup], given: Grpo) -> list[list[TrainingGroup]]:
    return credit_of(given).minibatches(groups, given.updates_per_step, fresh)


def teaches(group: ScoredGroup, given: Grpo) -> bool:
    return credit_of(given).teaches(group)


def credited(groups: Sequence[ScoredGroup], given: Grpo) -> list[Credited]:
    return credit_of(given).of(groups)


def lost(group: ScoredGroup, *places: int) -> ScoredGroup:
    """The group with answers whose judge was not there."""
    gone = Verdict.failed(VerdictStatus.UNAVAILABLE, "no judge")
    verdicts = [gone if i in places else each for i, each in enumerate(group.verdicts)]
    return ScoredGroup(group.group, verdicts)


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
    alone = weighed([taught], settings())
    assert minibatches([equal, taught, equal], settings()) == [alone]
    assert minibatches([equal], settings()) == []


def test_every_token_weighs_the_same() -> None:
    groups = weighed([scored([1, 0], [2, 3]), scored([0, 1], [1, 4])], settings())
    # Ten tokens in all; advantages are +1 and -1.
    assert groups[0].weights == [pytest.approx([0.1] * 2), pytest.approx([-0.1] * 3)]
    assert groups[1].weights == [pytest.approx([-0.1]), pytest.approx([0.1] * 4)]
    assert groups[0].prompt == [1, 2]
    assert groups[0].sampler_logprobs == [[-0.5] * 2, [-0.5] * 3]
    assert groups[0].kl_weights is None


def test_every_completion_weighs_the_same() -> None:
    groups = weighed([scored([1, 0], [2, 4])], settings(normalize="sequence"))
    # Two completions: 1/2 each, spread over 2 and 4 tokens.
    assert groups[0].weights == [pytest.approx([1 / 4] * 2), pytest.approx([-1 / 8] * 4)]


def test_dr_grpo_divides_by_a_constant_and_not_by_the_spread() -> None:
    groups = weighed(
        [scored([1, 0, 0, 0], [1, 2, 3, 4])], settings(normalize="constant", advantage="mean")
    )
    # Four completions of at most ten tokens: 1/40 a token, times 3/4 or -1/4.
    assert groups[0].weights[0] == pytest.approx([3 / 160])
    assert groups[0].weights[3] == pytest.approx([-1 / 160] * 4)


def test_the_kl_term_has_the_same_share_and_no_sign() -> None:
    groups = weighed([scored([1, 0], [2, 3])], settings(kl_beta=0.5))
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
    (found,) = weighed([group], settings(normalize=normalize, kl_beta=0.5))
    assert found.completions == [[5, 6, 1, 2, 3, 7], [8, 9]]
    assert found.sampled == [[True, True, False, False, False, True], [True, True]]
    assert found.weights == [
        pytest.approx([first, first, 0, 0, 0, first]),
        pytest.approx([-second, -second]),
    ]
    assert found.kl_weights is not None
    assert found.kl_weights[0] == pytest.approx([first / 2, first / 2, 0, 0, 0, first / 2])


def test_each_optimizer_step_has_the_whole_weight() -> None:
    groups = [scored([1, 0], [1 + i, 2]) for i in range(5)]
    parts = minibatches(groups, settings(updates=2))
    assert [len(part) for part in parts] == [3, 2]
    for part in parts:
        shares = [abs(w) for group in part for answer in group.weights for w in answer]
        assert sum(shares) == pytest.approx(1)  # advantages are +1 and -1
    assert len(minibatches(groups[:1], settings(updates=2))) == 1


def test_leave_one_out_by_hand() -> None:
    # Against the mean of the others: 1 - 0 and 0 - 1/3.
    assert advantages([1, 0, 0, 0], "leave_one_out") == pytest.approx([1] + [-1 / 3] * 3)
    assert advantages([3, 1], "leave_one_out") == [2.0, -2.0]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.data())
def test_what_does_not_count_is_as_if_it_were_not_there(
    rewards: list[float], data: st.DataObject
) -> None:
    size = len(rewards)
    counted = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    own = [reward for reward, counts in zip(rewards, counted, strict=True) if counts]
    for kind in ("mean_std", "mean", "leave_one_out"):
        found = advantages(rewards, kind, counted)
        assert [a for a, counts in zip(found, counted, strict=True) if not counts] == [0.0] * (
            size - len(own)
        )
        alone = advantages(own, kind) if len(own) > 1 else [0.0] * len(own)
        assert [a for a, counts in zip(found, counted, strict=True) if counts] == alone


def test_a_lost_answer_is_no_zero() -> None:
    # Of 1, 0 and a lost one: +1 and -1 as of two, tokens 2 + 3 of the step, and no weight.
    group = lost(scored([1, 0, 0], [2, 3, 7]), 2)
    for normalize, first, second in (
        ("token", 1 / 5, 1 / 5),
        ("sequence", 1 / 4, 1 / 6),
        ("constant", 1 / 20, 1 / 20),
    ):
        (found,) = weighed([group], settings(normalize=normalize, kl_beta=1.0))
        assert found.weights == [
            pytest.approx([first] * 2),
            pytest.approx([-second] * 3),
            [0.0] * 7,
        ]
        assert found.kl_weights is not None and found.kl_weights[2] == [0.0] * 7
        assert found.kl_weights[0] == pytest.approx([first] * 2)


def test_with_fewer_than_two_that_count_a_group_teaches_nothing() -> None:
    group = lost(scored([1, 0, 0], [2, 3, 7]), 0, 2)
    assert not teaches(group, settings())
    assert minibatches([group], settings()) == []
    assert teaches(lost(scored([1, 0, 0], [2, 3, 7]), 2), settings())
    # A lost answer's 0 is no difference from the others' 1.
    assert not teaches(lost(scored([1, 1, 0], [1, 1, 1]), 2), settings())


def test_the_spread_of_the_whole_step_by_hand() -> None:
    # Rewards 1 0 | 1 1 | 0 0, whose mean is 1/2 and deviation 1/2; each less its group's mean.
    groups = [scored(rewards, [1, 1]) for rewards in ([1, 0], [1, 1], [0, 0])]
    found = credited(groups, settings(advantage="batch_std"))
    assert [each.advantages for each in found] == [[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
    # 4 0 | 1 1, and a lost one: mean 3/2, variance (25 + 9 + 1 + 1) / 16 = 9/4.
    groups = [scored([4, 0], [1, 1]), lost(scored([1, 1, 9], [1, 1, 1]), 2)]
    found = credited(groups, settings(advantage="batch_std"))
    assert found[0].advantages == pytest.approx([4 / 3, -4 / 3])
    assert found[1].advantages == [0.0] * 3
    same = credited([scored([1, 1], [1, 1])], settings(advantage="batch_std"))
    assert same == [Credited(scored([1, 1], [1, 1]), [0.0, 0.0])]


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (6, 0.0), (7, -0.25), (9, -0.75), (10, -1.0), (12, -1.0)]
)
def test_overlong_answers_lose_linearly(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_tokens=10, zone=4) == penalty
    assert overlong_penalty(length, max_tokens=10, zone=0) == 0.0


def test_the_length_teaches_where_it_costs() -> None:
    # Both right; 1 and, at max_tokens = 10, 1 - 1.
    group = scored([1, 1], [5, 10])
    assert not teaches(group, settings())
    shaped = settings(overlong_zone=4)
    assert teaches(group, shaped)
    assert credited([group], shaped)[0].advantages == pytest.approx([1.0, -1.0])
