"""What a sampler tells of how its tokens came about, so that the learner can repeat it.

    Replay ─> engine: what is to be told ─> KeptTokens, on the segments of completions ─> learner

With top-k, top-p or min-p a token is drawn from the few that these leave, and its log-probability
is of the distribution over them. A learner that normalises over the whole vocabulary finds it less
likely by what the others had: the ratio of the two is the kept mass, on every token. So the kept
set travels with the token, and the learner normalises over it (Keep Sampling Mask: DeepSeek-V3.2,
arXiv 2512.02556, section 3.1).

In a mixture a rounding may send a token through other experts, which moves its log-probability far
more than rounding itself. So the routes travel, too (R3: arXiv 2510.11370): of each layer with
experts, in their order, the numbers of those that a token passed, as the model's files count them.
A row of them is RouteShape.token_bytes long; little-endian where it takes two bytes a number.
"""

import struct
from collections.abc import Sequence

import msgspec

# Tokens that are drawn from at the most where the kept set is told: bounds what travels, to 2 KB a
# token. Beyond them a model that is worth sampling from has next to nothing.
MOST_KEPT = 512
_COUNT_BYTES, _ID_BYTES = 2, 4


class RouteShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of what a mixture tells of one token."""

    layers: int  # with experts
    per_token: int  # experts that a token passes, in each
    experts: int  # to choose from

    @property
    def number_bytes(self) -> int:
        return 1 if self.experts <= 256 else 2

    @property
    def token_bytes(self) -> int:
        return self.layers * self.per_token * self.number_bytes


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be told."""

    kept: bool = False  # the tokens that were left to draw from, where some are left out
    routes: RouteShape | None = None  # the experts that every token passed, prompts included


NO_REPLAY = Replay()


class KeptTokens(msgspec.Struct, frozen=True):
    """Of n tokens, what each was drawn from. Both little-endian, one token's behind the other's.

    Example: `KeptTokens.of([kept_ids([3, 9]), b"", kept_ids([9])])` is of three tokens.
    """

    counts: bytes  # uint16 [n]; 0: nothing was left out, or nothing was drawn
    ids: bytes  # uint32; those of one token in order

    @classmethod
    def of(cls, sets: Sequence[bytes]) -> "KeptTokens | None":
        """Of the sets of single tokens, as `kept_ids` writes them; None: nothing is told of any."""
        if not any(sets):
            return None
        counts = [len(each) // _ID_BYTES for each in sets]
        return cls(struct.pack(f"<{len(counts)}H", *counts), b"".join(sets))

    @property
    def sizes(self) -> tuple[int, ...]:
        """[n]."""
        return struct.unpack(f"<{len(self.counts) // _COUNT_BYTES}H", self.counts)

    def sets(self) -> list[bytes]:
        """What `of` makes it from again."""
        found, at = [], 0
        for size in self.sizes:
            found.append(self.ids[at : (at := at + size * _ID_BYTES)])
        return found

    def problem(self, tokens: Sequence[int], vocab: int, most: int = 2 * MOST_KEPT) -> str | None:
        """Why this cannot be what `tokens` [n] were drawn from, of ids below `vocab` and at most
        `most` for each; None when it can.
        """
        import numpy as np  # whoever reads records alone needs none

        if len(self.counts) != _COUNT_BYTES * len(tokens):
            return f"kept sets in {len(self.counts)} bytes for {len(tokens)} tokens"
        sizes = np.frombuffer(self.counts, "<u2").astype(np.int64)
        if len(self.ids) != _ID_BYTES * int(sizes.sum()):
            return f"kept sets of {sizes.sum()} ids in {len(self.ids)} bytes"
        if sizes.max(initial=0) > most:
            return f"a kept set of {sizes.max()} tokens, where {most} are the most"
        ids = np.frombuffer(self.ids, "<u4").astype(np.int64)
        if ids.max(initial=-1) >= vocab:
            return f"a kept set with the token {ids.max()}, outside the vocabulary of {vocab}"
        drawn, owner = np.asarray(tokens, np.int64), np.repeat(np.arange(len(sizes)), sizes)
        bad = sizes > 0
        bad[owner[ids == drawn[owner]]] = False
        bad[owner[1:][(np.diff(ids) <= 0) & (np.diff(owner) == 0)]] = True
        if bad.any():
            token = drawn[bad.argmax()]
            return f"a token {token} that is not of its kept set, or a set out of order"
        return None


def kept_ids(tokens: Sequence[int]) -> bytes:
    """The set of one token; `tokens` are in order."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def kept_tokens(ids: bytes) -> tuple[int, ...]:
    """What `kept_ids` was given."""
    return struct.unpack(f"<{len(ids) // _ID_BYTES}I", ids)


def joined(parts: Sequence[tuple[int, KeptTokens | None]]) -> KeptTokens | None:
    """Of stretches of so many tokens each, one after another."""
    if all(kept is None for _, kept in parts):
        return None
    each = [kept or KeptTokens(bytes(_COUNT_BYTES * count), b"") for count, kept in parts]
    return KeptTokens(b"".join(k.counts for k in each), b"".join(k.ids for k in each))


def kept_bytes(tokens: int, most: int) -> int:
    """That so many tokens with so large sets take."""
    return tokens * (_COUNT_BYTES + most * _ID_BYTES)
