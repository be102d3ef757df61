"""The little models that the checks run: random weights, the operators of the real decoder.

Weights are drawn on the CPU, so that every device gets the same ones.
"""

import torch
from torch import Tensor

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.architecture import Architecture, DefaultRope
from interlock.models.attention import Groups, causal
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling


class NumberVocabulary:
    """A vocabulary without text: no token ends a completion."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        """The ids in decimal."""
        return " ".join(map(str, ids))

    def stream(self) -> "NumberVocabulary":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return f"{token} "


def architecture(
    *, hidden: int = 64, layers: int = 2, vocab: int = 512, context: int = 1024
) -> Architecture:
    """A Llama-like decoder with grouped queries, heads of 16 and QK-norm."""
    heads = hidden // 16
    return Architecture(
        family="qwen3",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=max(1, heads // 2),
        head_dim=16,
        value_dim=16,
        inner=3 * hidden,
        norm_eps=1e-6,
        context=context,
        tied=True,
        rope=DefaultRope(),
        rope_dim=16,
        qk_norm=True,
    )


def weights(arch: Architecture, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Random fp32 tensors on the CPU under Hugging Face names; `scale` sharpens the logits."""
    noise = torch.Generator().manual_seed(seed)
    decoder = Decoder(arch)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            size = scale * parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else size * drawn)
        decoder.embed.mul_(arch.hidden**0.25)  # neither flat nor one-sided
    return {name: tensor.detach().clone() for name, tensor in decoder.tensors().items()}


def decoder(
    arch: Architecture, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Decoder:
    """A decoder with these weights whose parameters and activations are `dtype` on `device`; what
    is not trained by gradient stays float32 at least, as in models/checkpoint.py.
    """
    made = Decoder(arch).to(device=device, dtype=dtype)
    made.dtype = dtype
    for parameter in made.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        for name, view in made.tensors().items():
            view.copy_(tensors[name])
    return made


def engine(
    arch: Architecture,
    tensors: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    slots: int = 32,
) -> PortableEngine:
    """The portable engine on these weights; `slots`: sequences decoded at the same time."""
    return PortableEngine(decoder(arch, tensors, device, dtype), NumberVocabulary(), slots)


def prompt(length: int, vocab: int, seed: int = 0) -> list[int]:
    """Random tokens; the same for the same arguments."""
    noise = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, vocab, (length,), generator=noise).tolist()


def request(
    tokens: list[int],
    name: str = "p",
    completions: int = 1,
    length: int = 32,
    temperature: float = 1.0,
) -> Request:
    """Ask an engine for `completions` of exactly `length` tokens."""
    return Request(
        name, tokens, completions, Sampling(temperature=temperature, max_tokens=length), 0
    )


def exact(arch: Architecture, tensors: dict[str, Tensor]) -> Decoder:
    """What a device is held against: the same weights in float64 on the CPU.

    Its norms round to float32, as the decoder's do everywhere; nothing else does.
    """
    return decoder(arch, tensors, torch.device("cpu"), torch.float64)


@torch.inference_mode()
def distributions(model: Decoder, tokens: list[int]) -> Tensor:
    """Log-probabilities [len(tokens), vocab] of what comes after each token, in model's dtype."""
    place = model.embed.device
    attend = causal(len(tokens), place)
    hidden = model(torch.tensor(tokens, device=place), attend.positions, attend)
    return model.logits(hidden).log_softmax(-1)


@torch.inference_mode()
def logprobs(model: Decoder, prompt: list[int], completions: list[list[int]]) -> Tensor:
    """Of every token of every completion after `prompt`, one completion after the other, [tokens].
    The prompt is computed once.
    """
    place = model.embed.device
    attend = Groups([len(prompt)], [[len(tokens) - 1 for tokens in completions]], place)
    stream, rows = list(prompt), []
    for tokens in completions:
        rows += [len(prompt) - 1, *range(len(stream), len(stream) + len(tokens) - 1)]
        stream += tokens[:-1]
    hidden = model(torch.tensor(stream, device=place), attend.positions, attend)[rows]
    chosen = torch.tensor([token for tokens in completions for token in tokens], device=place)
    return model.logits(hidden).log_softmax(-1).gather(1, chosen[:, None])[:, 0]
