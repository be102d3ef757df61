"""Points of a chart: as they are while they are few, then buckets with their mean and range."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.report.live.series import MOST, Series


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 40))
def test_few_points_are_kept_as_they_are(values: list[float], at_once: int) -> None:
    series = Series()
    for start in range(0, len(values), at_once):
        part = values[start : start + at_once]
        series.add([float(start + i) for i in range(len(part))], part)
    points = series.after(-1)
    assert points.x == list(map(float, range(len(values))))
    assert points.y == points.low == points.high == values
    assert series.after(4).x == points.x[5:]


@pytest.mark.parametrize("length", [MOST, 3 * MOST, 10_001, 50_003])
@pytest.mark.parametrize("at_once", [1, 977, 60_000])
def test_many_points_become_buckets(length: int, at_once: int) -> None:
    """Against one pass over all values: each bucket is the mean and the range of its own."""
    values = [float((7919 * i) % 1013) for i in range(length)]
    series = Series()
    for start in range(0, length, at_once):
        part = values[start : start + at_once]
        series.add([float(start + i) for i in range(len(part))], part)
    points, width = series.after(-1), series.width
    assert width > 1 and len(points.x) < 2 * MOST
    whole = length // width
    assert len(points.x) == whole and series.newest == values[-1]
    for bucket in range(whole):  # the last one takes in what fills none
        own = values[bucket * width : (bucket + 1) * width if bucket < whole - 1 else length]
        assert points.x[bucket] == bucket * width
        assert points.y[bucket] == pytest.approx(sum(own) / len(own))
        assert (points.low[bucket], points.high[bucket]) == (min(own), max(own))


@pytest.mark.parametrize("every", [1, 10])
def test_news_put_behind_what_was_told_is_the_whole(every: int) -> None:
    """As the page puts it: what is told anew takes the place of its own bucket and what follows."""
    series, told = Series(), Series().after(-1)
    length, had, width = 5 * MOST, -1.0, 1
    for at in range(length):
        series.add([float(every * at)], [float((7919 * at) % 1013)])
        if at % 37 and at < length - 1:
            continue
        if series.width > width:  # all is told again
            told, had, width = series.after(-1), float(every * at), series.width
        news, had = series.after(had), float(every * at)
        kept = sum(x < news.x[0] for x in told.x) if news.x else len(told.x)
        for column, fresh in zip(told, news, strict=True):
            column[kept:] = fresh
        assert len(news.x) <= 37 // width + 3
        assert told == series.after(-1)
    assert width == 8 and series.after(had).x == []


def test_what_is_made_again_is_cut() -> None:
    series = Series()
    series.add([0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0])
    series.cut(2)
    assert series.newest == 6.0
    series.add([2.0], [70.0])
    assert series.after(-1).y == [5.0, 6.0, 70.0] and series.newest == 70.0


def test_a_bucket_that_holds_what_is_cut_goes_whole() -> None:
    series = Series()
    series.add([float(x) for x in range(3 * MOST)], [1.0] * (3 * MOST))
    width, whole = series.width, len(series.after(-1).x)
    assert width > 1
    series.cut(width + 1)  # the second bucket's second point
    assert series.after(-1).x == [0.0] and whole > 2


def test_a_bucket_of_points_far_apart_that_holds_what_is_cut_goes_whole() -> None:
    series = Series()
    series.add([100.0 * i for i in range(MOST)], [1.0] * MOST)  # an evaluation every 100 steps
    series.cut(150.0)  # made again from here: the bucket of 0 and 100 stays, that of 200 goes
    series.add([200.0], [5.0])
    assert series.width == 2 and series.after(-1).high == [5.0]
    series.cut(100.0)
    assert series.after(-1).x == []
