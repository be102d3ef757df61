"""The figures, worked out by hand or by scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from interlock.parity.figures import difference, greedy, mcnemar, task_result
from interlock.records.rl import Verdict


def test_a_difference_worked_out_by_hand() -> None:
    found = difference("x", "ab", [-1.0, -2.0, -4.0, -1.0], [-1.0, -1.0, -2.0, -1.5])
    # theirs - ours = 0, -1, -2, 0.5; k3 of x = exp(d): x - 1 - d
    k3 = (0 + (math.exp(-1) - 1 + 1) + (math.exp(-2) - 1 + 2) + (math.exp(0.5) - 1 - 0.5)) / 4
    assert found.k3 == pytest.approx(k3, rel=1e-12)
    assert (found.mean, found.mean_abs, found.mismatch.max) == (-0.625, 0.875, 2.0)
    assert found.share_apart == 0.5 and found.mismatch.tokens == 4  # |d| > log 2: -1 and -2
    assert found.mismatch.share_above_2 == 0.0  # d > log 2


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    found = difference("x", "ab", [-1.0, bad], [-1.0, -1.0])
    assert found.k3 == found.mismatch.max == math.inf and found.share_apart == 1.0


def test_where_greedy_answers_part() -> None:
    pairs = [([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 9, 3]), ([1, 2], [1, 2, 3]), ([5], [6])]
    found = greedy(pairs)
    assert (found.answers, found.identical, found.parted_at) == (4, 1, [0, 1, 2])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)


def test_a_task_is_compared_problem_by_problem() -> None:
    sides = [[Verdict(9.0 * int(x), x == "1") for x in side] for side in ("11101110", "10010000")]
    found = task_result("sums", *sides)
    assert (found.a.share, found.b.share, found.only_a, found.only_b) == (0.75, 0.25, 5, 1)
    assert found.p == pytest.approx(2 * (1 + 6) / 64)
    # Wilson, 6 of 8, z = 1.96
    assert (found.a.reward, found.b.reward) == (6.75, 2.25)
    assert (found.a.low, found.a.high) == pytest.approx((0.4093, 0.9285), abs=1e-4)
