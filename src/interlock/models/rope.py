"""Rotary positions (Su et al., arXiv 2104.09864), in fp32, with the context extensions in use.

    default   frequencies theta^(-2i/D)
    linear    all frequencies divided by a factor (position interpolation, arXiv 2306.15595)
    llama3    only the slow ones (Llama 3.1, arXiv 2407.21783)
    yarn      a ramp between the two, and a factor on the softmax (arXiv 2309.00071)

Legend: N tokens, H heads, D rotated elements of a head
"""

import math

import torch
from torch import Tensor

from interlock.models.architecture import LinearRope, Llama3Rope, Rope, YarnRope

Angles = tuple[Tensor, Tensor]  # what `rotate` multiplies by, each [N, 1, D] fp32


class Rotary:
    """The angles of every token, called with positions [N]."""

    def __init__(self, rope: Rope, dim: int) -> None:
        self.frequencies = frequencies(rope, dim)  # [D/2]
        self.magnitude = _magnitude(rope)

    def __call__(self, positions: Tensor) -> Angles:
        self.frequencies = self.frequencies.to(positions.device)
        return both_halves(positions[:, None, None] * self.frequencies, self.magnitude)


def both_halves(angles: Tensor, magnitude: float = 1.0) -> Angles:
    """angles [N, 1, D/2] of the pairs -> factors of every element, and of its partner."""
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate x [N, H, D], whose pairs are (i, i + D/2), by the angles of each token.

    Of a longer x [N, H, D + E] the first D elements are, and the others stay.
    """
    cos, sin = angles
    if x.shape[-1] > cos.shape[-1]:
        turned, kept = x.tensor_split([cos.shape[-1]], dim=-1)
        return torch.cat([rotate(turned, angles), kept], dim=-1)
    first, second = x.chunk(2, dim=-1)
    partner = torch.cat([second, first], dim=-1)
    return torch.addcmul(x * cos, partner, sin).to(x.dtype)


def rotate_interleaved(x: Tensor, angles: Angles) -> Tensor:
    """The same for x whose pairs are (2i, 2i + 1). The result has its pairs at (i, i + D/2): that
    permutes queries and keys alike, so their products stay the same."""
    return rotate(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), angles)


def frequencies(rope: Rope, dim: int) -> Tensor:
    """Radians per position of each rotated pair, [dim/2] fp32 on the CPU."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    plain = 1.0 / rope.rope_theta**exponents
    match rope:
        case LinearRope(factor=factor):
            return plain / factor
        case Llama3Rope():
            return _llama3(rope, plain)
        case YarnRope():
            return _yarn(rope, plain, dim)
    return plain


def softmax_factor(rope: Rope) -> float:
    """What latent attention multiplies its softmax scale by: DeepSeek's mscale_all_dim, squared."""
    if isinstance(rope, YarnRope) and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale_all_dim) ** 2
    return 1.0


def _llama3(rope: Llama3Rope, plain: Tensor) -> Tensor:
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)  # in the trained context
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _yarn(rope: YarnRope, plain: Tensor, dim: int) -> Tensor:
    def pair_turning(turns: float) -> float:
        context = rope.original_max_position_embeddings
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    first, last = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    # The published code widens an empty ramp by this much.
    kept = 1 - ((pairs - first) / ((last - first) or 0.001)).clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _magnitude(rope: Rope) -> float:
    """YaRN's factor on cos and sin, hence, squared, on the attention scores."""
    if not isinstance(rope, YarnRope):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
