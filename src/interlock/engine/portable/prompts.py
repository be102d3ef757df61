"""Prompts that are computed, and where their keys and values are.

    prompt of one completion, not long ──> Prompt.kv ──a slot is free──> its sequence's own row
    any other ───────────────────────────> PromptCache, by length class: one row for all sequences
    (what is where in the end: stored.py)

Legend: Y layers, A prompts, K key/value heads, S or P tokens, D head size, E value head size,
        d hidden size
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch

from interlock.engine.base import Progress, Request
from interlock.engine.guides import Guide
from interlock.engine.portable.kv_cache import KVCache, SharedPrompts
from interlock.engine.portable.sampler import Noise
from interlock.engine.sequence import NOT_TOLD, LiveSequence, TokenReplay
from interlock.engine.vocabulary import Vocabulary
from interlock.records.serving import Alternatives

SHORTEST_CLASS = 32  # prompts up to this length share a cache
# A prompt of one completion, if no longer than this, is kept in the sequence's own row: one
# attention instead of two that are merged. All rows are as long as the longest, hence the bound.
LONE_PROMPT = 192
CROWD = 4  # sequences on one shared beginning, from which on it is attended to by itself

Item = TypeVar("Item", "Kept", "Running")
KV = tuple[torch.Tensor, torch.Tensor]  # k [Y, n, K, S, D] and v [Y, n, K, S, E]


class Kept:
    """A row of a PromptCache: the first `length` tokens of one or several texts.

    `name`: of the block that ends there (prefix_cache.py), so that other texts find it; None: it is
    for one prompt.
    """

    def __init__(self, length: int, name: bytes | None = None) -> None:
        self.length, self.name = length, name


class Prompt:
    """A request with what its sequences share."""

    def __init__(self, name: str, request: Request, number: int) -> None:
        self.name, self.request = name, request
        self.number = number  # in the order of being added
        # What its only sequence has drawn before is computed with the prompt, as a part of it.
        self.begun = len(begun := request.begun)
        self.text = [*request.prompt_tokens, *begun] if begun else request.prompt_tokens
        self.length = len(self.text)
        self.lone = request.completions == 1 and self.length <= LONE_PROMPT  # in the row of its own
        self.unfinished = request.completions
        self.cached = 0  # tokens whose keys and values were there already
        self.hidden = torch.empty(0)  # [d], of the last token, once it is prefilled
        self.routed = request.replay.routes is not None
        self.routes: list[bytes] = []  # of its tokens, once it is computed, where they are told
        self.names: Sequence[bytes] = ()  # of its blocks, if others may begin alike
        # What its sequences begin with, once it is computed; None: all of it is in the own row.
        self.kept: Kept | None = None
        self.kv: KV | None = None  # for the own row of the one that has no slot yet

    @property
    def first_own(self) -> int:
        """The place in its text of the first token that is in a sequence's own row."""
        return 0 if self.kept is None else self.kept.length

    @property
    def last_route(self) -> bytes:
        """Of the token that the next one is drawn behind."""
        return self.routes[-1] if self.routes else b""

    @property
    def done(self) -> bool:
        return self.unfinished == 0


class Running(LiveSequence):
    """A sequence with its prompt, its guide, if its request has rules, and its noise."""

    def __init__(
        self, prompt: Prompt, number: int, vocabulary: Vocabulary, guide: Guide | None
    ) -> None:
        super().__init__(prompt.name, prompt.request, number, vocabulary)
        self.prompt, self.guide = prompt, guide
        self._noise = Noise(prompt.request.seed, prompt.request.problem_id, number)

    @property
    def fresh(self) -> list[int]:
        """What was drawn behind the prompt's text."""
        return self.tokens[self.prompt.begun :] if self.prompt.begun else self.tokens

    @property
    def text_routes(self) -> list[bytes]:
        """Of all that it has read, its newest token apart; [] where they are not known as a whole:
        of several versions, or not told."""
        drawn = self.routes[self.prompt.begun :]
        return [*self.prompt.routes, *drawn[1:]] if drawn and self.prompt.routes else []

    @property
    def stored(self) -> int:
        """Tokens whose keys and values are in its row: all but the newest."""
        return self.prompt.length - self.prompt.first_own + len(self.fresh) - 1

    @property
    def alone(self) -> bool:
        """Whether its prompt is for no other sequence."""
        return self.request.completions == 1

    def told(self, progress: Progress) -> Progress:
        """With its first token, what of its prompt was there already."""
        if len(self.fresh) > 1:
            return progress
        return progress._replace(cached=min(self.prompt.cached, len(self.request.prompt_tokens)))

    def push(
        self,
        token: int,
        logprob: float,
        version: int,
        top: Alternatives | None = None,
        told: TokenReplay = NOT_TOLD,
    ) -> Progress:
        if self.guide is not None:
            self.guide.push(token)
            self.cut = bool(self.guide.broken)
        if self.number == self.request.first and not self.fresh:
            before = len(self.request.prompt_tokens) - 1
            self.prompt_routes = b"".join(self.prompt.routes[:before])
        return super().push(token, logprob, version, top, told)

    def noise(self) -> tuple[float, float]:
        """The uniforms of the next token."""
        return self._noise.at(len(self.tokens))


class PromptCache:
    """Beginnings of one length class, so that none is padded to more than twice its length.

    `kept[i]` is row i of the cache.
    """

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.cache: KVCache | None = None

    def add(self, kept: Sequence[Kept], k: torch.Tensor, v: torch.Tensor) -> None:
        """k and v [Y, n, K, P, *] of as many."""
        if self.cache is None:
            self.cache = KVCache(k, v)
        self.cache.append(len(self.kept), k, v)
        self.kept += kept

    def span(self, kept: Kept, first: int, end: int) -> KV:
        """k [Y, K, S, D] and v [Y, K, S, E] of these tokens of one."""
        assert self.cache is not None
        return self.cache.span(self.kept.index(kept), first, end)

    def compact(self, wanted: Collection[Kept | None]) -> None:
        """Forget all others."""
        self.kept = compact(self.kept, [each in wanted for each in self.kept], self.cache)
        if not self.kept:
            self.cache = None

    def shared(self, rows: Mapping[Kept | None, list[int]]) -> list[SharedPrompts]:
        """As attention wants them; `rows` of the sequences that begin with each.

        One with many sequences goes by itself: the others would be padded to as many.
        """
        members = [rows.get(each, []) for each in self.kept]
        if self.cache is None or not any(members):
            return []
        lengths, parts = [each.length for each in self.kept], []
        for place, each in enumerate(self.kept):
            if each.name is not None and len(members[place]) >= CROWD:
                crowd = [members[place]]
                parts.append(SharedPrompts(self.cache, [each.length], crowd, place))
                members[place] = []
        return [*parts, SharedPrompts(self.cache, lengths, members)] if any(members) else parts


def length_class(length: int) -> int:
    """The longest prompt that is kept with one of `length` tokens: a power of two."""
    return max(SHORTEST_CLASS, 1 << (length - 1).bit_length())


def compact(items: list[Item], kept: Sequence[bool], cache: KVCache | None) -> list[Item]:
    """The kept items in the first places: the last of them move into the gaps, in the cache too."""
    count = sum(kept)
    gaps = [place for place in range(count) if not kept[place]]
    movers = [place for place in range(count, len(items)) if kept[place]]
    moved = dict(zip(gaps, movers, strict=True))
    if moved and cache is not None:
        cache.move(movers, gaps)
    return [items[moved.get(place, place)] for place in range(count)]
