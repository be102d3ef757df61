"""Tiny decoders, a vocabulary of letters, and the plain loop that the engine must agree with."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from rounding import in_float64

from interlock.engine.base import Request
from interlock.engine.portable.sampler import BLOCK, Noise
from interlock.models.architecture import Architecture, DefaultRope, Latent
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

VOCAB = 600  # three blocks of the sampler, the last one not full


class Letters:
    """Token t is written as the t-th of these, over and over; eos_ids are written as nothing."""

    pieces = ("a", "b", "cd", "e f", "", "xyz", "\n", "b\n")

    def __init__(self, eos_ids: frozenset[int] = frozenset()) -> None:
        self.eos_ids = eos_ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.push(token) for token in ids)

    def stream(self) -> "Letters":
        return self

    def push(self, token: int) -> str:
        return "" if token in self.eos_ids else self.pieces[token % len(self.pieces)]


@pytest.fixture
def letters() -> type[Letters]:
    return Letters


@pytest.fixture
def tiny() -> Callable[..., Decoder]:
    """Make a two-layer fp32 decoder with random weights: "llama" or "deepseek_v3" (latent)."""

    def make(family: str = "llama", context: int = 256) -> Decoder:
        latent = Latent(q_rank=None, kv_rank=6, interleaved=True) if family != "llama" else None
        arch = Architecture(
            family=family,
            vocab=VOCAB,
            hidden=16,
            layers=2,
            heads=4,
            kv_heads=4 if latent else 2,
            head_dim=8,
            value_dim=6 if latent else 8,
            inner=24,
            norm_eps=1e-5,
            context=context,
            tied=True,
            rope=DefaultRope(),
            rope_dim=4 if latent else 8,
            latent=latent,
        )
        decoder = Decoder(arch)
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in decoder.parameters():
                drawn = torch.randn(parameter.shape, generator=noise)
                parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.5 * drawn)
        return decoder

    return make


@pytest.fixture
def prompt() -> Callable[[int], list[int]]:
    """`length` random tokens; the same for the same length."""

    def make(length: int) -> list[int]:
        noise = torch.Generator().manual_seed(length)
        return torch.randint(0, VOCAB, (length,), generator=noise).tolist()

    return make


def _distribution(logits: list[float], rule: Sampling) -> list[float]:
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


@pytest.fixture
def distribution() -> Callable[[list[float], Sampling], list[float]]:
    return _distribution


@pytest.fixture
def exact_logprobs() -> Callable[..., list[float]]:
    """Of `tokens` behind the request's prompt and those that it has `begun` with, in float64."""

    @torch.no_grad()
    def score(
        decoder: Decoder, request: Request, tokens: list[int], begun: Sequence[int] = ()
    ) -> list[float]:
        stream = torch.tensor([*request.prompt_tokens, *begun, *tokens])
        attend = causal(len(stream), stream.device)
        with in_float64(decoder) as exact:
            logits = exact.logits(exact(stream, attend.positions, attend))[-len(tokens) - 1 : -1]
        shares = [_distribution(row, request.sampling) for row in logits.tolist()]
        return [math.log(row[token]) for row, token in zip(shares, tokens, strict=True)]

    return score


@pytest.fixture
def plain_loop() -> Callable[..., tuple[list[int], list[float]]]:
    """Generate completion `number` of a request without a cache, batch or shortcut: everything is
    computed again for every token. Ends at max_tokens only, or after `count` tokens behind those
    that it has `begun` with.
    """

    @torch.no_grad()
    def generate(
        decoder: Decoder,
        request: Request,
        number: int,
        begun: Sequence[int] = (),
        count: int | None = None,
    ) -> tuple[list[int], list[float]]:
        rule = request.sampling
        noise = Noise(request.seed, request.problem_id, number)
        tokens: list[int] = []
        logprobs: list[float] = []
        places = range(len(begun), rule.max_tokens)
        for position in places if count is None else places[:count]:
            stream = torch.tensor([*request.prompt_tokens, *begun, *tokens])
            attend = causal(len(stream), stream.device)
            logits = decoder.logits(decoder(stream, attend.positions, attend)[-1])
            shares = _distribution(logits.double().tolist(), rule)
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

    return generate
