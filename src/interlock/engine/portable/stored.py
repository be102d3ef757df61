"""Where the keys and values of all that runs are.

    row of a sequence:  [ beginning ──────────────][ rest ─────]
                              │                        └ own row; all are as long as the longest
                              └ a row of a PromptCache, by length class, for all that begin with it

A beginning is a prompt; or what a prompt shares with others that run, so that it is there once; or,
of a sequence that is alone with its prompt, all that it has: its own row is emptied into a longer
beginning whenever it is SPILL tokens long. So one long answer does not make all rows long.

Legend: Y layers, A prompts, K key/value heads, P tokens, D head size, E value head size
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch

from interlock.engine.portable.kv_cache import Decode, KVCache, SharedPrompts
from interlock.engine.portable.prefix_cache import BLOCK, Span
from interlock.engine.portable.prompts import (
    KV,
    LONE_PROMPT,
    Kept,
    Prompt,
    PromptCache,
    Running,
    compact,
    length_class,
)

SPILL = 256  # tokens


class Stored:
    """Row i is of the i-th sequence that runs."""

    def __init__(self) -> None:
        self.own: KVCache | None = None
        self.caches: dict[int, PromptCache] = defaultdict(PromptCache)  # by longest beginning

    def put(self, prompts: Sequence[Prompt], k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep k [Y, A, K, P, D] and v [Y, A, K, P, E] of computed prompts."""
        self.own = self.own or KVCache(k, v)
        new: dict[int, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            there = self._shared_with(prompt)
            prompt.kept = there or _beginning(prompt)
            first = prompt.first_own
            if first < prompt.length:
                part = slice(place, place + 1), slice(None), slice(first, prompt.length)
                prompt.kv = k[:, *part], v[:, *part]
            if prompt.kept is not None and there is None:
                new[length_class(first)].append(place)
        for longest, places in new.items():
            kept = [each for place in places if (each := prompts[place].kept) is not None]
            width = max(each.length for each in kept)
            rows = slice(None) if len(places) == len(prompts) else places
            self.caches[longest].add(kept, k[:, rows, :, :width], v[:, rows, :, :width])

    def keep(self, prompt: Prompt, k: torch.Tensor, v: torch.Tensor) -> None:
        """Give a prompt a beginning of its own, k [Y, 1, K, P, D] and v [Y, 1, K, P, E]."""
        prompt.kept = Kept(k.shape[3])
        self.caches[length_class(k.shape[3])].add([prompt.kept], k, v)

    def start(self, row: int, prompt: Prompt) -> None:
        """A sequence of it gets this row, behind all others."""
        assert self.own is not None
        if prompt.kv is not None:
            self.own.append(row, *prompt.kv)
            prompt.kv = None

    def span(self, row: int, prompt: Prompt) -> Span:
        """Keys and values of a running sequence, by places in its text."""
        first_own = prompt.first_own

        def span(first: int, end: int) -> KV:
            assert self.own is not None
            parts = [self.own.span(row, max(first, first_own) - first_own, max(end - first_own, 0))]
            if prompt.kept is not None and first < first_own:
                cache = self.caches[length_class(first_own)]
                parts.insert(0, cache.span(prompt.kept, first, min(end, first_own)))
            k, v = ([part[which] for part in parts] for which in (0, 1))
            return torch.cat(k, dim=2), torch.cat(v, dim=2)

        return span

    def decode(self, running: Sequence[Running], prompts: Collection[Prompt]) -> Decode:
        """Attention of the newest token of each; `prompts` are those that are not done."""
        self._spill(running, prompts)
        assert self.own is not None
        stored = [each.stored for each in running]
        self.own.reserve(len(stored), max(stored) + 1)
        rows: dict[Kept | None, list[int]] = defaultdict(list)
        for row, each in enumerate(running):
            rows[each.prompt.kept].append(row)
        shared: list[SharedPrompts] = []
        for cache in self.caches.values():
            shared += cache.shared(rows)
        return Decode(self.own, stored, shared)

    def close_gaps(
        self, running: list[Running], kept: Sequence[bool], prompts: Collection[Prompt]
    ) -> list[Running]:
        """Keep these of the sequences, and of beginnings those of `prompts`."""
        running = compact(running, kept, self.own)
        self._forget(running, prompts)
        return running

    def _spill(self, running: Sequence[Running], prompts: Collection[Prompt]) -> None:
        long = [row for row, each in enumerate(running) if each.alone and each.stored >= SPILL]
        for row in long:
            prompt = running[row].prompt
            k, v = self.span(row, prompt)(0, prompt.first_own + running[row].stored)
            self.keep(prompt, k[:, None], v[:, None])
        if long:
            self._forget(running, prompts)

    def _forget(self, running: Sequence[Running], prompts: Collection[Prompt]) -> None:
        """Let go of beginnings that nobody has, and of what is behind the ends of rows."""
        wanted = {prompt.kept for prompt in prompts}
        for cache in self.caches.values():
            cache.compact(wanted)
        if self.own is not None:
            self.own.trim(max((each.stored for each in running), default=0))

    def _shared_with(self, prompt: Prompt) -> Kept | None:
        """The longest beginning of others, if what is left of the prompt fits into an own row."""
        names = set(prompt.names[max(0, (prompt.length - LONE_PROMPT - 1) // BLOCK) :])
        if prompt.lone or prompt.request.completions > 1 or not names:
            return None
        there = [each for cache in self.caches.values() for each in cache.kept]
        named = [each for each in there if each.name in names]
        return max(named, key=lambda each: each.length, default=None)


def _beginning(prompt: Prompt) -> Kept | None:
    """A new one: of what was known, others may be to come; else the prompt."""
    if prompt.lone:
        return None
    known = min(prompt.cached // BLOCK, len(prompt.names))
    alone = prompt.request.completions == 1
    if known and alone and prompt.length - known * BLOCK <= LONE_PROMPT:
        return Kept(known * BLOCK, prompt.names[known - 1])
    return Kept(prompt.length)
