"""One figure over the steps of a run, in bounded memory however long the run is.

points ──add──> open points ──as many as a bucket is wide──> buckets (mean, least, most)
                                  MOST of them: neighbours are joined, twice as wide
"""

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
        self._open: tuple[list[float], list[float]] = ([], [])

    def add(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Points behind those that are there, in order."""
        open_x, open_y = self._open
        open_x.extend(xs)
        open_y.extend(ys)
        while len(open_x) >= (width := self.width):
            whole = min(MOST - len(self._buckets.x), len(open_x) // width) * width
            self._buckets.x.extend(open_x[:whole:width])
            self._close(open_y[:whole])
            del open_x[:whole], open_y[:whole]
            if len(self._buckets.x) == MOST:
                self._join()

    def cut(self, x: float) -> None:
        """Forget all from `x` on; a bucket that holds it goes whole."""
        if self._buckets.x and self._buckets.x[-1] >= x:
            self._open = ([], [])
        open_x, open_y = self._open
        while open_x and open_x[-1] >= x:
            open_x.pop()
            open_y.pop()
        # Of a bucket only its first point's place is known.
        while self._buckets.x and self._buckets.x[-1] + self.width - 1 >= x:
            for column in self._buckets:
                column.pop()

    def after(self, x: float) -> Points:
        """All points behind `x`, which may be -1 for all."""
        first = len(self._buckets.x)
        while first and self._buckets.x[first - 1] > x:
            first -= 1
        found = Points(*(column[first:] for column in self._buckets))
        fresh = [(at, y) for at, y in zip(*self._open, strict=True) if at > x]
        found.x.extend(at for at, _ in fresh)
        for column in found[1:]:
            column.extend(y for _, y in fresh)
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
        self.width *= 2
