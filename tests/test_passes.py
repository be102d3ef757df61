"""pass@k against drawing every subset, and intervals against what is known of them."""

import math
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import group

from interlock.records.passes import Share, accuracy, pass_at, passes, trials, wilson


@given(drawn=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(
    drawn: int, data: st.DataObject
) -> None:
    right, k = data.draw(st.integers(0, drawn)), data.draw(st.integers(1, drawn))
    answers = [place < right for place in range(drawn)]
    subsets = [any(chosen) for chosen in combinations(answers, k)]
    assert pass_at(right, drawn, k) == pytest.approx(fmean(subsets))


def test_pass_at_k_by_hand() -> None:
    assert pass_at(1, 4, 2) == 0.5  # 3 of 6 pairs have the right one
    assert pass_at(2, 4, 2) == pytest.approx(5 / 6)
    assert pass_at(3, 200, 1) == pytest.approx(3 / 200)
    assert (pass_at(0, 5, 5), pass_at(1, 5, 5)) == (0, 1)
    with pytest.raises(ValueError, match="pass@6 of 5"):
        pass_at(1, 5, 6)


def test_what_was_not_judged_is_no_answer() -> None:
    scored = [group("a", True, False, False, None), group("b", True, None, None, None)]
    assert accuracy(scored).mean == pytest.approx((1 / 3 + 1) / 2)
    found = passes(scored, [1, 2, 4])
    assert found[1].mean == pytest.approx(accuracy(scored).mean)
    assert (found[2].mean, found[2].problems) == (pytest.approx(2 / 3), 1)
    assert math.isnan(found[4].mean) and found[4].problems == 0


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_one_answer_a_problem_has_wilsons_interval(right: list[bool]) -> None:
    share = Share.of([float(each) for each in right], 8 * len(right))
    assert share[1:3] == pytest.approx(wilson(fmean(right), len(right)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 16))
def test_an_interval_is_between_those_of_one_answer_a_problem_and_of_all_apart(
    shares: list[float], each: int
) -> None:
    share = Share.of(shares, each * len(shares))
    low, high = wilson(share.mean, len(shares))
    least, most = wilson(share.mean, each * len(shares))
    assert low - 1e-9 <= share.low <= least + 1e-9 <= share.mean + 2e-9
    assert share.mean - 2e-9 <= most - 1e-9 <= share.high <= high + 1e-9


def test_trials_are_those_of_a_share_with_that_spread() -> None:
    # variance of 0.25 and 0.75 is 1/8; a trial of share 1/2 has 1/4: each is worth two of them
    assert trials([0.25, 0.75], 8) == pytest.approx(4)
    assert trials([0.5, 0.5, 0.0], 6) == 6  # 8 by the spread, and there were only so many answers
    assert trials([0.5, 0.5], 8) == 2  # no spread seen says nothing of how much there is
