"""Generation by the definitions alone: what every engine must agree with."""

import itertools
import math
from collections.abc import Sequence

import torch

from interlock.engine.base import Request
from interlock.engine.portable.sampler import BLOCK, Noise
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

EDGE = 1e-5  # of the noise, by which rounding may move the border between two tokens


def distribution(logits: list[float], rule: Sampling) -> list[float]:
    """Probabilities by the definitions of temperature, top-k and top-p, in double precision."""
    best = max(logits)
    weights = [math.exp((logit - best) / (rule.temperature or 1.0)) for logit in logits]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if rule.top_k and rule.temperature:
        order = order[: rule.top_k]
    mass, kept, reached = sum(weights[token] for token in order), set(), 0.0
    for token in order:
        if reached >= rule.top_p * mass and rule.top_p < 1.0 and rule.temperature:
            break
        kept.add(token)
        reached += weights[token]
    total = sum(weights[token] for token in kept)
    return [w / total if token in kept else 0.0 for token, w in enumerate(weights)]


def _inverse_cdf(mass: list[float], uniform: float) -> int:
    target, running = uniform * sum(mass), 0.0
    for index, share in enumerate(mass):
        running += share
        if running > target and share > 0:
            return index
    raise AssertionError("no mass")


@torch.no_grad()
def plain_loop(
    decoder: Decoder,
    request: Request,
    number: int,
    begun: Sequence[int] = (),
    count: int | None = None,
) -> tuple[list[int], list[float]]:
    """Completion `number` of a request without a cache, batch or shortcut: everything is computed
    again for every token. Ends at max_tokens only, or after `count` tokens behind those that it has
    `begun` with.
    """
    rule = request.sampling
    noise = Noise(request.seed, request.problem_id, number)
    tokens: list[int] = []
    logprobs: list[float] = []
    places = range(len(begun), rule.max_tokens)
    for position in places if count is None else places[:count]:
        stream = torch.tensor([*request.prompt_tokens, *begun, *tokens])
        attend = causal(len(stream), stream.device)
        logits = decoder.logits(decoder(stream, attend.positions, attend)[-1])
        shares = distribution(logits.double().tolist(), rule)
        if rule.temperature == 0:
            token = max(range(len(shares)), key=lambda token: shares[token])
        else:
            first, second = noise.at(position)
            blocks = [shares[at : at + BLOCK] for at in range(0, len(shares), BLOCK)]
            block = _inverse_cdf([sum(shares) for shares in blocks], first)
            token = block * BLOCK + _inverse_cdf(blocks[block], second)
        tokens.append(token)
        logprobs.append(math.log(shares[token]))
    return tokens, logprobs


@torch.no_grad()
def forced(
    decoder: Decoder, request: Request, number: int, begun: Sequence[int], tokens: list[int]
) -> tuple[list[set[int]], list[float]]:
    """The tokens [n] of completion `number` behind those that it has `begun` with, held against
    what would be drawn in their places.

    Returns, for each place, the tokens that may be drawn there by whoever rounds a little
    differently (as a rule one), and the log-probability of the token that is there.
    """
    rule, noise = request.sampling, Noise(request.seed, request.problem_id, number)
    stream = torch.tensor([*request.prompt_tokens, *begun, *tokens])
    attend = causal(len(stream), stream.device)
    logits = decoder.logits(decoder(stream, attend.positions, attend))[-len(tokens) - 1 : -1]
    may: list[set[int]] = []
    logprobs = []
    for place, (row, token) in enumerate(zip(logits.double().tolist(), tokens, strict=True)):
        shares = distribution(row, rule)
        blocks = [shares[at : at + BLOCK] for at in range(0, len(shares), BLOCK)]
        mass = [sum(block) for block in blocks]
        near = [
            [min(max(uniform + edge, 0.0), 1 - 1e-9) for edge in (-EDGE, 0.0, EDGE)]
            for uniform in noise.at(len(begun) + place)
        ]
        pairs = itertools.product({_inverse_cdf(mass, first) for first in near[0]}, near[1])
        may.append({block * BLOCK + _inverse_cdf(blocks[block], second) for block, second in pairs})
        logprobs.append(math.log(shares[token]))
    return may, logprobs
