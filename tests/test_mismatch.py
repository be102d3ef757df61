"""The figures of a mismatch, worked out by hand and by the plain formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.mismatch import Mismatch, k3, mismatch

PAIRS = st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=30)


def test_by_hand() -> None:
    # Ratios 2.2, 1/2, 1: (2.2 - 1 - ln 2.2) + (1/2 - 1 + ln 2) + 0
    found = mismatch([math.log(2.2) - 5, -1.0, -3.0], [-5.0, math.log(2) - 1, -3.0])
    k3_sum = 2.2 - 1 - math.log(2.2) + 0.5 - 1 + math.log(2)
    assert found.tokens == 3 and found.share_above_2 == pytest.approx(1 / 3)
    assert found.k3 == pytest.approx(k3_sum / 3)
    assert found.max == pytest.approx(math.log(2.2))
    assert mismatch([-3.0, -4.0], [-3.0, -4.0]) == Mismatch(2, 0.0, 0.0, 0.0)
    assert mismatch([], []) == Mismatch()
    with pytest.raises(ValueError):
        mismatch([0.0, 0.0], [0.0])


@given(PAIRS)
def test_against_the_plain_formula(pairs: list[tuple[float, float]]) -> None:
    pi, mu = ([pair[side] for pair in pairs] for side in (0, 1))
    ratios = [math.exp(a - b) for a, b in pairs]
    plain = sum(x - math.log(x) - 1 for x in ratios) / len(ratios)
    found = mismatch(pi, mu)
    assert found.k3 == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert found.k3 >= 0


def test_k3_is_exact_for_small_ratios_and_bounded_by_none() -> None:
    # e^d - 1 - d = d^2 / 2 + d^3 / 6 + …; a plain exp of 1e-8 would give 0 or 2.2e-16.
    assert k3(1e-8) == pytest.approx(0.5e-16, rel=1e-6)
    assert k3(699.0) < k3(701.0) == k3(math.inf) == k3(-math.inf) == math.inf


@pytest.mark.parametrize(
    ("bad", "above"), [(math.nan, 0.5), (math.inf, 0.5), (-math.inf, 0.0), (1e6, 0.5)]
)
def test_what_is_not_finite_is_infinitely_far(bad: float, above: float) -> None:
    found = mismatch([-1.0, bad], [-1.0, -1.0])
    assert found.k3 == math.inf and found.max >= 1e6 and found.share_above_2 == above


def test_mismatches_add_up_by_hand() -> None:
    found = Mismatch(3, 0.5, 1.0, 1 / 3) + Mismatch(1, 2.5, 4.0, 1.0)
    assert found == Mismatch(4, (3 * 0.5 + 2.5) / 4, 4.0, 0.5)
    assert Mismatch() + Mismatch() == Mismatch() and Mismatch() + found == found + Mismatch()
    assert found + Mismatch() == found


@given(st.lists(PAIRS, min_size=1, max_size=5))
def test_the_sum_of_the_parts_is_that_of_the_whole(
    parts: list[list[tuple[float, float]]],
) -> None:
    def of(pairs: list[tuple[float, float]]) -> Mismatch:
        return mismatch([pi for pi, _ in pairs], [mu for _, mu in pairs])

    total, whole = sum(map(of, parts), Mismatch()), of([pair for part in parts for pair in part])
    assert (total.tokens, total.max, total.share_above_2) == (
        whole.tokens,
        whole.max,
        whole.share_above_2,  # exactly: it counts tokens
    )
    assert total.k3 == pytest.approx(whole.k3, rel=1e-12)
