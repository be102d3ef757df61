"""Cached attention against plain attention, completion by completion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_close
from torch import Tensor

from interlock.engine.portable.kv_cache import Decode, KVCache, Prefill, SharedPrompts

CPU = torch.device("cpu")
SCALE = 0.3


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query q [H, D] over k [S, K, D] and v [S, K, E] -> [H, E]."""
    repeat = q.shape[0] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)  # [S, H, *]
    weights = (torch.einsum("hd,shd->hs", q, k) * SCALE).softmax(-1)
    return torch.einsum("hs,she->he", weights, v)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=3)),
        max_size=4,
    ),
    alone=st.lists(st.integers(1, 40), max_size=3),
    heads=st.sampled_from([(4, 2), (3, 3), (4, 1)]),
    caches=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_one_decoding_step_is_plain_attention(
    groups: list[tuple[int, list[int]]],
    alone: list[int],
    heads: tuple[int, int],
    caches: int,
    seed: int,
) -> None:
    """`groups`: prompt length and tokens already decoded of each member. `alone`: tokens of those
    that have their prompt in their own row. Rows are shuffled.
    """
    if not alone and not any(members for _, members in groups):
        alone = [1]
    noise = torch.Generator().manual_seed(seed)
    queries, kv_heads = heads

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    prompts = [(random(1, 1, kv_heads, n, 5), random(1, 1, kv_heads, n, 7)) for n, _ in groups]
    prompts += [(random(1, 1, kv_heads, 0, 5), random(1, 1, kv_heads, 0, 7))]
    owners = [group for group, (_, members) in enumerate(groups) for _ in members]
    owners += [len(groups)] * len(alone)
    lengths = [length for _, members in groups for length in members] + alone
    order = torch.randperm(len(lengths), generator=noise).tolist()
    owners, lengths = [owners[i] for i in order], [lengths[i] for i in order]
    pasts = [(random(1, 1, kv_heads, n, 5), random(1, 1, kv_heads, n, 7)) for n in lengths]

    own = KVCache(*pasts[0])
    for row, past in enumerate(pasts):
        own.append(row, *past)
    own.reserve(len(pasts), max(lengths) + 1)
    shared = []
    for first in range(caches):
        there = range(first, len(groups), caches)
        members = [[row for row, owner in enumerate(owners) if owner == group] for group in there]
        if any(members):
            cache = KVCache(*prompts[0])
            for row, group in enumerate(there):
                cache.append(row, *prompts[group])
            shared.append(SharedPrompts(cache, [groups[group][0] for group in there], members))

    q, k, v = (
        random(len(lengths), n, size) for n, size in ((queries, 5), (kv_heads, 5), (kv_heads, 7))
    )
    out = Decode(own, lengths, shared)(0, q, k, v, SCALE)
    exact, plain = [], []
    for row, owner in enumerate(owners):
        keys, values = (
            torch.cat([prompts[owner][i][0, 0], pasts[row][i][0, 0], new[row][:, None]], 1)
            for i, new in ((0, k), (1, v))
        )
        row_of = q[row], keys.transpose(0, 1), values.transpose(0, 1)
        exact.append(_plain(*(x.double() for x in row_of)))
        plain.append(_plain(*row_of))
    assert_close(out, torch.stack(exact), torch.stack(plain))


def test_large_scores_on_one_side_do_not_overflow() -> None:
    k = torch.full((1, 1, 1, 1, 1), 100.0)
    cache, own = KVCache(k, k), KVCache(k, k)
    cache.append(0, k, k)
    own.reserve(1, 1)
    decode = Decode(own, [0], [SharedPrompts(cache, [1], [[0]])])
    token = torch.full((1, 1, 1), -100.0)
    # Scores are 10,000 for the prompt and -10,000 for the token itself.
    assert decode(0, -token, token, token, 1.0).item() == 100.0


def test_prefill_stores_what_the_decoder_computed() -> None:
    attend = Prefill(0, [2, 3], CPU)
    assert attend.last.tolist() == [1, 4]
    assert attend.positions.tolist() == [0, 1, 0, 1, 2]
    k = torch.arange(1.0, 6.0).view(5, 1, 1)
    out = attend(0, torch.zeros(5, 1, 1), k, 10 * k, 1.0)
    # Queries of zero average the values seen: causally, and inside one prompt.
    assert out.flatten().tolist() == [10.0, 15.0, 30.0, 35.0, 40.0]
    stored_k, stored_v = attend.stored()
    assert stored_k.shape == (1, 2, 1, 3, 1)
    assert stored_k[0, 0, 0, :2, 0].tolist() == [1.0, 2.0]
    assert stored_v[0, 1, 0, :, 0].tolist() == [30.0, 40.0, 50.0]


def test_prefill_stores_the_common_beginning_with_every_prompt() -> None:
    attend = Prefill(2, [1, 3], CPU)  # the stream: two common tokens, one, three
    assert attend.positions.tolist() == [0, 1, 2, 2, 3, 4]
    assert attend.last.tolist() == [2, 5]
    k = torch.arange(1.0, 7.0).view(6, 1, 1)
    out = attend(0, torch.zeros(6, 1, 1), k, 10 * k, 1.0).flatten().tolist()
    assert out == pytest.approx([10, 15, 20, 70 / 3, 30, 36])
    stored_k, stored_v = attend.stored()
    assert stored_k[0, 0, 0, :3, 0].tolist() == [1, 2, 3]
    assert stored_v[0, 1, 0, :, 0].tolist() == [10, 20, 40, 50, 60]


def test_a_cache_keeps_its_rows_when_it_grows_and_moves_them_whole() -> None:
    k = torch.arange(1.0, 7.0).view(1, 3, 1, 2, 1)  # rows 1 2, 3 4 and 5 6
    cache = KVCache(k, -k)
    cache.append(0, k, -k)
    cache.reserve(5, 33)
    assert cache.length == 48  # whole blocks of 16
    assert cache.k[0, :3, 0, :2, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert cache.v[0, 2, 0, :3, 0].tolist() == [-5, -6, 0]
    assert cache.k.sum() == 21
    cache.move([2], [0])
    assert cache.k[0, :3, 0, :2, 0].tolist() == [[5, 6], [3, 4], [5, 6]]
    assert cache.v[0, 0, 0, :2, 0].tolist() == [-5, -6]


def test_rows_of_which_a_quarter_would_do_are_cut() -> None:
    k = torch.arange(1.0, 7.0).view(1, 3, 1, 2, 1)
    cache = KVCache(k, -k)
    cache.append(0, k, -k)
    cache.reserve(3, 65)  # 80
    cache.trim(17)
    assert cache.length == 80  # of 64, more than a quarter
    cache.trim(16)
    assert cache.length == 16 and cache.k.shape[1] == 3
    assert cache.k[0, :, 0, :2, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert cache.v[0, 2, 0, :3, 0].tolist() == [-5, -6, 0]
    before = cache.k
    cache.trim(0)
    assert cache.k is before  # a block stays as it is
