"""Keys and values of what texts begin with, kept by blocks of tokens.

    text: [block 0][block 1][block 2] rest       name of a block: a hash of all tokens up to its end
             │        │        │
             v        v        v
          name 0   name 1   name 2 ──> k, v of 16 tokens; the least recently used is dropped

Two texts of one owner that begin alike find the same blocks as far as they do; those of different
owners never, whom a quick answer would tell what others ask. Of weights nothing is said here:
who has new ones empties the cache.

Legend: Y layers, K key/value heads, S tokens, D head size, E value head size
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

BLOCK = 16  # tokens

# k [Y, K, S, D] and v [Y, K, S, E] of the tokens from a first one up to, without it, another.
Span = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]


def block_names(tokens: Sequence[int], owner: str) -> list[bytes]:
    """Of all whole blocks of a text; equal names, equal tokens up to there, and one owner."""
    chain, found = hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=32), []
    chain.update(b"\0")
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        chain.update(array("q", tokens[end - BLOCK : end]).tobytes())
        found.append(chain.digest())
    return found


class PrefixBlock(NamedTuple):
    k: torch.Tensor  # [Y, K, BLOCK, D]
    v: torch.Tensor  # [Y, K, BLOCK, E]
    routes: tuple[bytes, ...]  # of its tokens (records/replay.py); (): they were not asked for


class PrefixCache:
    """No more than `most_bytes` of keys and values; `token_bytes` are one token's."""

    def __init__(self, most_bytes: int, token_bytes: int) -> None:
        self.most_bytes, self._block_bytes = most_bytes, BLOCK * token_bytes
        self._most = most_bytes // self._block_bytes  # blocks
        self._blocks: OrderedDict[bytes, PrefixBlock] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        return len(self._blocks) * self._block_bytes

    def find(self, names: Sequence[bytes], routed: bool = False) -> list[PrefixBlock]:
        """As many first blocks of these as there are, with their routes where that is asked."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None or (routed and not block.routes):
                break
            found.append(block)
        self._touch(names[: len(found)])
        return found

    def keep(self, names: Sequence[bytes], span: Span, routes: Sequence[bytes] = ()) -> None:
        """Copy what is not there of the blocks of a text; `routes` of all their tokens, or none."""
        names = names[: self._most]
        self._touch([name for name in names if name in self._blocks])
        lacking = [place for place, name in enumerate(names) if name not in self._blocks]
        while len(self._blocks) + len(lacking) > self._most:
            self._blocks.popitem(last=False)
        for place in lacking:
            k, v = span(place * BLOCK, (place + 1) * BLOCK)
            self._blocks[names[place]] = PrefixBlock(_copied(k), _copied(v), ())
        for place, name in enumerate(names):
            if routes and not self._blocks[name].routes:
                own = tuple(routes[place * BLOCK : (place + 1) * BLOCK])
                self._blocks[name] = self._blocks[name]._replace(routes=own)
        self._touch(names)

    def clear(self) -> None:
        self._blocks.clear()

    def _touch(self, names: Sequence[bytes]) -> None:
        """These are used. Later blocks are dropped before the earlier ones they are found by."""
        for name in reversed(names):
            self._blocks.move_to_end(name)


def _copied(x: torch.Tensor) -> torch.Tensor:
    """Of exactly its own size in memory, not a view."""
    return x.clone(memory_format=torch.contiguous_format)
