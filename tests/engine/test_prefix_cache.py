"""Blocks of keys and values: what is found, what is dropped, and how many bytes there are."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlock.engine.portable.prefix_cache import BLOCK, PrefixCache, block_names

TOKEN_BYTES = 2 * 3 * (5 + 7) * 4  # two layers, three heads, keys of 5 and values of 7 float32


def values(tokens: list[int]) -> tuple[Tensor, Tensor]:
    """k [2, 3, S, 5] and v [2, 3, S, 7]: each place holds a number of all tokens up to there."""
    seen = torch.tensor([hash(tuple(tokens[: end + 1])) % 2**20 for end in range(len(tokens))])
    numbers = seen.float()[None, None, :, None]
    return numbers.expand(2, 3, -1, 5), -numbers.expand(2, 3, -1, 7)


def kept(cache: PrefixCache, tokens: list[int]) -> None:
    k, v = values(tokens)
    cache.keep(block_names(tokens, ""), lambda first, end: (k[:, :, first:end], v[:, :, first:end]))


def found(cache: PrefixCache, tokens: list[int]) -> int:
    """How many tokens are known; their keys and values are the right ones."""
    blocks, (k, v) = cache.find(block_names(tokens, "")), values(tokens)
    for place, (have_k, have_v, _) in enumerate(blocks):
        at = slice(place * BLOCK, (place + 1) * BLOCK)
        assert have_k.equal(k[:, :, at]) and have_v.equal(v[:, :, at])
        size = (have_k.untyped_storage().nbytes() + have_v.untyped_storage().nbytes()) // BLOCK
        assert size == TOKEN_BYTES, "a view that holds more than it shows"
    return len(blocks) * BLOCK


def test_a_block_is_named_by_all_tokens_up_to_its_end() -> None:
    text = list(range(3 * BLOCK + 5))
    names = block_names(text, "")
    assert len(names) == len(set(names)) == 3
    assert block_names(text[: 2 * BLOCK], "") == names[:2]
    assert block_names([9, *text[1:]], "")[2] != names[2]
    assert block_names(text[: BLOCK - 1], "") == []
    assert not set(block_names(text, "another")) & set(names), "found by who did not ask it"


def test_a_text_is_found_as_far_as_it_begins_like_another() -> None:
    cache = PrefixCache(1 << 20, TOKEN_BYTES)
    first = list(range(100))
    kept(cache, first)
    assert found(cache, first) == 96
    assert found(cache, first[:50] + [7] * 50) == 48
    assert found(cache, [7, *first]) == 0
    assert cache.held_bytes == 96 * TOKEN_BYTES
    kept(cache, first[:50] + [7] * 50)  # three more blocks
    assert cache.held_bytes == (96 + 48) * TOKEN_BYTES
    cache.clear()
    assert found(cache, first) == 0 and cache.held_bytes == 0


def test_what_was_used_last_stays_and_ends_go_before_beginnings() -> None:
    cache = PrefixCache(6 * BLOCK * TOKEN_BYTES, TOKEN_BYTES)
    one, two, three = ([name] * (2 * BLOCK) for name in (1, 2, 3))
    for text in (one, two, three):
        kept(cache, text)
    assert found(cache, one) == 2 * BLOCK  # used again: two is the oldest
    kept(cache, [4] * BLOCK)
    assert [found(cache, each) // BLOCK for each in (one, two, three)] == [2, 1, 2]


def test_a_text_longer_than_the_memory_is_kept_as_far_as_that_goes() -> None:
    cache = PrefixCache(3 * BLOCK * TOKEN_BYTES, TOKEN_BYTES)
    kept(cache, [5] * 20)
    kept(cache, list(range(200)))
    assert found(cache, list(range(200))) == 3 * BLOCK
    assert cache.held_bytes == 3 * BLOCK * TOKEN_BYTES
    nothing = PrefixCache(BLOCK * TOKEN_BYTES - 1, TOKEN_BYTES)
    kept(nothing, list(range(200)))
    assert nothing.held_bytes == 0


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.booleans()), max_size=30
    ),
    blocks=st.integers(0, 7),
)
def test_no_order_of_texts_exceeds_the_memory_or_finds_another_text(
    texts: list[tuple[list[int], bool]], blocks: int
) -> None:
    most = blocks * BLOCK * TOKEN_BYTES
    cache = PrefixCache(most, TOKEN_BYTES)
    known: set[tuple[int, ...]] = set()
    for kinds, keep in texts:
        text = [kind for kind in kinds for _ in range(BLOCK)]
        if keep:
            kept(cache, text)
            known |= {tuple(text[: end * BLOCK]) for end in range(1, len(kinds) + 1)}
            assert found(cache, text) == min(len(kinds), blocks) * BLOCK
        have = found(cache, text)
        assert have == 0 or tuple(text[:have]) in known
        assert cache.held_bytes <= most
