"""DrawnTokens the next token of every running completion, and says how likely it was.

    logits [B, V] ─ /temperature ─ exp(z - max) ─ min-p, top-k, top-p ─ inverse CDF ─> token

The noise of a token is a hash of (seed, problem id, sample index, position): no generator has a
state, so the slot, the order and the worker do not matter. The inverse CDF first picks a block of
the vocabulary and then a token inside it, so the full cumulative sum is never formed, and float32
resolves tokens of any probability.

The order is vLLM's, so that replicas of both engines draw from one distribution: min-p looks at
what the temperature left, top-p at what min-p and top-k did. transformers has min-p last, where
top-p was of all tokens: with both of them set its set is another.

Where the set that is left is to be told (records/replay.py), it is no larger than what travels: of
tokens that are exactly as likely as the last one kept, which would all be, the first are.

Legend: B rows, V vocabulary, W V rounded up to whole blocks, M candidates kept for top-k and top-p
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interlock.records.rl import Sampling
from interlock.records.serving import Alternatives

BLOCK = 256  # tokens summed together; about the square root of today's vocabularies
CANDIDATES = 256  # most likely tokens looked at before the whole row is sorted
_CACHED = 2**19  # elements of the weights worked on at a time on a CPU
_HALF = 1 << 24  # a float32 in [0, 1) holds 24 bits exactly


class Noise:
    """The uniform noise of one completion."""

    def __init__(self, seed: int, problem_id: str, sample: int) -> None:
        # The two numbers hold no space, so no two triples give the same text.
        key = f"{seed} {sample} {problem_id}"
        self._hash = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8)

    def at(self, position: int) -> tuple[float, float]:
        """Two independent uniforms in [0, 1) for the token at `position`, exact in float32."""
        digest = self._hash.copy()
        digest.update(position.to_bytes(8, "big"))
        bits = int.from_bytes(digest.digest(), "big")
        return (bits >> 40) / _HALF, (bits % _HALF) / _HALF


class DrawnTokens(NamedTuple):
    """One token for each of B rows."""

    tokens: Tensor  # [B] int64
    logprobs: Tensor  # [B] fp32
    tops: list[Alternatives | None]  # of the rows that asked
    kept: list[bytes]  # what each was drawn from (replay.kept_ids); empty where it is not told


def sample(
    logits: Tensor, rules: Sequence[Sampling], noise: Sequence[tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits [B, V] by the row's own rule and noise.

    Returns tokens [B] int64 and their logprobs [B] fp32 under the distribution drawn from: after
    temperature, min-p, top-k and top-p, renormalised. Temperature 0 takes the most likely token
    (the first of equals) and gives its logprob at temperature 1, whatever the others say. Logits
    that are not finite give logprobs that are not finite.
    """
    return draw(logits, rules, noise, [0] * len(rules))[:2]


def draw(
    logits: Tensor,
    rules: Sequence[Sampling],
    noise: Sequence[tuple[float, float]],
    asked: Sequence[int],
    most_kept: Sequence[int] = (),
) -> DrawnTokens:
    """As `sample`, and the most likely tokens of each row that asked for so many, best first.

    They are of the distribution drawn from: what it leaves out is not among them, however many
    were asked for. None where none were. most_kept: of each row, tokens that are drawn from at the
    most, which are then told; 0: it is not told. (): of none.
    """
    most = most_kept or [0] * len(rules)
    weights = _weights(logits, [rule.temperature or 1.0 for rule in rules])
    greedy = [row for row, rule in enumerate(rules) if rule.temperature == 0]
    limits = {
        row: (most[row] or rule.top_k, rule.top_p)
        for row, rule in enumerate(rules)
        if most[row] or (rule.temperature > 0 and (rule.top_k > 0 or rule.top_p < 1.0))
    }
    if any(rule.min_p > 0 for rule in rules):
        least = [[rule.min_p if rule.temperature > 0 else 0.0] for rule in rules]
        weights.masked_fill_(weights < torch.tensor(least, device=logits.device), 0.0)
    if limits:
        narrowed = list(limits)
        weights[narrowed] = truncate(weights[narrowed], list(limits.values()))
    kept = _kept(weights, most)
    tokens, totals = _invert(weights, torch.tensor(noise, device=logits.device))
    if greedy:
        # Of the logits: two weights may have rounded to one.
        best = logits if len(greedy) == len(rules) else logits[greedy]
        tokens[greedy] = best.argmax(-1)
    chosen = weights.gather(1, tokens[:, None])[:, 0]
    logprobs = torch.log(chosen / totals)
    return DrawnTokens(tokens, logprobs, _alternatives(weights, totals, asked), kept)


def _kept(weights: Tensor, most: Sequence[int]) -> list[bytes]:
    """What is left of the rows that tell it, after cutting them to so many; weights [B, W]."""
    found = [b""] * len(most)
    if not (rows := [row for row, limit in enumerate(most) if limit]):
        return found
    counts = (weights[rows] > 0).sum(-1).tolist()
    for place, row in enumerate(rows):
        if counts[place] > most[row]:
            counts[place] = most[row]
            weights[row] = _first_of_equals(weights[row], most[row])
    ids = (weights[rows] > 0).nonzero()[:, 1].to("cpu", torch.int32)
    for row, own in zip(rows, ids.split(counts), strict=True):
        found[row] = own.numpy().astype("<u4").tobytes()
    return found


