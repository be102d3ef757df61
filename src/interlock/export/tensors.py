"""Which tensors a GGUF file holds, in which form, and their values: as llama.cpp's converter.

    StoredWeights ──plan──> [Planned] ──values──> float32 ──gguf.quants──> bytes

Llama's q and k projections change the order of their rows: llama.cpp rotates neighbouring pairs
(2i, 2i + 1), Hugging Face (i, i + D/2). Norms, biases and a router stay float32. A tied vocabulary
projection is not written: llama.cpp then takes the embedding.

Shapes: N heads (query or key/value), D head size, E experts of a layer
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map

from interlock.errors import ModelError
from interlock.models.architecture import Architecture, Llama3Rope
from interlock.models.checkpoint import StoredWeights
from interlock.models.from_gguf.weights import merged

ROPE_FACTORS = "rope_freqs.weight"
_F32 = GGMLQuantizationType.F32
# The largest magnitude that a type holds; a block's scale is float16.
_LARGEST = {
    GGMLQuantizationType.F16: 65504.0,
    GGMLQuantizationType.BF16: 3.3895e38,
    GGMLQuantizationType.Q8_0: 65504.0 * 127,
    GGMLQuantizationType.Q4_0: 65504.0 * 8,
}


class Planned(NamedTuple):
    """One tensor of the file."""

    name: str
    sources: list[str]  # Hugging Face names; several are stacked: a layer's experts
    shape: list[int]
    type: GGMLQuantizationType
    heads: int  # whose rows are put in llama.cpp's order; 0: they stay

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def plan(weights: StoredWeights, kind: MODEL_ARCH, type_: GGMLQuantizationType) -> list[Planned]:
    """All tensors, in the order of the model's files.

    Raises ModelError when a row cannot be divided into the blocks of the type.
    """
    names = get_tensor_name_map(kind, weights.arch.layers)
    planned = []
    if isinstance(weights.arch.rope, Llama3Rope):
        planned.append(Planned(ROPE_FACTORS, [], [weights.arch.rope_dim // 2], _F32, 0))
    grouped: dict[str, list[str]] = {}
    for source in weights.shapes:
        grouped.setdefault(merged(source), []).append(source)
    for joined, sources in grouped.items():
        name = names.get_name(joined, try_suffixes=(".weight", ".bias"))
        assert name is not None, joined
        shape = weights.shapes[sources[0]]
        if joined != sources[0]:
            shape = [len(sources), *shape]
            sources.sort(key=_expert)
        stored = _type(name, shape, type_)
        _check_rows(sources[0], shape, stored)
        planned.append(Planned(name, sources, shape, stored, _heads(joined, weights.arch)))
    return planned


def values(weights: StoredWeights, planned: Planned) -> np.ndarray:
    """What the tensor holds, in float32.

    Raises ModelError when its type cannot hold that.
    """
    rope = weights.arch.rope
    if planned.name == ROPE_FACTORS and isinstance(rope, Llama3Rope):
        return _rope_factors(rope, weights.arch.rope_dim)
    parts = [weights.read(name).to(torch.float32).numpy() for name in planned.sources]
    found: np.ndarray = np.stack(parts) if len(planned.shape) == 3 else parts[0]
    if (most := float(np.abs(found).max())) > _LARGEST.get(planned.type, math.inf):
        raise ModelError(
            f"{planned.sources[0]} holds {most:.3g}, which {planned.type.name} cannot; "
            "take --type BF16"
        )
    return permuted(found, planned.heads) if planned.heads else found


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """[N*D, …] with the halves of every head interleaved: (0, D/2, 1, D/2 + 1, …)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _expert(name: str) -> int:
    """Its number, as a number: 10 comes after 9."""
    return int(name.partition(".experts.")[2].partition(".")[0])


def _type(name: str, shape: list[int], asked: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight", ".bias")):
        return _F32
    if asked is GGMLQuantizationType.Q4_0 and name in ("token_embd.weight", "output.weight"):
        return GGMLQuantizationType.Q8_0  # as llama-quantize spares them, in its smallest numpy has
    return asked


def _check_rows(source: str, shape: list[int], stored: GGMLQuantizationType) -> None:
    block = GGML_QUANT_SIZES[stored][0]
    if shape[-1] % block:
        raise ModelError(
            f"{source} has rows of {shape[-1]} values, which {stored.name} cannot divide into its "
            f"blocks of {block}; take --type F16 or BF16"
        )


def _heads(name: str, arch: Architecture) -> int:
    """Of a projection whose rows change their order."""
    if arch.family != "llama":
        return 0
    kind = name.split(".")[-2]
    return {"q_proj": arch.heads, "k_proj": arch.kv_heads}.get(kind, 0)


def _rope_factors(rope: Llama3Rope, dim: int) -> np.ndarray:
    """By what llama.cpp divides every frequency (Llama 3.1), in its own order of operations."""
    plain = 1.0 / rope.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    length, trained = 2 * math.pi / plain, rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (trained / length - low) / (high - low)
    between = 1 / ((1 - smooth) / rope.factor + smooth)
    slow = torch.where(length > trained / low, torch.tensor(rope.factor), between)
    return torch.where(length < trained / high, torch.tensor(1.0), slow).numpy()
