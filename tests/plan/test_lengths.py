"""The survival of lengths against sums by hand and by simulation."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.plan.lengths import (
    AnswerLengths,
    censored_mean,
    depths,
    second_moment,
    survival,
    unfinished,
)


def test_the_censored_mean_is_that_of_draws() -> None:
    draw = random.Random(0)
    drawn = [min(4096.0, draw.lognormvariate(7.0, 0.8)) for _ in range(100_000)]
    assert censored_mean(7.0, 0.8, 4096.0) == pytest.approx(sum(drawn) / len(drawn), rel=0.01)


@given(
    st.floats(0.02, 0.97),
    st.sampled_from([32, 1536, 8192, 65536]),
    st.floats(0.3, 1.5),
    st.sampled_from([0.0, 0.01]),
)
@settings(max_examples=60, deadline=None)
def test_stretches_sum_to_the_mean(share: float, longest: int, spread: float, end: float) -> None:
    lengths = AnswerLengths(share * longest, longest, spread, end)
    found = depths(lengths)
    assert sum(each.tokens for each in found) == pytest.approx(longest)
    assert sum(each.tokens * each.alive for each in found) == pytest.approx(lengths.mean, rel=0.02)
    alive = [each.alive for each in found]
    assert alive == sorted(alive, reverse=True)
    # E[L^2] lies between the mean's square and mean * longest
    assert 0.97 * lengths.mean**2 <= second_moment(lengths) <= 1.03 * lengths.mean * longest


def test_equal_lengths_all_survive() -> None:
    lengths = AnswerLengths(100, 100, 0.8)
    assert survival(lengths, 99) == 1.0 and survival(lengths, 100) == 0.0
    assert second_moment(lengths) == pytest.approx(100**2, rel=1e-3)


def test_the_endless_share_is_what_is_left_at_the_end() -> None:
    assert survival(AnswerLengths(500, 30_000, 0.7, 0.005), 29_999) == pytest.approx(
        0.005, rel=0.02
    )


def test_one_of_many_goes_on() -> None:
    assert unfinished(0.5, 2) == pytest.approx(0.75)
    assert unfinished(1e-9, 1e9) == pytest.approx(1 - math.exp(-1), rel=1e-6)
    assert unfinished(1.0, 3) == 1.0
