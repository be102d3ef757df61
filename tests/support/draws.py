"""Whether an engine drew what it had to: each token by its noise, from a plain pass over the text.

    prompt + tokens ─┬─ decoder in float64 ─> shares of every token at every place ─┐
                     └─ the same in float32 ─> shares likewise: rounding ───────────┴─ assert_drawn

No cache, no batch and no shortcut. Where the noise of a place falls between two tokens, within what
rounding moves that edge, either of them is right.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rounding import allowed, assert_close, in_float64
from torch import Tensor

from interlock.engine.base import Request
from interlock.engine.portable.sampler import BLOCK, Noise
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling


@dataclass(frozen=True)
class Drawn:
    """Tokens of completion `number`, drawn with these weights behind those it had `begun` with."""

    decoder: Decoder
    request: Request
    number: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    begun: Sequence[int] = ()


def assert_drawn(stretches: Iterable[Drawn]) -> None:
    """Tokens and logprobs are those of the plain pass, but for rounding."""
    found: list[float] = []
    exact: list[float] = []
    plain: list[float] = []
    for each in stretches:
        with in_float64(each.decoder) as decoder:
            wide = _shares(decoder, each)
        narrow = _shares(each.decoder, each)
        noise = Noise(each.request.seed, each.request.problem_id, each.number)
        for row, token in enumerate(each.tokens):
            where = f"{each.request.problem_id} {each.number}, token {len(each.begun) + row}"
            if each.request.sampling.temperature == 0:
                best = wide[row].max()
                assert wide[row][token] >= best - allowed(best, narrow[row].max()), where
            else:
                points = noise.at(len(each.begun) + row)
                _assert_drawn_at(points, token, wide[row], narrow[row], where)
            exact.append(math.log(wide[row][token]))
            plain.append(math.log(narrow[row][token]))
        found += each.logprobs
    assert_close(found, exact, plain)


@torch.no_grad()
def _shares(decoder: Decoder, drawn: Drawn) -> Tensor:
    """[T, V] of what might have been drawn at each place, float64."""
    stream = torch.tensor([*drawn.request.prompt_tokens, *drawn.begun, *drawn.tokens])
    attend = causal(len(stream), stream.device)
    hidden = decoder(stream, attend.positions, attend)[-len(drawn.tokens) - 1 : -1]
    rows = decoder.logits(hidden).double().tolist()
    rule = drawn.request.sampling
    return torch.tensor([distribution(row, rule) for row in rows], dtype=torch.float64)


def distribution(logits: list[float], rule: Sampling) -> list[float]:
    """Probabilities by the definitions of temperature, min-p, top-k and top-p, one after another,
    in double precision.
    """
    best = max(logits)
    weights = [math.exp((logit - best) / (rule.temperature or 1.0)) for logit in logits]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if rule.temperature:
        order = [token for token in order if weights[token] >= rule.min_p]
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


def _assert_drawn_at(
    points: tuple[float, float], token: int, wide: Tensor, narrow: Tensor, where: str
) -> None:
    """First a block of the vocabulary, then a token inside it; wide, narrow: shares [V]."""
    block, offset = divmod(token, BLOCK)
    blocks = [torch.stack([part.sum() for part in each.split(BLOCK)]) for each in (wide, narrow)]
    inside = [each.split(BLOCK)[block] for each in (wide, narrow)]
    levels = zip(points, (block, offset), (blocks, inside), strict=True)
    for point, index, (exact, plain) in levels:
        ends, other = (each.cumsum(0) / each.sum() for each in (exact, plain))
        edge = allowed(ends, other).max()
        begin = ends[index - 1] if index else 0.0
        assert exact[index] > 0 and begin - edge <= point <= ends[index] + edge, where
