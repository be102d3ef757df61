"""The sizes at which speed is measured, and decoders of these sizes with random weights."""

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from interlock.models.architecture import Architecture, DefaultRope
from interlock.models.catalogue import ModelRecord, catalogue
from interlock.models.decoder import Decoder

_NOISE = 1 << 20  # numbers that are drawn; weights repeat them, for drawing billions takes minutes


def _qwen3(sizes: ModelRecord) -> Architecture:
    return Architecture(
        family="qwen3",
        vocab=sizes.vocab,
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        value_dim=sizes.head_dim,
        inner=sizes.inner,
        norm_eps=1e-6,
        context=sizes.context,
        tied=sizes.tied,
        rope=DefaultRope(rope_theta=1_000_000.0),
        rope_dim=sizes.head_dim,
        qk_norm=True,
    )


_NAMED = {model.name: _qwen3(model) for model in catalogue() if model.name.startswith("Qwen3-")}
# "tiny" is for trying the command.
SHAPES = {
    "qwen3-0.6b": _NAMED["Qwen3-0.6B"],
    "qwen3-8b": _NAMED["Qwen3-8B"],
    "tiny": replace(
        _NAMED["Qwen3-0.6B"], hidden=64, layers=2, heads=2, kv_heads=2, inner=128, vocab=512
    ),
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
