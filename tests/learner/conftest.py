"""A tiny decoder, and the plain way to compute what the learner does: one sequence at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture, DefaultRope, Routing
from interlock.models.attention import causal
from interlock.models.decoder import Decoder

VOCAB = 61


@pytest.fixture
def tiny() -> Callable[..., Decoder]:
    """Make a two-layer decoder with random weights; the same for the same seed."""

    def make(seed: int = 0, tied: bool = True, routing: Routing | None = None) -> Decoder:
        arch = Architecture(
            family="llama",
            vocab=VOCAB,
            hidden=16,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=4,
            value_dim=4,
            inner=24,
            norm_eps=1e-5,
            context=64,
            tied=tied,
            rope=DefaultRope(),
            rope_dim=4,
            routing=routing,
        )
        decoder = Decoder(arch)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in decoder.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0)
                else:
                    parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)
        return decoder

    return make


@pytest.fixture
def sampled() -> Callable[..., list[TrainingGroup]]:
    """Make groups of random tokens, weights and sampler log-probabilities."""

    def make(
        lengths: list[list[int]], seed: int = 0, kl: bool = False, sampler: bool = True
    ) -> list[TrainingGroup]:
        noise = torch.Generator().manual_seed(seed)

        def numbers(shape: list[int], scale: float, shift: float = 0.0) -> list[list[float]]:
            return [(torch.randn(n, generator=noise) * scale + shift).tolist() for n in shape]

        def tokens(count: int) -> list[int]:
            return torch.randint(0, VOCAB, (count,), generator=noise).tolist()

        return [
            TrainingGroup(
                prompt=tokens(3 + index),
                completions=[tokens(length) for length in members],
                weights=numbers(members, 0.1),
                sampler_logprobs=numbers(members, 0.3, -4.0) if sampler else None,
                kl_weights=[[0.05] * length for length in members] if kl else None,
            )
            for index, members in enumerate(lengths)
        ]

    return make


@pytest.fixture
def plain_logprobs() -> Callable[..., list[Tensor]]:
    """Log-probabilities [tokens] of each completion, each computed alone from full logits."""

    def compute(
        decoder: Decoder, groups: list[TrainingGroup], temperature: float = 1.0
    ) -> list[Tensor]:
        found = []
        for group in groups:
            for completion in group.completions:
                tokens = torch.tensor(group.prompt + completion)
                attend = causal(len(tokens), tokens.device)
                logits = decoder.logits(decoder(tokens, attend.positions, attend)).float()
                logprobs = (logits / temperature).log_softmax(-1)
                row = torch.arange(len(group.prompt) - 1, len(tokens) - 1)
                found.append(logprobs[row, tokens[row + 1]])
        return found

    return compute
