"""Log-probabilities over kept sets: what a sampler with top-p, top-k or min-p really drew from.

    log pi [b, V] ─ gather ─> of each row's set [b, C] ─ logsumexp ─> log of the kept mass [b]
                                     └──────────── minus that ──────> log pi over the set

With the mask of the sampler on the learner's own policy both have the same support (Keep Sampling
Mask: DeepSeek-V3.2, arXiv 2512.02556, section 3.1). No mask of the whole vocabulary is made: sets
hold replay.MOST_KEPT words at the most.

Legend: M tokens whose log-probability is needed, b rows of a block, V vocabulary, C words of the
        largest set of the block, K words of all sets
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from interlock.learner.losses.mismatches import mismatches
from interlock.mismatch import Mismatch
from interlock.records.replay import KeptTokens

FAR = 0.1  # of a ratio from 1, from where on it is counted


@dataclass(frozen=True)
class KeptSets:
    """The words that each of M tokens is compared with; of a token with none, all."""

    counts: Tensor  # [M] int64
    ids: Tensor  # [K] int64, one token's behind the other's

    @classmethod
    def read(cls, parts: Sequence[tuple[int, KeptTokens | None]]) -> "KeptSets":
        """Of stretches of so many tokens each."""
        told = [kept or KeptTokens(bytes(2 * count), b"") for count, kept in parts]
        counts = np.frombuffer(b"".join(each.counts for each in told), "<u2")
        ids = np.frombuffer(b"".join(each.ids for each in told), "<u4")
        return cls(*(torch.from_numpy(each.astype(np.int64)) for each in (counts, ids)))

    def of(self, chosen: Tensor) -> "KeptSets":
        """Of the tokens at these places, int64."""
        starts = self.counts.cumsum(0) - self.counts
        counts = self.counts[chosen]
        first = (starts[chosen] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        return KeptSets(counts, self.ids[first + torch.arange(len(first))])

    def to(self, device: torch.device) -> "KeptSets":
        """The ids are used there; how many there are is asked on the CPU."""
        return KeptSets(self.counts, self.ids.to(device))

    def slices(self, rows: Sequence[slice]) -> list["KeptSets"]:
        """Of consecutive slices of the tokens, which are all of them together."""
        counts = [self.counts[each] for each in rows]
        ids = self.ids.split([int(each.sum()) for each in counts])
        return [KeptSets(*pair) for pair in zip(counts, ids, strict=True)]


@dataclass(frozen=True)
class Narrowed:
    """A block of rows, over their sets."""

    mass: Tensor  # [b] log of what pi gives the set; 0 of a row without one
    _wide: Tensor  # [b] bool: without one
    _words: Tensor  # [b, C], each row's last one repeated
    _log_p: Tensor  # [b, C] of the words

    def confine(self, p: Tensor) -> None:
        """Make of p [b, V], softmax of the whole vocabulary, that over the sets; in place."""
        inside = torch.where(
            self._wide[:, None], p.gather(1, self._words), (self._log_p - self.mass[:, None]).exp()
        )
        p.masked_fill_(~self._wide[:, None], 0.0)
        p.scatter_(1, self._words, inside.to(p.dtype))  # where words repeat, so do values


def narrowed(log_p: Tensor, sets: KeptSets) -> Narrowed | None:
    """log_p [b, V] fp32 and the sets of its rows; None: no row has one."""
    if not len(sets.ids):
        return None
    place = log_p.device
    counts = sets.counts.to(place)
    starts = counts.cumsum(0) - counts
    offset = torch.arange(int(sets.counts.max()), device=place)[None]  # [1, C]
    within = torch.minimum(offset, (counts - 1).clamp(min=0)[:, None])
    words = sets.ids[(starts[:, None] + within).clamp(max=len(sets.ids) - 1)]
    inside = log_p.gather(1, words)
    real = offset < counts[:, None]
    wide = counts == 0
    mass = inside.masked_fill(~real, -math.inf).logsumexp(-1)
    return Narrowed(torch.where(wide, 0.0, mass), wide, words, inside)


@dataclass(frozen=True)
class KeptSums:
    """Totals over tokens that were drawn from kept sets, with r = pi / mu of each."""

    tokens: int = 0
    mass: float = 0.0  # what pi gives the sets
    far: int = 0  # r is off 1 by more than FAR
    whole_far: int = 0  # the same of r with pi over the whole vocabulary
    whole: Mismatch = field(default_factory=Mismatch)  # of such r

    def __add__(self, other: "KeptSums") -> "KeptSums":
        return KeptSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@torch.no_grad()
def kept_sums(log_ratio: Tensor, mass: Tensor, sets: KeptSets) -> KeptSums:
    """Of log r over the sets [M] and the log of the kept mass [M], those of the tokens with one."""
    one = (sets.counts > 0).to(mass.device)
    apart, mass = log_ratio[one], mass[one]
    whole = apart + mass

    def far(ratios: Tensor) -> int:
        return int((ratios.expm1().abs() > FAR).sum())

    if not len(apart):
        return KeptSums()
    counts = len(apart), mass.exp().double().sum().item(), far(apart), far(whole)
    return KeptSums(*counts, mismatches(whole)[0])
