"""How far two sides are apart, in numbers: plain functions of log-probabilities and answers.

Sign and order are always theirs minus ours, and `ours` are the scores of the side that wrote the
tokens: k3 then estimates the KL of the sampler from the other (mismatch.py).
"""

import math
from collections.abc import Sequence
from statistics import fmean, mean

import msgspec

from interlock.mismatch import Mismatch, mismatch
from interlock.records.passes import wilson
from interlock.records.rl import Verdict
from interlock.report.summary import why_failed

_SAME_WITHIN = math.log(2)


class Difference(msgspec.Struct, frozen=True):
    """Of two scores of the same tokens, log theirs - log ours, in nats."""

    name: str  # what was compared, for a reader
    sides: str  # whose scores these are: "a", "b" or "ab"
    mismatch: Mismatch
    mean: float
    mean_abs: float
    # Of the tokens whose probabilities are in a ratio above 2, either way: a learner suffers by
    # those that it finds likelier (Mismatch.share_above_2), two engines merely disagree.
    share_apart: float

    @property
    def k3(self) -> float:
        return self.mismatch.k3


class Greedy(msgspec.Struct, frozen=True):
    """Whether both sides write the same answer when nothing is drawn."""

    answers: int
    identical: int
    parted_at: list[int]  # token of each other answer at which the two part, in ascending order

    @property
    def share(self) -> float:
        return self.identical / self.answers


class Accuracy(msgspec.Struct, frozen=True):
    """Share of greedy answers that are right, with its 95 % Wilson interval; and their reward."""

    share: float
    low: float
    high: float
    reward: float  # mean; any finite number


class TaskResult(msgspec.Struct, frozen=True):
    """Both sides on the same held-out problems."""

    task: str
    problems: int
    a: Accuracy
    b: Accuracy
    only_a: int  # problems that only A answered right
    only_b: int
    p: float  # of McNemar's exact test: that these two counts came about by chance
    not_judged: str | None = None  # why, when the verifier failed on every answer of both


def difference(name: str, sides: str, theirs: Sequence[float], ours: Sequence[float]) -> Difference:
    """Of at least one token; what is not finite counts as infinitely far apart."""
    assert ours and len(ours) == len(theirs)
    found = mismatch(theirs, ours)
    apart = [their - our for their, our in zip(theirs, ours, strict=True)]
    if not all(map(math.isfinite, apart)):
        return Difference(name, sides, found, math.nan, math.inf, 1.0)
    sizes = [abs(value) for value in apart]
    above = sum(size > _SAME_WITHIN for size in sizes)
    return Difference(name, sides, found, fmean(apart), fmean(sizes), above / len(sizes))


def greedy(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Greedy:
    """Of the greedy answers of A and B to the same problems, as tokens."""
    places = [place for a, b in pairs if (place := _parts(a, b)) is not None]
    return Greedy(len(pairs), len(pairs) - len(places), sorted(places))


def _parts(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two answers differ or one has ended; None when they are equal."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if shared is not None:
        return shared
    return None if len(a) == len(b) else min(len(a), len(b))


def task_result(task: str, a: Sequence[Verdict], b: Sequence[Verdict]) -> TaskResult:
    """Of what the answers of each side were found to be, problem by problem.

    Problems are left out of which an answer could not be judged through no fault of its own.
    """
    failed = why_failed([*a, *b])
    both = [pair for pair in zip(a, b, strict=True) if all(each.status.counts for each in pair)]
    if both:
        a, b = zip(*both, strict=True)
    else:
        failed = next(each.cause for each in (*a, *b) if not each.status.counts)
    only_a = sum(x.right > y.right for x, y in zip(a, b, strict=True))
    only_b = sum(x.right < y.right for x, y in zip(a, b, strict=True))
    p = mcnemar(only_a, only_b)
    return TaskResult(task, len(a), _accuracy(a), _accuracy(b), only_a, only_b, p, failed)


def _accuracy(verdicts: Sequence[Verdict]) -> Accuracy:
    share = fmean(verdict.right for verdict in verdicts)
    reward = mean(verdict.reward for verdict in verdicts)  # exact: fmean overflows at 1e308
    return Accuracy(share, *wilson(share, len(verdicts)), reward)


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p: a fair coin thrown one + other times gives counts at least as uneven.

    McNemar (1947), with the binomial distribution instead of the approximation.
    """
    total = one + other
    tail = sum(math.comb(total, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**total)
