"""Prompts computed in parts, beside what runs, and not at all as far as they are known.

    add ──> the oldest and the shortest ──step: at most so many tokens──> Filled
                 │ begins as another did                 │
                 v                                       v
              PrefixCache <──────── whole blocks, of finished answers too

A part's queries see the keys of all that its prompt has stored so far. Half of a step's tokens are
the oldest prompt's, so that it ends; the others go to those with the least left, so that a short
one does not wait for a long one. Of prompts that go on alike one is computed, and the others find
it in the cache.

Legend: Y layers, N tokens of the stream, A parts that are computed together, L longest of them,
        S most keys that one sees, H query heads, K key/value heads, P tokens of a prompt,
        D head size, E value head size
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interlock.engine.portable.passes import Forward, last_routes
from interlock.engine.portable.prefilling import PREFILL_TOKENS, Filled, PromptsToCompute
from interlock.engine.portable.prefix_cache import BLOCK, PrefixCache, Span, block_names
from interlock.engine.portable.prompts import Prompt
from interlock.engine.portable.schedule import Schedule
from interlock.models.attention import attention
from interlock.models.decoder import Decoder


class Started:
    """A prompt of which the first `past` tokens are computed."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.tokens = prompt.text
        self.names = block_names(self.tokens, prompt.request.owner)
        self.routes: list[bytes] = []  # of the first `past` tokens, where they are to be told
        self.k = self.v = torch.empty(0)  # [Y, K, P, *], once something is stored
        self.past = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.past

    @property
    def next_block(self) -> bytes | None:
        """The name of the block that its next token is in; None: of no whole one."""
        place = self.past // BLOCK
        return self.names[place] if place < len(self.names) else None

    def span(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        return self.k[:, :, first:end], self.v[:, :, first:end]


class PromptPart(NamedTuple):
    """The next `length` tokens of a prompt."""

    of: Started
    length: int

    @property
    def end(self) -> int:
        return self.of.past + self.length


class PromptChunks(PromptsToCompute):
    """At most `schedule.prefill_chunk` tokens a step; what is computed is kept for others."""

    def __init__(self, schedule: Schedule, decoder: Decoder, fused_above: int) -> None:
        arch = decoder.arch
        self._fused_above = fused_above
        self._a_step = schedule.prefill_chunk or sys.maxsize
        token_bytes = arch.kv_heads * (arch.head_dim + arch.value_dim) * decoder.dtype.itemsize
        self.prefixes = PrefixCache(schedule.prefix_cache_mb << 20, arch.layers * token_bytes)
        self._started: list[Started] = []  # oldest first

    @property
    def sequences(self) -> int:
        return sum(each.prompt.unfinished for each in self._started)

    def add(self, prompt: Prompt) -> None:
        self._started.append(Started(prompt))
        prompt.names = self._started[-1].names if self.prefixes.most_bytes else ()

    def forget(self, prompt: Prompt) -> None:
        self._started = [each for each in self._started if each.prompt is not prompt]

    def renew(self) -> None:
        self.prefixes.clear()
        for each in self._started:
            each.past, each.prompt.cached = 0, 0
            each.routes = []

    def clear(self) -> None:
        self.prefixes.clear()
        self._started.clear()

    def keep(self, tokens: Sequence[int], owner: str, span: Span, routes: Sequence[bytes]) -> None:
        self.prefixes.keep(block_names(tokens, owner), span, routes)

    def step(self, decoder: Decoder, forward: Forward) -> Iterator[Filled]:
        room = self._a_step
        while room and self._started:
            for each in self._started:
                self._reuse(each, decoder)
            parts = self._parts(min(room, PREFILL_TOKENS))
            self._compute(decoder, forward, parts)
            room -= sum(part.length for part in parts)
            whole = [part.of for part in parts if not part.of.left]
            self._started = [each for each in self._started if each.left]
            for each in whole:
                yield Filled([each.prompt], each.k[:, None], each.v[:, None])

    def _reuse(self, each: Started, decoder: Decoder) -> None:
        """Take what is known of it; its last token is computed, to know what follows."""
        first = each.past // BLOCK
        names = each.names[first : (len(each.tokens) - 1) // BLOCK]
        found = self.prefixes.find(names, each.prompt.routed)
        if not found:
            return
        self._make_room(each, decoder)
        begin, end = first * BLOCK, (first + len(found)) * BLOCK
        torch.cat([block.k for block in found], dim=2, out=each.k[:, :, begin:end])
        torch.cat([block.v for block in found], dim=2, out=each.v[:, :, begin:end])
        if each.prompt.routed:
            each.routes[begin:] = [route for block in found for route in block.routes]
        each.prompt.cached += end - each.past
        each.past = end

    def _make_room(self, each: Started, decoder: Decoder) -> None:
        arch, like = decoder.arch, decoder.embed
        if not each.k.numel():
            shape = arch.layers, arch.kv_heads, len(each.tokens)
            each.k = like.new_empty(*shape, arch.head_dim, dtype=decoder.dtype)
            each.v = like.new_empty(*shape, arch.value_dim, dtype=decoder.dtype)

    def _parts(self, room: int) -> list[PromptPart]:
        """What to compute in one forward pass of `room` tokens."""
        oldest, *others = self._started
        for_oldest = min(oldest.left, max(1, room // 2))
        taken, parts, room = {oldest.next_block} - {None}, [], room - for_oldest
        for each in sorted(others, key=lambda each: each.left):
            if room and each.next_block not in taken:
                parts.append(PromptPart(each, min(each.left, room)))
                room -= parts[-1].length
                taken |= {each.next_block} - {None}
        return [PromptPart(oldest, min(oldest.left, for_oldest + room)), *parts]

    def _compute(self, decoder: Decoder, forward: Forward, parts: Sequence[PromptPart]) -> None:
        """One forward pass."""
        for part in parts:
            self._make_room(part.of, decoder)
        place = decoder.embed.device
        attend = Further(parts, place, self._fused_above)
        stream = [token for each, n in parts for token in each.tokens[each.past : each.past + n]]
        hidden = forward(torch.tensor(stream, device=place), attend.positions, attend)
        routed = any(part.of.prompt.routed for part in parts)
        told = last_routes(decoder, len(hidden)) if routed else []
        at = 0
        for each, count in parts:
            if each.prompt.routed:
                each.routes += told[at : at + count]
            at += count
            each.past += count
            if not each.left:
                each.prompt.hidden, each.prompt.routes = hidden[at - 1].clone(), each.routes
            self.prefixes.keep(each.names[: each.past // BLOCK], each.span, each.routes)


class Further:
    """Attention of the next tokens of prompts, whose keys and values it stores with the past.

    The stream is the parts' tokens, one part after the other. Those of about equal lengths are
    computed together, padded.
    """

    def __init__(self, parts: Sequence[PromptPart], device: torch.device, fused_above: int) -> None:
        self._fused_above = fused_above
        self._parts = parts
        ranges = [torch.arange(part.of.past, part.end) for part in parts]
        self.positions = torch.cat(ranges).to(device)  # [N]
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.length)
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, part in enumerate(parts):
            alike[part.length.bit_length(), part.end.bit_length()].append(place)
        self._together = [_Together(parts, self._starts, places) for places in alike.values()]
        padded = torch.cat([each.rows.flatten() for each in self._together])
        real = torch.cat([each.real.flatten() for each in self._together])
        back = torch.empty(self._starts[-1], dtype=torch.long)
        back[padded[real]] = real.nonzero()[:, 0]
        self._back = back.to(device)  # [N] of the stream's tokens in all that is padded
        for each in self._together:
            each.rows, each.mask = each.rows.to(device), each.mask.to(device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        for start, part in zip(self._starts, self._parts, strict=False):
            new = slice(part.of.past, part.end)
            part.of.k[layer, :, new] = k[start : start + part.length].transpose(0, 1)
            part.of.v[layer, :, new] = v[start : start + part.length].transpose(0, 1)
        outs = []
        for each in self._together:
            queries = q.index_select(0, each.rows.flatten()).unflatten(0, each.rows.shape)
            seen = each.stored(layer)
            out = attention(queries, *seen, each.mask, scale, self._fused_above)
            outs.append(out.flatten(0, 1))
        return torch.cat(outs).index_select(0, self._back)


class _Together:
    """Parts that are padded to one length."""

    def __init__(
        self, parts: Sequence[PromptPart], starts: Sequence[int], places: Sequence[int]
    ) -> None:
        self._parts = [parts[place] for place in places]
        start = torch.tensor([starts[place] for place in places])[:, None]
        count = torch.tensor([part.length for part in self._parts])[:, None]
        past = torch.tensor([part.of.past for part in self._parts])[:, None]
        offset = torch.arange(int(count.max()))[None]
        self.real = offset < count  # [A, L]
        self.rows = torch.where(self.real, start + offset, 0)  # [A, L] of the stream
        self._most = max(part.end for part in self._parts)  # S
        self.mask = torch.arange(self._most) <= (past + offset)[..., None]  # [A, L, S]

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """k [A, S, K, D] and v [A, S, K, E]; a lone part's are where they lie."""
        if len(self._parts) == 1:
            (part,) = self._parts
            k, v = part.of.span(0, part.end)
            return k[layer, None].transpose(1, 2), v[layer, None].transpose(1, 2)
        ks, vs = [], []
        for part in self._parts:
            k, v = part.of.span(0, part.end)
            short = (0, 0, 0, self._most - part.end)
            ks.append(torch.nn.functional.pad(k[layer], short))
            vs.append(torch.nn.functional.pad(v[layer], short))
        return torch.stack(ks).transpose(1, 2), torch.stack(vs).transpose(1, 2)
