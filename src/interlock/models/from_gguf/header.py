"""What a GGUF file says it holds, held against its size before anything is made of it.

    magic, version ─ counts ─ metadata ─ tensor infos ─ padding ─ data
    u32    u32       2 x u64  key type value   name dims type offset

A count, a length or an offset of the file is believed only when what follows has room for it, so
nothing is allocated that the file is not large enough for. The format is that of ggml's
docs/gguf.md, versions 2 and 3; what is stored in reverse byte order is refused.
"""

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from interlock.errors import ModelError
from interlock.regular import open_regular
from interlock.text import error_line, one_line

_MAGIC = b"GGUF"
_MOST_STRINGS = 2**21  # of one list; the largest vocabularies have some hundred thousand
_MOST_DIMENSIONS = 4
_ALIGNMENT = "general.alignment"
# A type's number -> struct's letter for it; 8 is a string, 9 a list.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _LIST = 8, 9


class Damaged(ValueError):
    """What is wrong with the file, in a few words."""


class GgufTensor(NamedTuple):
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]  # rows last but one, as numpy and Hugging Face count
    type: GGMLQuantizationType
    start: int  # bytes from the beginning of the file
    nbytes: int


class GgufFile:
    """A file whose header is sound. `metadata`: key -> scalar, string, list of strings or array."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError when the file is not sound; OSError when there is none."""
        self.path = path
        with open_regular(path) as file:
            try:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                raise self.error("it is empty") from None
        try:
            self.metadata, self.tensors = _read(_Cursor(self.bytes))
        except Damaged as problem:
            raise self.error(str(problem)) from None

    def error(self, problem: str) -> ModelError:
        """An error that says so of this file."""
        return ModelError(f"{self.path} is no sound GGUF file: {problem}; fetch it again")

    def rows(self, tensor: GgufTensor) -> np.ndarray:
        """The tensor as it is stored, uint8 [rows, bytes of a row], without a copy."""
        block, size = GGML_QUANT_SIZES[tensor.type]
        data = np.frombuffer(self.bytes, np.uint8, tensor.nbytes, tensor.start)
        return data.reshape(-1, tensor.shape[-1] // block * size)


class _Cursor:
    """A place in the file, which moves on by what is there and no further."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 0, len(data)

    def skip(self, count: int) -> int:
        """Go on by so many bytes; where they begin."""
        if count > self.size - self.at:
            raise Damaged(f"it ends at byte {self.size}, within what it says it holds")
        self.at += count
        return self.at - count

    def scalar(self, letter: str) -> Any:
        start = self.skip(struct.calcsize(f"<{letter}"))
        return struct.unpack_from(f"<{letter}", self.data, start)[0]

    def text(self) -> str:
        length = self.scalar("Q")
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise Damaged(f"a string at byte {start} is no UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            return self.list(what)
        if kind not in _SCALARS:
            raise Damaged(f"{what} is of type {kind}, which is none")
        return self.scalar(_SCALARS[kind])

    def list(self, what: str) -> Any:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            if count > min(_MOST_STRINGS, (self.size - self.at) // 8):
                raise Damaged(f"{what} says that it lists {count} strings")
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise Damaged(f"{what} lists values of type {kind}")
        letter = _SCALARS[kind]
        start = self.skip(count * struct.calcsize(f"<{letter}"))
        return np.frombuffer(self.data, f"<{letter}", count, start)


def _read(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if cursor.data[:4] != _MAGIC:
        raise Damaged(f"it does not begin with {_MAGIC.decode()}")
    cursor.skip(4)
    version = cursor.scalar("I")
    if version not in (2, 3):
        reverse = version & 0xFFFF == 0
        raise Damaged("it is in big-endian order" if reverse else f"version {version} is not read")
    tensors, entries = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    _check_count(entries, 8 + 4 + 1, cursor, "metadata entries")
    for _ in range(entries):
        key = cursor.text()
        if key in metadata:
            raise Damaged(f"{_shown(key)} stands twice in its metadata")
        metadata[key] = cursor.value(cursor.scalar("I"), _shown(key))
    _check_count(tensors, 8 + 4 + 8 + 4 + 8, cursor, "tensors")
    infos = [_info(cursor) for _ in range(tensors)]
    return metadata, _placed(infos, cursor, metadata.get(_ALIGNMENT, 32))


def _check_count(count: int, least: int, cursor: _Cursor, what: str) -> None:
    """`least`: bytes that each of them takes."""
    if count > (cursor.size - cursor.at) // least:
        raise Damaged(f"it says that it has {count} {what}, in {cursor.size} bytes")


def _info(cursor: _Cursor) -> GgufTensor:
    """As it stands there: `start` counts from the beginning of the data."""
    name = _shown(cursor.text())
    count = cursor.scalar("I")
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise Damaged(f"tensor {name} has {count} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(count))[::-1]
    kind = cursor.scalar("I")
    try:
        type_ = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError):
        raise Damaged(f"tensor {name} is of type {kind}, which is not known") from None
    if 0 in shape or shape[-1] % block:
        raise Damaged(f"tensor {name} of shape {list(shape)} has no whole blocks of {type_.name}")
    return GgufTensor(name, shape, type_, cursor.scalar("Q"), math.prod(shape) // block * size)


def _placed(infos: list[GgufTensor], cursor: _Cursor, alignment: Any) -> dict[str, GgufTensor]:
    """By name, counted from the beginning of the file; all inside of it, none upon another."""
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment % 8:
        raise Damaged(f"{_ALIGNMENT} is {_shown(str(alignment))}")
    data = -(-cursor.at // alignment) * alignment
    placed: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in placed:
            raise Damaged(f"tensor {info.name} stands twice in it")
        if info.start % alignment or data + info.start + info.nbytes > cursor.size:
            raise Damaged(
                f"tensor {info.name}, {info.nbytes} bytes at {info.start}, does not lie in its data"
            )
        placed[info.name] = info._replace(start=data + info.start)
    for one, other in pairwise(sorted(placed.values(), key=lambda each: each.start)):
        if one.start + one.nbytes > other.start:
            raise Damaged(f"tensors {one.name} and {other.name} lie upon one another")
    return placed


def _shown(name: str) -> str:
    return one_line(name, 80)


def told(file: GgufFile, key: str, kind: Any, default: Any = None) -> Any:
    """What the metadata say under `key`; where it is not there, `default`.

    Raises ModelError for what is not of the `kind`, a type or several: a list has no truth.
    """
    value = file.metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        shown = "a list" if isinstance(value, list | np.ndarray) else one_line(repr(value), 40)
        raise file.error(f"{key} is {shown}, which is not read here")
    return value


def read_gguf(path: Path) -> GgufFile:
    """A file of this disk. Raises ModelError when it cannot be read or is not sound."""
    try:
        return GgufFile(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error_line(error)}") from None
