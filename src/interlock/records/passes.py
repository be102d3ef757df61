"""How many problems a model solves, of several answers to each: shares, pass@k, their intervals.

    ScoredGroup … ──of each problem──> right of drawn ──mean over problems──> Share(low, high)

Problems are what varies independently, and not the answers to one: intervals are over problems.
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import NamedTuple

from interlock.records.rl import ScoredGroup

_Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


class Share(NamedTuple):
    """A mean over problems, of numbers from 0 to 1, with its 95 % interval."""

    mean: float
    low: float
    high: float
    problems: int

    @classmethod
    def of(cls, shares: Sequence[float], answers: int) -> "Share":
        """Of one number for each problem, from so many answers in all; not a number where there is
        none.
        """
        if not shares:
            return cls(math.nan, math.nan, math.nan, 0)
        middle = fmean(shares)
        return cls(middle, *wilson(middle, trials(shares, answers)), len(shares))


def pass_at(right: int, drawn: int, k: int) -> float:
    """The chance that one of k answers is right, as estimated from `right` of `drawn`.

    1 - C(n - c, k) / C(n, k), without bias (Chen et al. 2021, arXiv 2107.03374, equation 1).
    Raises ValueError unless 1 <= k <= drawn.
    """
    if not 1 <= k <= drawn:
        raise ValueError(f"pass@{k} of {drawn} answers")
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


def accuracy(scored: Sequence[ScoredGroup]) -> Share:
    """The share of right answers: pass@1. Answers that do not count are left out."""
    return Share.of(*solved(scored))


def solved(scored: Sequence[ScoredGroup]) -> tuple[list[float], int]:
    """Of each problem, the share of the answers that count which is right; and how many count in
    all.
    """
    counts = _counts(scored)
    shares = [right / drawn for right, drawn in counts if drawn]
    return shares, sum(drawn for _, drawn in counts)


def passes(scored: Sequence[ScoredGroup], ks: Sequence[int]) -> dict[int, Share]:
    """pass@k for each k, over the problems of which so many answers count."""
    found = {}
    for k in ks:
        counts = [(right, drawn) for right, drawn in _counts(scored) if drawn >= k]
        shares = [pass_at(right, drawn, k) for right, drawn in counts]
        found[k] = Share.of(shares, sum(drawn for _, drawn in counts))
    return found


def trials(shares: Sequence[float], answers: int) -> float:
    """How many yes-or-no trials would tell as much as these numbers from 0 to 1.

    As many as there are when each is 0 or 1; more when they vary less than that, and no more than
    the answers that they were found from; as many as there are, too, where they do not vary at all,
    which says nothing of how they would.
    """
    count, middle = len(shares), fmean(shares)
    spread = variance(shares) if count > 1 else 0.0
    if spread == 0:
        return count
    return max(count, min(answers, middle * (1 - middle) * count / spread))


def wilson(share: float, total: float) -> tuple[float, float]:
    """95 % interval of a share seen in `total` trials (Wilson 1927); 0 <= low <= high <= 1."""
    spread = _Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def _counts(scored: Sequence[ScoredGroup]) -> list[tuple[int, int]]:
    """Of each problem, which is a group, how many answers are right and how many count."""
    counted = [[v.right for v in group.verdicts if v.status.counts] for group in scored]
    return [(sum(right), len(right)) for right in counted]
