"""Keys and values of running completions, and the attention that reads them.

    prompts ──Prefill──> keys and values of the prompts ──> KVCache: one row per group
    tokens  ──Decode───┬ own tokens: ─────────────────────  KVCache: one row per completion
                       └ prompt: all completions of a group against its one row
                         the two softmaxes are merged by their log-sum-exps

A completion that shares its prompt with no other may have it in its own row, before its own tokens.

Only basic operators, on any device. Active rows of a cache are always its first ones: attention
reads a dense slice and never gathers keys or values.

Legend: Y layers, R rows of a cache, B completions decoded, A groups, C most completions of a
        group, H query heads, K key/value heads, S tokens of a cache's row, P prompt tokens,
        D head size, E value head size, N tokens of the stream
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interlock.models.attention import FUSED_ABOVE, Groups

_BLOCK = 16  # tokens by which rows grow at the least


class KVCache:
    """k [Y, R, K, S, D] and v [Y, R, K, S, E]. What was never written is zero, never garbage: a
    masked score multiplies it by 0.

    A key lies in memory token by token for each of its elements, so that the product of a few
    queries with all keys reads rows: on a CPU twice as fast as columns.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        """An empty cache for tensors laid out like k [Y, *, K, *, D] and v [Y, *, K, *, E]."""
        self.k, self.v = k[:, :0, :, :0], v[:, :0, :, :0]

    @property
    def length(self) -> int:
        """Tokens that fit into a row."""
        return self.k.shape[3]

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens; what is stored stays.

        Rows at least double and lengths grow by half, so that copying stays cheap: it takes the
        time of a decoding step.
        """
        have_rows, have = self.k.shape[1], self.length
        if rows > have_rows:
            rows = max(rows, 2 * have_rows)
        if length > have:
            length = _blocks(max(length, have + have // 2), _BLOCK)
        if rows > have_rows or length > have:
            rows, length = max(rows, have_rows), max(length, have)
            self.k = _grown(self.k.mT, (rows, self.k.shape[4], length)).mT
            self.v = _grown(self.v, (rows, length, self.v.shape[4]))

    def trim(self, length: int) -> None:
        """Cut rows of which the first quarter is enough; the longest has `length` tokens."""
        enough = _blocks(max(1, length), _BLOCK)
        if 4 * enough <= self.length:
            k, v = self.k[:, :, :, :enough], self.v[:, :, :, :enough]
            self.k, self.v = self.k[:, :0, :, :0], self.v[:, :0, :, :0]
            self.append(0, k, v)

    def read(self, length: int) -> int:
        """How far rows are read, the longest of which has `length` tokens.

        A little further, so that a few steps on end are of one shape (recorded_steps.py).
        """
        return min(self.length, _blocks(length, max(_BLOCK, 1 << max(0, length.bit_length() - 4))))

    def append(self, rows: int, k: Tensor, v: Tensor) -> None:
        """Store k [Y, n, K, P, D] and v [Y, n, K, P, E] behind the first `rows` rows."""
        end, length = rows + k.shape[1], k.shape[3]
        self.reserve(end, length)
        self.k[:, rows:end, :, :length] = k
        self.v[:, rows:end, :, :length] = v

    def span(self, row: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """k [Y, K, *, D] and v [Y, K, *, E] of these places in a row."""
        return self.k[:, row, :, first:end], self.v[:, row, :, first:end]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole rows."""
        self.k[:, list(targets)] = self.k[:, list(sources)]
        self.v[:, list(targets)] = self.v[:, list(sources)]


