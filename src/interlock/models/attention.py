"""Who sees whom: attention over a flat stream of tokens that has no batch dimension.

The decoder computes q, k and v for N tokens in a row and hands them to an `Attend`, which knows how
those tokens belong together. So one decoder serves packed training, prefill and cached decoding,
and none of them pads anything but the attention itself.

    Groups    prompts, each followed by its completions; a prompt is computed once for all of them
    (the engine's cached decoding is in engine/portable/kv_cache.py)

Legend: N tokens of the stream, B groups, C completions of all groups, P longest prompt, L longest
        completion, S keys a query may see, H query heads, K key/value heads, D head size, E value
        head size
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Spans of more keys than this go to the fused kernel, whose memory does not grow with them; for
# shorter ones plain matrix products are faster. Where the two are even differs (chips/probe.py);
# this is for what is not measured. Whether gradients are recorded plays no part: the same tokens
# shall give the same bits with and without.
FUSED_ABOVE = 512


class Attend(Protocol):
    """q [N, H, D], k [N, K, D], v [N, K, E] of one layer -> [N, H, E]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, fused_above: int = FUSED_ABOVE
) -> Tensor:
    """Softmax attention with grouped query heads. The softmax is computed in fp32.

    q [B, L, H, D], k [B, S, K, D], v [B, S, K, E], mask bool broadcastable to [B, L, S], True where
    seen -> [B, L, H, E]
    """
    if k.shape[1] > fused_above:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask[:, None],
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2)
    return _explicit(q, k, v, mask, scale)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`attention` as matrix products. Of all [B, H, L, S], backward keeps one, the weights."""
    (batch, length, heads, size), (_, span, kv_heads, v_size) = q.shape, v.shape
    q = (q * scale).view(batch, length, kv_heads, -1, size).permute(0, 2, 3, 1, 4)
    scores = q.reshape(batch, kv_heads, -1, size) @ k.permute(0, 2, 3, 1)  # [B, K, H/K L, S]
    # Added in place, the mask costs no copy and no backward operation. Not -inf: a row that sees
    # nothing must give some number, not NaN.
    unseen = torch.finfo(q.dtype).min
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, unseen)
    scores.view(batch, kv_heads, -1, length, span).add_(bias[:, None, None])
    out = scores.softmax(-1) @ v.transpose(1, 2)
    return out.view(batch, heads, length, v_size).transpose(1, 2)


class Groups:
    """Packed groups: prompts are causal; a completion sees its own prompt and, causally, itself.

    The stream is, group after group, the prompt's tokens and then each completion's. `prompts[i]`
    and `completions[i]` are the lengths of group i; no prompt is empty, a completion may be, and a
    group may have none. `positions` [N] counts each completion on from its prompt.

        Groups([3], [[2, 1]], device)  # one prompt of 3 tokens, completions of 2 and of 1
        # stream     p p p a a b
        # positions  0 1 2 3 4 3       b sees the prompt and itself, and nothing of a
    """

    def __init__(
        self,
        prompts: Sequence[int],
        completions: Sequence[Sequence[int]],
        device: torch.device,
        fused_above: int = FUSED_ABOVE,
    ) -> None:
        prompt_starts, starts, lengths, owners, positions, at = [], [], [], [], [], 0
        for group, (prompt, members) in enumerate(zip(prompts, completions, strict=True)):
            assert prompt > 0
            prompt_starts.append(at)
            positions.append(torch.arange(prompt))
            at += prompt
            for length in members:
                starts.append(at)
                lengths.append(length)
                owners.append(group)
                positions.append(torch.arange(prompt, prompt + length))
                at += length
        self.positions = torch.cat(positions).to(device)  # [N]
        self._fused_above = fused_above
        prompt_rows, prompt_real = _padded(prompt_starts, prompts)  # [B, P]
        rows, real = _padded(starts, lengths)  # [C, L]
        owner = torch.tensor(owners, dtype=torch.long)  # [C]
        padded = torch.cat([prompt_rows.flatten(), rows.flatten()])
        used = torch.cat([prompt_real.flatten(), real.flatten()])
        places = torch.empty(at, dtype=torch.long)
        places[padded[used]] = used.nonzero()[:, 0]
        self._places = places.to(device)  # [N] of the stream's tokens in `padded`
        self.prompt_rows, self._rows = prompt_rows.to(device), rows.to(device)
        self._owners = owner.to(device)
        self._prompt_mask = _causal(prompt_rows.shape[1])[None].to(device)  # [1, P, P]
        own = _causal(rows.shape[1]).expand(len(lengths), -1, -1)
        seen = prompt_real[owner, None].expand(-1, rows.shape[1], -1)
        self._mask = torch.cat([seen, own], dim=2).to(device)  # [C, L, P + L]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        prompts, rows = self.prompt_rows, self._rows
        prompt_k, prompt_v = _gather(k, prompts), _gather(v, prompts)  # [B, P, K, *]
        how = scale, self._fused_above
        out = attention(_gather(q, prompts), prompt_k, prompt_v, self._prompt_mask, *how)
        padded = out.flatten(0, 1)  # [B P, H, E]
        if rows.numel():
            own_prompt_k = repeated(prompt_k, self._owners)  # [C, P, K, *]
            own_prompt_v = repeated(prompt_v, self._owners)
            span_k = torch.cat([own_prompt_k, _gather(k, rows)], dim=1)
            span_v = torch.cat([own_prompt_v, _gather(v, rows)], dim=1)
            out = attention(_gather(q, rows), span_k, span_v, self._mask, *how)
            padded = torch.cat([padded, out.flatten(0, 1)])
        return padded.index_select(0, self._places)


def causal(length: int, device: torch.device, fused_above: int = FUSED_ABOVE) -> Groups:
    """One plain sequence of `length` tokens."""
    return Groups([length], [[]], device, fused_above)


def repeated(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], where rows [A] may name a row of x [N, …] more than once -> [A, …].

    The gradients of a row are added up in the same order every time. Those of x[rows] are not on a
    CPU with several threads, and those of index_select not on a GPU.
    """
    return F.embedding(rows, x.flatten(1)).unflatten(1, x.shape[1:])


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """x [N, …], rows [A, B] -> [A, B, …]. On CPUs twice as fast, there and back, as x[rows].

    Only padding repeats a row, and its gradient is zero, so the order in which a device adds up the
    gradients cannot show.
    """
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _padded(starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Stream rows of each piece, padded on the right with row 0, and which of them are real."""
    width = max(lengths, default=0)
    start = torch.tensor(list(starts), dtype=torch.long)[:, None]
    length = torch.tensor(list(lengths), dtype=torch.long)[:, None]
    offset = torch.arange(width)[None]
    real = offset < length
    return torch.where(real, start + offset, 0), real


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()
