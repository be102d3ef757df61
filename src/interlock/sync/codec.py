"""Tensors to bytes and back, without loss. Knows no files and no versions.

    tensors, base ── encode_delta ──> payload: only what changed ── apply_delta ──> base, in place
    tensors ──────── encode_anchor ─> payload: every tensor ────── decode_anchor ─> new tensors

A payload is MAGIC, the length of the header (4 bytes, little-endian), the header (msgpack, a list
of entries), and the entries' planes one after another. An entry gives some elements of one tensor
their new bits: as they are, or as steps from the base's, taken as integers. What an optimizer moves
goes a few such steps, up or down, however large it is. Places are coded as gaps. Gaps and bits are
split into planes (the lowest bytes of all, then the next, …), which zstd's entropy coder packs
well; a plane that does not shrink is stored as it is. Tensors that did not change have no entry.
Bits are compared, never values; digests are identity.py's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
import zstandard
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from interlock.errors import SyncError
from interlock.records.coding import from_bytes
from interlock.sync import identity
from interlock.sync.identity import DTYPES, Bytes, Natural, TensorSpec, bits

MAGIC = b"ilw1"
# Elements compared at a time: both sides and the result stay in a core's cache.
_CHUNK = 1 << 17
# Planes have skewed bytes but hardly a repetition: a search that soon gives up leaves the work to
# the entropy coder. On planes of exponents 7 % smaller than level 1, and twice as fast. No
# target_length: above 0 it turns the entropy coder off. The window bounds a reader's memory.
_ZSTD = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=17,
    hash_log=6,
    chain_log=6,
    min_match=7,
    target_length=0,
    write_content_size=True,
)
_NEARLY = 0.9  # of the bytes of all tensors
_SAMPLE = 1 << 16  # elements by which it is seen how the others pack
_MAX_GAP_BYTES = 5  # gaps below 2^40

Places = NDArray[np.int64]
Words = NDArray[Any]  # the bits of an element each, unsigned


class Encoded(NamedTuple):
    """One version in bytes, and what a reader has afterwards."""

    payload: bytes
    specs: dict[str, TensorSpec]  # of every tensor, changed or not
    whole: bool  # the payload holds every tensor in full


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """New bits for `count` elements of a tensor, in the order of their places."""

    name: str
    count: Natural
    gap_bytes: Annotated[int, Meta(ge=0, le=_MAX_GAP_BYTES)]  # 0: the first `count`, without gaps
    stored: list[Natural]  # bytes of each plane as stored: those of the gaps, then of the bits
    steps: bool = False  # the bits are `_steps` from the base's


class _Change(NamedTuple):
    """A decoded and checked entry."""

    name: str
    places: Places | None  # None: the first elements
    planes: list[Bytes]  # of the bits, each [count]
    steps: bool


def payload_limit(specs: Mapping[str, TensorSpec]) -> int:
    """Bytes that no payload of such tensors exceeds. Raises SyncError on an unknown dtype."""
    return identity.nbytes(specs) + sum(len(name.encode()) + 128 for name in specs) + 64


def encode_anchor(tensors: Mapping[str, Tensor]) -> Encoded:
    """Every tensor in full. Raises SyncError on a dtype that cannot be published."""
    compress, expected = _compressor(), {}
    entries, planes = [], []
    for name, tensor in tensors.items():
        here = tensor.cpu()
        expected[name] = identity.spec_of(here)
        entry, stored = _coded(name, _words(here), compress)
        entries.append(entry)
        planes += stored
    return Encoded(_join(entries, planes), expected, whole=True)


def encode_delta(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], base_specs: Mapping[str, TensorSpec]
) -> Encoded:
    """What leads from `base`, whose specs are `base_specs`, to `tensors`, of the same layout.

    All elements of a tensor are coded where that is smaller, and where more than half changed.
    Where nearly all would be as they are, all are: what saves next to nothing needs no base.
    """
    assert identity.same_layout(tensors, base_specs) and base.keys() == base_specs.keys()
    compress, expected = _compressor(), dict(base_specs)
    coded: dict[str, tuple[_Entry, list[bytes]]] = {}
    for name, tensor in tensors.items():
        here = tensor.cpu()
        old, new = _words(base[name]), _words(here)
        places = _changed(old, new)
        if places is not None and not len(places):
            continue
        expected[name] = identity.spec_of(here)
        coded[name] = _smaller(name, places, old, new, compress)
    full = {n for n, (e, _) in coded.items() if e.count == tensors[n].numel() and not e.steps}
    whole = sum(tensors[n].nbytes for n in full) > _NEARLY * sum(t.nbytes for t in tensors.values())
    for name, tensor in tensors.items() if whole else ():
        if name not in full:
            coded[name] = _coded(name, _words(tensor), compress)
    planes = [plane for _, stored in coded.values() for plane in stored]
    return Encoded(_join([entry for entry, _ in coded.values()], planes), expected, whole)


def decode_anchor(payload: bytes, expected: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """New tensors from a payload that holds all of `expected` in full; digests are not checked.

    Raises SyncError when the payload is damaged or holds anything else.
    """
    entries = list(_entries(payload, expected))
    identity.same_names({entry.name for entry, _ in entries}, expected)
    for entry, _ in entries:
        elements = identity.elements(expected[entry.name])
        if entry.gap_bytes or entry.steps or entry.count != elements:
            raise SyncError(f"tensor {entry.name!r} is not whole, as it has to be in an anchor")
    tensors = {}
    for entry, stored in entries:
        spec = expected[entry.name]
        change = _decode(entry, stored, identity.elements(spec))
        try:
            tensors[entry.name] = torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise SyncError(f"tensor {entry.name!r} cannot be allocated ({reason})") from None
        _write(change, tensors[entry.name])
    return tensors


def apply_delta(payload: bytes, tensors: Mapping[str, Tensor]) -> None:
    """Write a delta into contiguous CPU `tensors`, which must be its base's and are not it any
    more afterwards; digests are not checked.

    Raises SyncError when the payload is damaged or does not fit them; nothing is then written.
    """
    layout = {n: TensorSpec(identity.dtype_name(t), list(t.shape), "") for n, t in tensors.items()}
    changes = [
        _decode(entry, stored, tensors[entry.name].numel())
        for entry, stored in _entries(payload, layout)
    ]
    for change in changes:
        _write(change, tensors[change.name])


def _words(tensor: Tensor) -> Words:
    return bits(tensor).view(f"u{tensor.element_size()}")


def _steps(old: Words, new: Words) -> Words:
    """From `old` to `new`, around the end if need be: 0, -1, 1, -2, … are told as 0, 1, 2, 3, …"""
    far = new - old
    return (far << 1) ^ -(far >> (8 * far.itemsize - 1))


def _stepped(old: Words, steps: Words) -> Words:
    """Undoes `_steps`."""
    return old + ((steps >> 1) ^ -(steps & 1))


def _changed(before: Words, after: Words) -> Places | None:
    """Places of the elements that differ; None when more than half do."""
    differs = np.empty(_CHUNK, dtype=bool)
    found: list[Places] = [np.empty(0, dtype=np.int64)]
    left = len(before) // 2
    for start in range(0, len(before), _CHUNK):
        a, b = before[start : start + _CHUNK], after[start : start + _CHUNK]
        places = np.flatnonzero(np.not_equal(a, b, out=differs[: len(a)]))
        if len(places):
            places += start
            found.append(places)
            left -= len(places)
            if left < 0:
                return None
    return np.concatenate(found)


Compress = Callable[[Bytes], bytes]


def _compressor() -> Compress:
    zstd = zstandard.ZstdCompressor(compression_params=_ZSTD)

    def compress(plane: Bytes) -> bytes:
        compressed = zstd.compress(plane.data)
        # Equal length tells the reader that a plane is stored as it is.
        return compressed if len(compressed) < len(plane) else plane.tobytes()

    return compress


def _planes(values: NDArray[Any], count: int) -> list[Bytes]:
    """The `count` lowest bytes of all values, lowest first, each contiguous."""
    table = values.view(np.uint8).reshape(len(values), values.itemsize)
    return [np.ascontiguousarray(table[:, place]) for place in range(count)]


def _packed(words: Words, compress: Compress) -> list[bytes]:
    return [compress(plane) for plane in _planes(words, words.itemsize)]


def _coded(
    name: str, new: Words, compress: Compress, old: Words | None = None, gaps: Sequence[bytes] = ()
) -> tuple[_Entry, list[bytes]]:
    """`new` as it is, or as steps from `old` where these pack better; behind the planes of gaps."""
    words, steps = new, False
    if old is not None:
        some = slice(None, None, len(new) // _SAMPLE + 1)
        few = np.ascontiguousarray(new[some])
        plain, stepped = (_packed(each, compress) for each in (few, _steps(old[some], few)))
        if steps := sum(map(len, stepped)) < sum(map(len, plain)):
            words = _steps(old, new)
    stored = [*gaps, *_packed(words, compress)]
    return _Entry(name, len(new), len(gaps), [len(plane) for plane in stored], steps), stored


def _smaller(
    name: str, places: Places | None, old: Words, new: Words, compress: Compress
) -> tuple[_Entry, list[bytes]]:
    """The changed elements, or all of them when that takes fewer bytes."""
    if places is None:
        return _coded(name, new, compress, old)
    gaps = np.diff(places, prepend=-1) - 1
    gap_bytes = (int(gaps.max()).bit_length() + 7) // 8
    assert gap_bytes <= _MAX_GAP_BYTES
    packed = [compress(plane) for plane in _planes(gaps, gap_bytes)]
    few = _coded(name, new[places], compress, old[places], packed)
    if sum(few[0].stored) > new.nbytes // 2:
        full = _coded(name, new, compress, old)
        if sum(full[0].stored) < sum(few[0].stored):
            return full
    return few


def _join(entries: list[_Entry], planes: list[bytes]) -> bytes:
    header = msgspec.msgpack.encode(entries)
    return b"".join([MAGIC, len(header).to_bytes(4, "little"), header, *planes])


def _entries(
    payload: bytes, layout: Mapping[str, TensorSpec]
) -> Iterator[tuple[_Entry, list[memoryview]]]:
    """Each entry with its stored planes, once all lengths and names are known to be right."""
    begin = len(MAGIC) + 4
    if payload[: len(MAGIC)] != MAGIC or len(payload) < begin:
        raise SyncError("the payload is not one of this format")
    end = begin + int.from_bytes(payload[len(MAGIC) : begin], "little")
    try:
        entries = from_bytes(memoryview(payload)[begin:end], list[_Entry])
    except ValueError as error:
        raise SyncError(f"the payload's header is damaged ({error})") from None
    seen = set()
    for entry in entries:
        if entry.name in seen or entry.name not in layout:
            known = "twice in the payload" if entry.name in seen else "unknown"
            raise SyncError(f"tensor {entry.name!r:.200} is {known}")
        seen.add(entry.name)
        spec = layout[entry.name]
        planes = entry.gap_bytes + identity.dtype_of(entry.name, spec).itemsize
        if entry.count > identity.elements(spec) or len(entry.stored) != planes:
            raise SyncError(f"tensor {entry.name!r}: the payload does not fit {spec.shape}")
        if any(size > entry.count for size in entry.stored):
            raise SyncError(f"tensor {entry.name!r}: a plane is longer than its elements")
    if end + sum(size for entry in entries for size in entry.stored) != len(payload):
        raise SyncError("the payload is not as long as its header says")
    return _sliced(entries, memoryview(payload)[end:])


def _sliced(entries: list[_Entry], planes: memoryview) -> Iterator[tuple[_Entry, list[memoryview]]]:
    at = 0
    for entry in entries:
        stored = []
        for size in entry.stored:
            stored.append(planes[at : at + size])
            at += size
        yield entry, stored


def _decode(entry: _Entry, stored: list[memoryview], elements: int) -> _Change:
    planes = [_unpack(entry, plane) for plane in stored]
    gaps, values = planes[: entry.gap_bytes], planes[entry.gap_bytes :]
    if not gaps or not entry.count:
        return _Change(entry.name, None, values, entry.steps)
    steps = np.ones(entry.count, dtype=np.int64)
    for place, plane in enumerate(gaps):
        steps += plane.astype(np.int64) << (8 * place)
    places = np.cumsum(steps) - 1
    # Every step is from 1 to 2^40, so places rise; if the sum wrapped, one is negative.
    if places.min() < 0 or places.max() >= elements:
        raise SyncError(f"tensor {entry.name!r}: an index is beyond its {elements} elements")
    return _Change(entry.name, places, values, entry.steps)


def _unpack(entry: _Entry, stored: memoryview) -> Bytes:
    """One plane, [count]. Nothing is allocated before the frame is known to hold that many."""
    if len(stored) == entry.count:
        return np.frombuffer(stored, dtype=np.uint8)
    try:
        if zstandard.frame_content_size(stored) != entry.count:
            raise SyncError(f"tensor {entry.name!r}: a plane is not as long as it should be")
        plane = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise SyncError(f"tensor {entry.name!r}: a plane is damaged ({error})") from None
    if len(plane) != entry.count:
        raise SyncError(f"tensor {entry.name!r}: a plane is not as long as it should be")
    return np.frombuffer(plane, dtype=np.uint8)


def _write(change: _Change, tensor: Tensor) -> None:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    here = _words(tensor)
    places = slice(len(change.planes[0])) if change.places is None else change.places
    words = np.stack(change.planes, axis=1).view(here.dtype)[:, 0]
    here[places] = _stepped(here[places], words) if change.steps else words