def _blocks(length: int, block: int) -> int:
    """`length` in whole blocks."""
    return -(-length // block) * block


def _grown(x: Tensor, to: tuple[int, int, int]) -> Tensor:
    """x [Y, R, K, *, *] with as many rows, and elements in the last two dimensions, as `to`."""
    layers, rows, heads, height, width = x.shape
    grown = x.new_zeros(layers, to[0], heads, *to[1:])
    grown[:, :rows, :, :height, :width] = x
    return grown


class Prefill:
    """Attention over packed prompts that keeps every layer's keys and values.

    The stream is the `common` tokens that all prompts begin with, computed once, and then the rest
    of each prompt: `rests` are their lengths, none 0.
    """

    def __init__(
        self,
        common: int,
        rests: Sequence[int],
        device: torch.device,
        fused_above: int = FUSED_ABOVE,
    ) -> None:
        if common:
            self._groups = Groups([common], [rests], device, fused_above)
        else:
            self._groups = Groups(rests, [[] for _ in rests], device, fused_above)
        self.positions = self._groups.positions  # [N]
        self.last = common - 1 + torch.tensor(list(rests), device=device).cumsum(0)  # [A], rows
        own = self.last[:, None] + 1 - torch.tensor(list(rests), device=device)[:, None]
        offset = torch.arange(common + max(rests), device=device)[None]
        rows = torch.where(offset < common, offset, own + offset - common)
        # Behind a prompt's end stand rows of the next one, or the last row: anything finite does.
        self._rows = rows.clamp(max=len(self.positions) - 1)  # [A, P]
        self._k: list[Tensor] = []
        self._v: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._k.append(k[self._rows].transpose(1, 2))
        self._v.append(v[self._rows].transpose(1, 2))
        return self._groups(layer, q, k, v, scale)

    def stored(self) -> tuple[Tensor, Tensor]:
        """k [Y, A, K, P, D] and v [Y, A, K, P, E] of a finished forward pass."""
        return torch.stack(self._k), torch.stack(self._v)


class SharedPrompts:
    """The prompts in one cache, as the completions that share them see it in one step."""

    def __init__(
        self,
        cache: KVCache,
        prompts: Sequence[int],
        members: Sequence[Sequence[int]],
        first: int = 0,
    ) -> None:
        """`prompts`: lengths of the cache's rows from `first` on; `members`: the completions of
        each, if any.
        """
        device, most = cache.k.device, max(len(rows) for rows in members)
        padded = [[*rows, *[0] * (most - len(rows))] for rows in members]
        rows, span = slice(first, first + len(prompts)), cache.read(max(prompts))
        self.k, self.v = cache.k[:, rows, :, :span], cache.v[:, rows, :, :span]
        self.members = members
        self.rows = torch.tensor(padded, device=device)  # [A, C]
        self.mask = _seen(prompts, span, device)  # [A, 1, 1, P]


class Decode:
    """Attention of one new token per completion over the group's prompt and its own past.

    Writes the token's keys and values into `own` first. A completion in none of `shared` has its
    prompt in its own row.
    """

    def __init__(
        self, own: KVCache, lengths: Sequence[int], shared: Sequence[SharedPrompts]
    ) -> None:
        """`lengths`: tokens of each completion that are in `own` already."""
        device = own.k.device
        self._own, self._shared = own, shared
        self._span = own.read(max(lengths) + 1)  # S
        self._mask = _seen([length + 1 for length in lengths], self._span, device)  # [B, 1, 1, S]
        self._rows = torch.arange(len(lengths), device=device)
        self._at = torch.tensor(lengths, device=device)  # [B], the new token's place in its row
        nowhere = sum(part.rows.numel() for part in shared)
        places = self._places(len(lengths), nowhere)
        self._where = torch.tensor(places, device=device)  # [B]
        self._alone = nowhere in places

    @property
    def inputs(self) -> list[Tensor]:
        """What this step has of its own; all else is in the caches."""
        own = [self._mask, self._rows, self._at, self._where]
        return own + [each for part in self._shared for each in (part.rows, part.mask)]

    @property
    def kind(self) -> object:
        """Equal for steps that ask for the same kernels on the same caches."""
        caches = [
            self._own.k,
            self._own.v,
            *(kv for part in self._shared for kv in (part.k, part.v)),
        ]
        places = [(each.data_ptr(), each.shape, each.stride()) for each in caches]
        return self._alone, tuple(places), tuple(each.shape for each in self.inputs)

    def _places(self, count: int, nowhere: int) -> list[int]:
        """Where each completion stands in the concatenation of all padded `SharedPrompts.rows`."""
        places, base = [nowhere] * count, 0
        for shared in self._shared:
            groups, most = shared.rows.shape
            for group, members in enumerate(shared.members):
                for offset, row in enumerate(members):
                    places[row] = base + group * most + offset
            base += groups * most
        return places

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        count, kv_heads, _ = k.shape
        own_k, own_v = self._own.k[layer], self._own.v[layer]  # [R, K, S, *]
        own_k[self._rows, :, self._at] = k
        own_v[self._rows, :, self._at] = v
        q = (q * scale).unflatten(1, (kv_heads, -1))  # [B, K, H/K, D]
        seen_k, seen_v = own_k[:count, :, : self._span], own_v[:count, :, : self._span]
        if not self._shared:
            weights = _scores(q, seen_k, self._mask).softmax(-1)
            return (weights.to(v.dtype) @ seen_v).flatten(1, 2)
        own, own_lse = _attend(q, seen_k, seen_v, self._mask)
        parts = [_attend_shared(q, shared, layer) for shared in self._shared]
        if self._alone:  # a place behind all others, without weight
            parts.append((torch.zeros_like(own[:1]), torch.full_like(own_lse[:1], -torch.inf)))
        prompt = torch.cat([out for out, _ in parts])[self._where]  # [B, K, H/K, E]
        prompt_lse = torch.cat([lse for _, lse in parts])[self._where]  # [B, K, H/K]
        share = torch.sigmoid(prompt_lse - own_lse)[..., None]
        return own.float().lerp(prompt.float(), share).to(q.dtype).flatten(1, 2)


def _attend_shared(q: Tensor, shared: SharedPrompts, layer: int) -> tuple[Tensor, Tensor]:
    """q [B, K, H/K, D] -> out [A*C, K, H/K, E] and log-sum-exp [A*C, K, H/K], padded rows too."""
    most = shared.rows.shape[1]
    # [A, C, K, H/K, D] -> [A, K, C*H/K, D]: a group's queries are one matrix against its prompt.
    rows = q[shared.rows].transpose(1, 2).flatten(2, 3)
    out, lse = _attend(rows, shared.k[layer], shared.v[layer], shared.mask)
    out = out.unflatten(2, (most, -1)).transpose(1, 2).flatten(0, 1)
    return out, lse.unflatten(2, (most, -1)).transpose(1, 2).flatten(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """q [*, K, M, D] (scaled), k [*, K, S, D], v [*, K, S, E], mask [*, 1, 1, S] fp32, 0 or -inf
    -> out [*, K, M, E] and the log-sum-exp of the scores [*, K, M] fp32. Softmax in fp32.
    """
    scores = _scores(q, k, mask)
    weights = scores.log_softmax(-1)
    lse = scores[..., 0] - weights[..., 0]  # the first key is always seen
    return weights.exp_().to(v.dtype) @ v, lse


def _scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """[*, K, M, S] fp32, of tensors as `_attend` has them."""
    return (q @ k.mT).float().add_(mask)


def _seen(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """[n, 1, 1, width] fp32: 0 for the first lengths[i] places of row i, -inf for the rest."""
    length = torch.tensor(list(lengths), device=device)[:, None]
    hidden = torch.arange(width, device=device) >= length
    return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]
