"""One figure over the steps of a run, in bounded memory however long the run is.

points ──add──> open points ──as many as a bucket is wide──> buckets (mean, least, most)
                                  MOST of them: neighbours are joined, twice as wide

What is told of ends in a bucket that takes the open points in: a raw point beside means of many
would stand out as if something had happened.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

MOST = 2048  # buckets, an even number; a screen has fewer columns


class Points(NamedTuple):
    """Ready to be drawn: at `x`, the mean of a bucket and what it lies between."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


class Series:
    """Grows at its end only; `cut` takes back what a resumed run makes again."""

    def __init__(self) -> None:
        self.width = 1  # points in a bucket
        self._buckets = Points([], [], [], [])
        self._ends: list[float] = []  # of the buckets, the places of their last points
        self._open: tuple[list[float], list[float]] = ([], [])
        self.newest: float | None = None

    def add(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Points behind those that are there, in order."""
        open_x, open_y = self._open
        open_x.extend(xs)
        open_y.extend(ys)
        self.newest = ys[-1] if ys else self.newest
        while len(open_x) >= (width := self.width):
            whole = min(MOST - len(self._buckets.x), len(open_x) // width) * width
            self._buckets.x.extend(open_x[:whole:width])
            self._ends.extend(open_x[width - 1 : whole : width])
            self._close(open_y[:whole])
            del open_x[:whole], open_y[:whole]
            if len(self._buckets.x) == MOST:
                self._join()

    def cut(self, x: float) -> None:
        """Forget all from `x` on; a bucket that holds it goes whole."""
        open_x, open_y = self._open
        while open_x and open_x[-1] >= x:
            open_x.pop()
            open_y.pop()
        while self._ends and self._ends[-1] >= x:
            self._ends.pop()
            for column in self._buckets:
                column.pop()
        left = open_y or self._buckets.y
        self.newest = left[-1] if left else None

    def after(self, x: float) -> Points:
        """Every bucket with a point behind `x`, which may be -1 for all, and the one before.

        That one may have been told of with points that have a bucket of their own now.
        """
        open_x, open_y = self._open
        behind = bisect_right(self._ends, x)
        if behind == len(self._ends) and not (open_x and open_x[-1] > x):
            return Points([], [], [], [])
        first = max(0, behind - 1) if self.width > 1 else behind
        found = Points(*(column[first:] for column in self._buckets))
        if open_x:
            _take_in(found, open_x, open_y, self.width)
        return found

    def _close(self, ys: Sequence[float]) -> None:
        """As many points as some buckets are wide become these."""
        _, mean, low, high = self._buckets
        if self.width == 1:
            for column in (mean, low, high):
                column.extend(ys)
            return
        parts = list(zip(*[iter(ys)] * self.width, strict=True))
        mean.extend([total / self.width for total in map(sum, parts)])
        low.extend(map(min, parts))
        high.extend(map(max, parts))

    def _join(self) -> None:
        """Pairs of buckets become one."""
        x, mean, low, high = self._buckets
        self._buckets = Points(
            x[::2],
            [(a + b) / 2 for a, b in zip(mean[::2], mean[1::2], strict=True)],
            list(map(min, low[::2], low[1::2])),
            list(map(max, high[::2], high[1::2])),
        )
        self._ends = self._ends[1::2]
        self.width *= 2


def _take_in(points: Points, xs: Sequence[float], ys: Sequence[float], width: int) -> None:
    """Into the last bucket, or one of their own where there is none."""
    x, mean, low, high = points
    if not x:
        for column, value in zip(points, (xs[0], sum(ys) / len(ys), min(ys), max(ys)), strict=True):
            column.append(value)
        return
    mean[-1] = (mean[-1] * width + sum(ys)) / (width + len(ys))
    low[-1], high[-1] = min(low[-1], *ys), max(high[-1], *ys)
