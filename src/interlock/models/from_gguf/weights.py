"""The weights of a GGUF file under their Hugging Face names, one at a time.

    Decoder.layout() ── names and shapes ──┐ every tensor has its place, every place its tensor
    GgufFile.tensors ──────────────────────┴──> dequantise ─ rows back in order ──> torch

Dequantisation is the `gguf` package's. llama.cpp rotates neighbouring pairs (2i, 2i + 1), Hugging
Face (i, i + D/2): Llama's q and k projections have their rows in another order there.

Shapes: N heads (query or key/value), D head size, E experts of a layer
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    get_tensor_name_map,
)
from gguf.quants import dequantize
from torch import Tensor

from interlock.errors import ModelError
from interlock.models.architecture import Architecture
from interlock.models.finite import finite
from interlock.models.from_gguf.header import GgufFile, GgufTensor
from interlock.models.from_gguf.settings import ROPE_FACTORS

_ROWS = 4096  # dequantised at a time: what numpy needs meanwhile is several times as much
_EXACT = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


class FoundTensor(NamedTuple):
    """Where one tensor of the model is."""

    tensor: GgufTensor
    expert: int | None  # its place in a stack of them
    heads: int  # whose rows are in llama.cpp's order; 0: they are as they should be


def merged(name: str) -> str:
    """The name under which llama.cpp has a tensor of Hugging Face: without the expert's number."""
    before, experts, after = name.partition(".experts.")
    return f"{before}.experts.{after.partition('.')[2]}" if experts else name


def places(
    file: GgufFile, shapes: dict[str, list[int]], arch: Architecture, architecture: str
) -> dict[str, FoundTensor]:
    """Hugging Face name -> where it is in the file, for every tensor of the model.

    Raises ModelError when one is missing, is of another shape, or has no place in the model.
    """
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, arch.layers)
    found: dict[str, FoundTensor] = {}
    for name, shape in shapes.items():
        theirs = names.get_name(merged(name), try_suffixes=(".weight", ".bias"))
        tensor = file.tensors.get(theirs) if theirs else None
        if tensor is None:
            raise file.error(f"it lacks the tensor {theirs or name!r} ({name})")
        found[name] = _place(file, name, tensor, shape, arch, kind)
    used = {each.tensor.name for each in found.values()} | {ROPE_FACTORS}
    if spare := sorted(file.tensors.keys() - used):
        raise ModelError(
            f"{file.path}: GGUF tensor {spare[0]!r} has no place in a model of its metadata; give "
            "its Hugging Face directory"
        )
    return found


def stored_dtype(found: dict[str, FoundTensor]) -> torch.dtype:
    """In which the model is written: bfloat16 where the file has no more of its matrices."""
    exact = any(
        len(each.tensor.shape) > 1 and each.tensor.type in _EXACT for each in found.values()
    )
    return torch.float32 if exact else torch.bfloat16


def weights(
    file: GgufFile, found: dict[str, FoundTensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model in `dtype`; one is in memory at a time.

    Raises ModelError for one that holds values that are not finite.
    """
    for name, place in found.items():
        rows = file.rows(place.tensor)
        if place.expert is not None:
            each = len(rows) // place.tensor.shape[0]
            rows = rows[place.expert * each : (place.expert + 1) * each]
        values = torch.empty(len(rows), place.tensor.shape[-1], dtype=dtype)
        for first in range(0, len(rows), _ROWS):
            with np.errstate(all="ignore"):  # what comes of it is looked at below
                part = dequantize(rows[first : first + _ROWS], place.tensor.type)
            values[first : first + _ROWS].copy_(torch.from_numpy(np.array(part, np.float32)))
        if not finite(values):
            raise file.error(f"tensor {place.tensor.name} holds values that are not finite")
        shape = place.tensor.shape if place.expert is None else place.tensor.shape[1:]
        values = values.view(shape)
        yield name, _ordered(values, place.heads) if place.heads else values


def _place(
    file: GgufFile,
    name: str,
    tensor: GgufTensor,
    shape: list[int],
    arch: Architecture,
    kind: MODEL_ARCH,
) -> FoundTensor:
    expert = int(name.partition(".experts.")[2].partition(".")[0]) if ".experts." in name else None
    wanted = shape
    if expert is not None and arch.routing is not None:
        wanted = [arch.routing.experts, *shape]
    if list(tensor.shape) != wanted:
        raise file.error(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, where its metadata ask for "
            f"{wanted}"
        )
    if not _dequantised(tensor.type):
        raise ModelError(
            f"{file.path}: GGUF tensor {tensor.name} is stored as {tensor.type.name}, which is not "
            "read; give a file of another type, or its Hugging Face directory"
        )
    heads = 0
    if kind is MODEL_ARCH.LLAMA:
        of = {"q_proj": arch.heads, "k_proj": arch.kv_heads}
        heads = of.get(name.split(".")[-2], 0)
    return FoundTensor(tensor, expert, heads)


@cache
def _dequantised(type_: GGMLQuantizationType) -> bool:
    """Whether the `gguf` package can: it knows the sizes of more types than it reads."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[type_][1]), np.uint8), type_)
    except NotImplementedError:
        return False
    return True


def _ordered(rows: Tensor, heads: int) -> Tensor:
    """[N*D, …] whose heads are (0, D/2, 1, D/2 + 1, …) -> in Hugging Face's order."""
    pairs = rows.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(rows.shape)