def _first_of_equals(weights: Tensor, most: int) -> Tensor:
    """Weights [W] of which the `most` largest are kept; of those as small as the least, the first.

    Not by a sort, which may order equals in any way.
    """
    least = weights.topk(most).values[-1]
    above, equal = weights > least, weights == least
    room = most - above.sum()
    return weights.masked_fill(~(above | (equal & (equal.cumsum(0) <= room))), 0.0)


def _alternatives(
    weights: Tensor, totals: Tensor, asked: Sequence[int]
) -> list[Alternatives | None]:
    """The most likely tokens of the rows that asked; weights [B, W], totals [B]."""
    found: list[Alternatives | None] = [None] * len(asked)
    if rows := [row for row, count in enumerate(asked) if count]:
        theirs = weights if len(rows) == len(asked) else weights[rows]
        best = theirs.topk(min(max(asked), weights.shape[1]))
        logprobs = torch.log(best.values / totals[rows][:, None]).tolist()
        for row, tokens, values in zip(rows, best.indices.tolist(), logprobs, strict=True):
            pairs = zip(tokens[: asked[row]], values[: asked[row]], strict=True)
            found[row] = [(token, value) for token, value in pairs if value > -math.inf]
    return found


def _weights(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Unnormalised probabilities [B, W] fp32, the largest of each row 1, of logits [B, V]."""
    rows, vocabulary = logits.shape
    width = -(-vocabulary // BLOCK) * BLOCK
    weights = logits.new_empty(rows, width, dtype=torch.float32)
    divisors = None
    if any(temperature != 1.0 for temperature in temperatures):
        divisors = torch.tensor(temperatures, device=logits.device)[:, None]
        divisors.clamp_(min=torch.finfo(divisors.dtype).tiny)  # what rounds to 0 is greedy, not 0/0
    # At 64 rows of 50,000 tokens passes over memory are the cost: a CPU makes them in its cache.
    together = max(1, _CACHED // width) if logits.device.type == "cpu" else rows
    for first in range(0, rows, together):
        part = logits[first : first + together].float()
        block = weights[first : first + together]
        block[:, vocabulary:] = -torch.inf
        torch.sub(part, part.amax(-1, keepdim=True), out=block[:, :vocabulary])
        if divisors is not None:
            block /= divisors[first : first + together]
        block.exp_()
    return weights


def truncate(weights: Tensor, limits: Sequence[tuple[int, float]]) -> Tensor:
    """Zero what top-k and top-p leave out of weights [B, W]; `limits` are (top_k, top_p) per row.

    As in transformers: top-k first, then the smallest set of its most likely tokens whose share of
    what is left reaches top_p. Tokens exactly as likely as the last one kept are kept too, so the
    outcome does not depend on how a sort orders equals.
    """
    most = max(top_k for top_k, _ in limits)
    best = weights.topk(min(weights.shape[1], max(CANDIDATES, most)), sorted=True).values  # [B, M]
    smallest, found = _smallest_kept(best, weights.sum(-1, keepdim=True), limits)
    if not found.all():
        best = weights.sort(descending=True).values
        smallest, _ = _smallest_kept(best, best.sum(-1, keepdim=True), limits)
    return weights.masked_fill(weights < smallest, 0.0)


def _smallest_kept(
    best: Tensor, totals: Tensor, limits: Sequence[tuple[int, float]]
) -> tuple[Tensor, Tensor]:
    """The smallest weight [B, 1] that each row keeps, and whether `best` [B, M] proves it [B, 1].

    best: the M largest weights in descending order; totals [B, 1]: the sum of all.
    """
    top_k = torch.tensor([[top_k] for top_k, _ in limits], device=best.device)  # [B, 1]
    top_p = torch.tensor([[top_p] for _, top_p in limits], device=best.device)  # [B, 1]
    rank = torch.arange(best.shape[1], device=best.device)[None]
    among = (rank < top_k) | (top_k == 0)  # [B, M]
    mass = torch.where(top_k > 0, (best * among).sum(-1, keepdim=True), totals)
    before = best.cumsum(-1) - best
    kept = among & ((before < top_p * mass) | (top_p >= 1.0))
    kept[:, 0] = True
    count = kept.sum(-1, keepdim=True)
    return best.gather(1, count - 1), (count < best.shape[1]) | (top_k > 0)


def _invert(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B], each with probability weights / totals, and the totals [B]; noise [B, 2]."""
    blocks = weights.unflatten(1, (-1, BLOCK))  # [B, W / BLOCK, BLOCK]
    block, totals = _inverse_cdf(blocks.sum(-1), noise[:, 0])
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block]  # [B, BLOCK]
    offset, _ = _inverse_cdf(inside, noise[:, 1])
    return block * BLOCK + offset, totals


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first index [B] where the running sum of mass [B, n] exceeds uniform * total; the totals.

    An index without mass is never taken, however a parallel sum rounds.
    """
    running = mass.cumsum(-1)
    totals = running[:, -1]
    reached = (running > (uniform * totals)[:, None]) & (mass > 0)
    return reached.int().argmax(-1), totals
