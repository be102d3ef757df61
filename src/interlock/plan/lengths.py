"""How long completions are: a log-normal that stops at max_tokens, as a survival function.

    mean, longest, spread, endless ──AnswerLengths──> S(l): share still going on at depth l

A synchronous step waits for its longest completion, so the tail sets its time and the mean does
not. Of the form nothing is claimed but that it has such a tail: what is longer than `longest` ends
there, a small share never stops by itself (it repeats itself, as some answers of every run do), and
the log-normal's location is solved so that the mean is what was given.
"""

import math
from functools import cache
from itertools import pairwise
from typing import NamedTuple

_STEPS = 40  # depths at which survival is asked
_SOLVED = 50  # halvings


class AnswerLengths(NamedTuple):
    """Of the completions of one step, in tokens."""

    mean: float
    longest: float  # max_tokens
    spread: float  # sigma of the logarithm
    endless: float = 0.0  # share that goes on to max_tokens whatever the others do


class DepthStretch(NamedTuple):
    """A stretch of depths at which about the same share goes on."""

    tokens: float  # how many depths
    at: float  # their middle
    alive: float  # share of completions, 0 to 1


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def censored_mean(mu: float, sigma: float, longest: float) -> float:
    """E[min(X, longest)] of a log-normal X."""
    z = (math.log(longest) - mu) / sigma
    return math.exp(mu + sigma * sigma / 2) * _normal(z - sigma) + longest * (1 - _normal(z))


@cache
def _form(lengths: AnswerLengths) -> tuple[float, float]:
    """The log-normal's location, and the share that is endless: less where the mean is small."""
    endless = min(lengths.endless, 0.5 * lengths.mean / lengths.longest)
    wanted = (lengths.mean - endless * lengths.longest) / (1.0 - endless)
    low, high = math.log(wanted) - 10.0, math.log(lengths.longest) + 10.0
    for _ in range(_SOLVED):
        middle = (low + high) / 2
        if censored_mean(middle, lengths.spread, lengths.longest) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2, endless


def survival(lengths: AnswerLengths, depth: float) -> float:
    """Share of completions that are longer than `depth` tokens."""
    if depth >= lengths.longest:
        return 0.0
    if depth <= 0 or lengths.mean >= lengths.longest:
        return 1.0
    mu, endless = _form(lengths)
    return endless + (1 - endless) * (1.0 - _normal((math.log(depth) - mu) / lengths.spread))


@cache
def depths(lengths: AnswerLengths) -> tuple[DepthStretch, ...]:
    """The survival function in stretches; of their sum tokens * alive is the mean.

    Stretches grow with depth, since the function is steep where most completions end.
    """
    edges = [lengths.longest * (i / _STEPS) ** 1.5 for i in range(_STEPS + 1)]
    found = []
    for left, right in pairwise(edges):
        middle = (left + right) / 2
        alive = (
            survival(lengths, left) + 4 * survival(lengths, middle) + _just_before(lengths, right)
        ) / 6
        found.append(DepthStretch(right - left, middle, alive))
    total = sum(each.tokens * each.alive for each in found)
    by = min(lengths.mean, lengths.longest) / total
    return tuple(each._replace(alive=min(1.0, each.alive * by)) for each in found)


def _just_before(lengths: AnswerLengths, depth: float) -> float:
    return survival(lengths, min(depth, lengths.longest * (1 - 1e-9)))


@cache
def second_moment(lengths: AnswerLengths) -> float:
    """E[L^2]: the integral of 2 l S(l)."""
    return sum(2 * each.at * each.alive * each.tokens for each in depths(lengths))


def unfinished(alive: float, completions: float) -> float:
    """Chance that at least one of so many goes on, of which each does with `alive`."""
    if alive >= 1.0:
        return 1.0
    return -math.expm1(completions * math.log1p(-alive))
