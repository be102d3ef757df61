"""Which pairs of nodes try their link, and when: in rounds, so that no node is in two at once."""

import random
from collections.abc import Sequence

ALL_UP_TO = 8  # nodes; of more, only some pairs are tried
_RANDOM_PER_NODE = 2

Pair = tuple[str, str]


def pairs(nodes: Sequence[str], seed: int) -> tuple[list[Pair], str]:
    """The pairs, and which they are in words.

    All of few nodes. Of many, the ring, so that each is in two, and as many random ones again for
    each node: a bad link between two nodes may be missed, one to the switch is not.
    """
    count = len(nodes)
    every = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    if count <= ALL_UP_TO:
        return every, f"all {len(every)} pairs of {count} nodes"
    ring = {(nodes[i], nodes[i + 1]) for i in range(count - 1)} | {(nodes[0], nodes[-1])}
    others = [pair for pair in every if pair not in ring]
    drawn = random.Random(seed).sample(others, min(len(others), _RANDOM_PER_NODE * count))
    chosen = [pair for pair in every if pair in ring or pair in set(drawn)]
    words = f"{len(chosen)} of {len(every)} pairs: the ring, and {len(drawn)} drawn at random"
    return chosen, words


def rounds(chosen: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in as few rounds as a simple search finds, each node once in a round at most."""
    found: list[list[Pair]] = []
    for pair in chosen:
        free = (each for each in found if not any(set(pair) & set(other) for other in each))
        taken = next(free, None)
        if taken is None:
            found.append(taken := [])
        taken.append(pair)
    return found
