"""What a tensor is: its dtype, its shape, and a digest of its bits; and a set of tensors likewise.

    tensors ── specs ──> dtype, shape and digest of each ── root ──> one digest ── verify

Bits are compared, never values: NaN equals itself, and -0.0 differs from 0.0. Byte order is that of
little-endian machines; on another the digests would not match, and the update would be refused.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from interlock.errors import SyncError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
    )
}
_MOST_SIZES = 16  # dimensions of a tensor; models have four at the most

Bytes = NDArray[np.uint8]
Natural = Annotated[int, Meta(ge=0)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tensor must be."""

    dtype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 48)]], Meta(max_length=_MOST_SIZES)]
    digest: str  # of `tensor_digest`


def spec_of(tensor: Tensor) -> TensorSpec:
    """Its own. Raises SyncError on a dtype that cannot be published."""
    name, shape = dtype_name(tensor), list(tensor.shape)
    # No two tensors give one stream: JSON shows its own end, and then how much follows.
    total = hashlib.sha256(json.dumps([name, shape]).encode())
    total.update(bits(tensor).data)
    return TensorSpec(name, shape, total.hexdigest())


def tensor_digest(tensor: Tensor) -> str:
    """sha256, in hex, over dtype, shape and bits: equal on any device and of any strides."""
    return spec_of(tensor).digest


def digest(parts: Mapping[str, str]) -> str:
    """sha256, in hex, over names and tensor digests, in the order of the names."""
    return hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()


def specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """What each tensor is, by name. Raises SyncError on a dtype that cannot be published."""
    return {name: spec_of(tensor) for name, tensor in tensors.items()}


def root(specs: Mapping[str, TensorSpec]) -> str:
    """The digest of a whole set of tensors."""
    return digest({name: spec.digest for name, spec in specs.items()})


def verify(tensors: Mapping[str, Tensor], expected: Mapping[str, TensorSpec]) -> None:
    """Raises SyncError, naming the tensor, unless `tensors` are exactly as `expected`."""
    same_names(tensors.keys(), expected)
    for name, tensor in tensors.items():
        _same_layout(name, tensor, expected[name])
        if tensor_digest(tensor) != expected[name].digest:
            raise SyncError(f"tensor {name!r} does not have the digest it should have")


def nbytes(specs: Mapping[str, TensorSpec]) -> int:
    """Of the tensors themselves. Raises SyncError on an unknown dtype."""
    return sum(elements(spec) * dtype_of(name, spec).itemsize for name, spec in specs.items())


def same_layout(tensors: Mapping[str, Tensor], specs: Mapping[str, TensorSpec]) -> bool:
    """Whether names, dtypes and shapes agree."""
    return tensors.keys() == specs.keys() and all(
        [dtype_name(tensor), list(tensor.shape)] == [specs[name].dtype, specs[name].shape]
        for name, tensor in tensors.items()
    )


def dtype_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SyncError(f"tensors of dtype {name} cannot be published; known: {', '.join(DTYPES)}")
    return name


def dtype_of(name: str, spec: TensorSpec) -> torch.dtype:
    if spec.dtype not in DTYPES:
        raise SyncError(f"tensor {name!r} has the unknown dtype {spec.dtype!r:.40}")
    return DTYPES[spec.dtype]


def elements(spec: TensorSpec) -> int:
    return math.prod(spec.shape)


def same_names(names: Any, expected: Mapping[str, TensorSpec]) -> None:
    if odd := sorted(set(expected) ^ set(names)):
        what = "missing" if odd[0] in expected else "unknown"
        raise SyncError(f"tensor {odd[0]!r:.200} is {what} ({len(odd)} such names)")


def _same_layout(name: str, tensor: Tensor, spec: TensorSpec) -> None:
    dtype, shape = dtype_name(tensor), list(tensor.shape)
    if (dtype, shape) != (spec.dtype, spec.shape):
        raise SyncError(f"tensor {name!r} is {dtype} {shape}, not {spec.dtype} {spec.shape}")


def bits(tensor: Tensor) -> Bytes:
    """The bytes of a tensor; of a contiguous one on the CPU its own memory, not a copy."""
    dense = tensor.detach().cpu().contiguous()
    # Not flatten: it keeps odd strides of one element or none, of which torch makes no bytes.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
