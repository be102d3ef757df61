"""The sizes at which speed is measured, and decoders of these sizes with random weights."""

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from interlock.models.architecture import Architecture, DefaultRope
from interlock.models.decoder import Decoder

_NOISE = 1 << 20  # numbers that are drawn; weights repeat them, for drawing billions takes minutes


def _qwen3(
    hidden: int, layers: int, heads: int, inner: int, *, tied: bool, vocab: int = 151936
) -> Architecture:
    return Architecture(
        family="qwen3",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=min(heads, 8),
        head_dim=128,
        value_dim=128,
        inner=inner,
        norm_eps=1e-6,
        context=40960,
        tied=tied,
        rope=DefaultRope(rope_theta=1_000_000.0),
        rope_dim=128,
        qk_norm=True,
    )


# As in the config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-8B; "tiny" is for trying the command.
SHAPES = {
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, tied=False),
    "tiny": _qwen3(64, 2, 2, 128, tied=True, vocab=512),
}


def layer_weights(arch: Architecture) -> int:
    """Weights of the matrices of one layer."""
    attention = 2 * (arch.heads + arch.kv_heads) * arch.head_dim
    return arch.hidden * (attention + 3 * arch.inner)


def vocabulary_weights(arch: Architecture) -> int:
    """Weights of embedding and vocabulary projection, which may be the same."""
    return arch.vocab * arch.hidden * (1 if arch.tied else 2)


def shallower(arch: Architecture, layers: int) -> Architecture:
    """The same with fewer layers."""
    return replace(arch, layers=layers)


def random_decoder(arch: Architecture, dtype: torch.dtype, place: torch.device) -> Decoder:
    """Parameters in `dtype` on `place`, activations too."""
    with torch.device("meta"):
        decoder = Decoder(arch)
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(place, dtype)
    for module in decoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.ones(parameter.shape, dtype=dtype, device=place)
            if memory.ndim > 1:
                _fill(memory, noise)
            setattr(module, name, nn.Parameter(memory))
    decoder.dtype = dtype
    return decoder


def _fill(memory: Tensor, noise: Tensor) -> None:
    flat, size = memory.view(-1), len(noise)
    times, rest = divmod(len(flat), size)
    flat[: times * size].view(times, size).copy_(noise.expand(times, size))
    flat[times * size :].copy_(noise[:rest])
    memory.mul_(memory.shape[-1] ** -0.5)
