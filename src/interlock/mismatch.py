"""Mismatch: how far two sets of log-probabilities of the same tokens are apart, once.

    d  = log pi - log mu    of each token: mu drew it, or stands for who did; pi scores it again
    k3 = e^d - 1 - d        never negative; its mean over what mu drew estimates KL(mu || pi)

J. Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html.
For tensors learner/losses/mismatches.py computes the same; a test holds the two against each other.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec

_LARGEST = 700.0  # e to the power of more is beyond a float


class Mismatch(msgspec.Struct, frozen=True):
    """The figures of some tokens. `+` gives those of the tokens of both.

    Example: `sum(parts, Mismatch())` is the mismatch of a step out of those of its micro-batches.
    """

    tokens: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    k3: float = 0.0  # mean, nats per token
    max: float = 0.0  # largest |log pi - log mu|, nats
    share_above_2: Annotated[float, msgspec.Meta(ge=0, le=1)] = (
        0.0  # of the tokens, those with pi / mu > 2
    )

    def __add__(self, other: "Mismatch") -> "Mismatch":
        tokens = self.tokens + other.tokens
        if not tokens:
            return self
        above = round(self.share_above_2 * self.tokens) + round(other.share_above_2 * other.tokens)
        k3 = (self.k3 * self.tokens + other.k3 * other.tokens) / tokens
        return Mismatch(tokens, k3, max(self.max, other.max), above / tokens)


def mismatch(pi: Sequence[float], mu: Sequence[float]) -> Mismatch:
    """The figures of tokens whose log-probabilities under both are given, in nats.

    A difference that is not a number counts as infinitely large: who computes one is not close.
    Raises ValueError when there are not as many of one as of the other.
    """
    ratios = [_apart(own, drawn) for own, drawn in zip(pi, mu, strict=True)]
    if not ratios:
        return Mismatch()
    return Mismatch(
        tokens=len(ratios),
        k3=math.fsum(map(k3, ratios)) / len(ratios),
        max=max(map(abs, ratios)),
        share_above_2=sum(ratio > math.log(2) for ratio in ratios) / len(ratios),
    )


def k3(log_ratio: float) -> float:
    """e^d - 1 - d, exact for small d too; infinite where a float cannot hold it."""
    return math.expm1(log_ratio) - log_ratio if log_ratio < _LARGEST else math.inf


def _apart(own: float, drawn: float) -> float:
    apart = own - drawn
    return math.inf if math.isnan(apart) else apart
