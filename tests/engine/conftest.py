"""Tiny decoders, a vocabulary of letters, and the plain loop that the engine must agree with."""

import math
from collections.abc import Callable, Sequence

import plain_loop as plain
import pytest
import torch
from rounding import in_float64

from interlock.engine.base import Request
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


@pytest.fixture
def distribution() -> Callable[[list[float], Sampling], list[float]]:
    return plain.distribution


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
        shares = [plain.distribution(row, request.sampling) for row in logits.tolist()]
        return [math.log(row[token]) for row, token in zip(shares, tokens, strict=True)]

    return score


@pytest.fixture
def plain_loop() -> Callable[..., tuple[list[int], list[float]]]:
    return plain.plain_loop
