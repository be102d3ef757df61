"""Tensors come back bit for bit, deltas are small, and damaged payloads write nothing."""

import hashlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from torch import Tensor

from interlock.errors import SyncError
from interlock.sync import codec, identity

Same = Callable[..., bool]
EVERYTHING = settings(deadline=None, max_examples=60)


def from_bytes(data: np.ndarray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        tensor.view(-1).view(torch.uint8)[:] = torch.from_numpy(
            data & 1 if dtype == torch.bool else data
        )
    return tensor


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A tensor of any bits, and one in which a share of its elements may have other bits."""
    dtype = draw(st.sampled_from(sorted(identity.DTYPES.values(), key=str)))
    shape = draw(st.lists(st.integers(0, 40), max_size=3))
    density = draw(st.sampled_from([0.0, 0.003, 0.02, 0.3, 0.6, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = int(np.prod(shape, dtype=np.int64))
    old = rng.integers(0, 256, (count, dtype.itemsize), dtype=np.uint8)
    new = np.where(
        rng.random((count, 1)) < density, rng.integers(0, 256, old.shape, dtype=np.uint8), old
    )
    return tuple(from_bytes(data.reshape(-1), dtype, shape) for data in (old, new))  # type: ignore[return-value]


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {n: t.flatten().view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


@EVERYTHING
@given(st.lists(pairs(), min_size=1, max_size=3))
def test_round_trips_give_every_bit_back(drawn: list[tuple[Tensor, Tensor]]) -> None:
    old = {f"t{i}": pair[0] for i, pair in enumerate(drawn)}
    new = {f"t{i}": pair[1] for i, pair in enumerate(drawn)}
    anchor = codec.encode_anchor(old)
    held = codec.decode_anchor(anchor.payload, anchor.specs)
    assert bits(held) == bits(old)
    identity.verify(held, anchor.specs)

    delta = codec.encode_delta(new, old, anchor.specs)
    assert delta.specs == identity.specs(new)
    assert len(delta.payload) <= codec.payload_limit(delta.specs)
    codec.apply_delta(delta.payload, held)
    assert bits(held) == bits(new)
    identity.verify(held, delta.specs)


def test_odd_strides_of_one_element_do_not_matter() -> None:
    expanded = torch.tensor(2.0).expand(1)
    assert expanded.stride() == (0,)
    assert identity.tensor_digest(expanded) == identity.tensor_digest(torch.tensor([2.0]))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_strided_and_unaligned_tensors_are_read_as_they_are(offset: int) -> None:
    pool = torch.arange(2000, dtype=torch.int16)
    old = {"t": pool[offset : offset + 600].view(20, 30).t()}
    new = {"t": old["t"].clone()}
    new["t"][4, 7] = -1
    delta = codec.encode_delta(new, old, identity.specs(old))
    held = {"t": old["t"].contiguous()}
    codec.apply_delta(delta.payload, held)
    assert torch.equal(held["t"], new["t"])


def test_places_far_apart_are_found() -> None:
    """With more than a chunk of equal elements between two changes."""
    count = codec._CHUNK * 5 + 3
    old = {"t": torch.zeros(count, dtype=torch.bfloat16)}
    new = copies(old)
    for place in (0, count // 2, count - 4, count - 1):
        new["t"][place] = 1
    delta = codec.encode_delta(new, old, identity.specs(old))
    codec.apply_delta(delta.payload, old)
    assert torch.equal(old["t"], new["t"])
    assert len(delta.payload) < 100


def test_bits_are_compared_not_values() -> None:
    old = {"t": torch.tensor([0.0, float("nan"), float("nan"), 1.0])}
    new = copies(old)
    new["t"][0] = -0.0
    new["t"].view(torch.int32)[2] += 1  # another NaN
    assert len(codec.encode_delta(old, old, identity.specs(old)).payload) == 9
    delta = codec.encode_delta(new, old, identity.specs(old))
    codec.apply_delta(delta.payload, old)
    assert bits(old) == bits(new)


def test_digests_are_those_worked_out_by_hand() -> None:
    one = hashlib.sha256(b'["bfloat16", [1]]' + b"\x80\x3f").hexdigest()
    assert identity.tensor_digest(torch.ones(1, dtype=torch.bfloat16)) == one
    two = hashlib.sha256(b'["int16", [2, 1]]' + b"\x01\x00\xff\xff").hexdigest()
    assert identity.tensor_digest(torch.tensor([[1], [-1]], dtype=torch.int16)) == two
    both = hashlib.sha256(f'[["a", "{two}"], ["b", "{one}"]]'.encode()).hexdigest()
    assert identity.digest({"b": one, "a": two}) == identity.digest({"a": two, "b": one}) == both


def test_digests_tell_dtype_shape_and_bits_apart() -> None:
    zeros = torch.zeros(4, dtype=torch.bfloat16)
    others = [zeros.half(), zeros.view(2, 2), -zeros, zeros[:3]]
    assert len({identity.tensor_digest(tensor) for tensor in [zeros, *others]}) == 5
    transposed = torch.arange(6).view(2, 3).t()
    assert identity.tensor_digest(transposed) == identity.tensor_digest(transposed.contiguous())


@pytest.mark.parametrize(("share", "bar"), [(0.0036, 0.003), (0.02, 0.012), (0.4, 0.1)])
def test_deltas_of_bf16_weights_are_small(share: float, bar: float) -> None:
    generator = torch.Generator().manual_seed(1)
    old = {"w": (torch.randn(1_000_000, generator=generator) * 0.04).bfloat16()}
    new = copies(old)
    changed = torch.rand(1_000_000, generator=generator) < share
    new["w"].view(torch.int16)[changed] += 1
    delta = codec.encode_delta(new, old, identity.specs(old))
    assert len(delta.payload) <= bar * 2_000_000
    codec.apply_delta(delta.payload, old)
    assert bits(old) == bits(new)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 3e-4), (torch.float32, 1e-6)])
def test_what_moved_a_little_throughout_takes_half_of_what_it_is(
    dtype: torch.dtype, rate: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(200_000, generator=generator) * 0.04
    moved = weights + rate * torch.randn(200_000, generator=generator)
    old, new = {"w": weights.to(dtype)}, {"w": moved.to(dtype)}
    assert (old["w"] != new["w"]).float().mean() > 0.5
    delta = codec.encode_delta(new, old, identity.specs(old))
    assert not delta.whole
    anchor = codec.encode_anchor(new)
    assert len(delta.payload) < len(anchor.payload) / 2
    codec.apply_delta(delta.payload, old)
    assert bits(old) == bits(new)
    with pytest.raises(SyncError, match="not whole"):
        codec.decode_anchor(delta.payload, anchor.specs)


def test_a_tensor_that_changed_throughout_takes_no_more_than_in_full() -> None:
    generator = torch.Generator().manual_seed(1)
    old = {"w": torch.randn(50_000, generator=generator).bfloat16(), "still": torch.ones(9999)}
    new = {"w": torch.randn(50_000, generator=generator).bfloat16(), "still": torch.ones(9999)}
    alone = len(codec.encode_anchor({"w": new["w"]}).payload)
    assert len(codec.encode_delta(new, old, identity.specs(old)).payload) == alone
    # 45 % other bits: with gaps, each takes more than the whole does.
    mixed = {"w": torch.where(torch.rand(50_000) < 0.45, new["w"], old["w"]), "still": old["still"]}
    full = len(codec.encode_anchor({"w": mixed["w"]}).payload)
    assert len(codec.encode_delta(mixed, old, identity.specs(old)).payload) <= full


def test_a_dtype_that_cannot_be_published_is_named() -> None:
    with pytest.raises(SyncError, match="complex64"):
        codec.encode_anchor({"t": torch.zeros(1, dtype=torch.complex64)})


# -- payloads that are not what they should be --------------------------------------------------


def payload(entries: list[Any], *planes: bytes, header_size: int | None = None) -> bytes:
    """Written out as the module's docstring says, not by its encoder."""
    header = msgspec.msgpack.encode(entries)
    size = len(header) if header_size is None else header_size
    return b"".join([b"ilw1", size.to_bytes(4, "little"), header, *planes])


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def test_a_payload_written_by_hand_is_read() -> None:
    held = {"t": torch.zeros(1000, dtype=torch.int16)}
    # Two elements: place 3, then 256 + 1 equal ones later; bits 0x0201 and 0x0403.
    delta = payload([["t", 2, 2, [2, 2, 2, 2]]], b"\3\1", b"\0\1", b"\1\3", b"\2\4")
    codec.apply_delta(delta, held)
    expected = torch.zeros(1000, dtype=torch.int16)
    expected[3], expected[3 + 1 + 257] = 0x0201, 0x0403
    assert torch.equal(held["t"], expected)


def test_steps_written_by_hand_are_taken() -> None:
    held = {"t": torch.tensor([5, 0, -1, 7, -(2**15)], dtype=torch.int16)}
    # All five: by 0, -1, +1, +300 and -2, told as 0, 1, 2, 600 and 3.
    every = payload([["t", 5, 0, [5, 5], True]], bytes([0, 1, 2, 600 % 256, 3]), b"\0\0\0\2\0")
    codec.apply_delta(every, held)
    assert held["t"].tolist() == [5, -1, 0, 307, 2**15 - 2]
    # Two: place 1 by +1, and place 3 by -1.
    codec.apply_delta(payload([["t", 2, 1, [2, 2, 2], True]], b"\1\1", b"\2\1", b"\0\0"), held)
    assert held["t"].tolist() == [5, 0, 0, 306, 2**15 - 2]


bomb = zstd(bytes(1 << 24))  # 16 MiB of zeros in about 500 bytes
lie = b"\x28\xb5\x2f\xfd\xa0\x64\x00\x00\x00"  # a frame that says it holds 100 bytes, and ends
BAD = {
    "nothing": b"",
    "another format": b"ilw2" + payload([])[4:],
    "no header": b"ilw1\x05\0\0\0",
    "header beyond the end": payload([], header_size=1 << 31),
    "header cut": payload([["t", 1, 0, [1, 1]]], b"ab", header_size=3),
    "not a list": b"ilw1\x01\0\0\0\x05",
    "an entry of the wrong kind": payload([["t", "1", 0, [1, 1]]], b"ab"),
    "negative count": payload([["t", -1, 0, [1, 1]]], b"ab"),
    "too many elements": payload([["t", 101, 0, [101, 101]]], bytes(202)),
    "unknown tensor": payload([["u", 1, 0, [1, 1]]], b"ab"),
    "twice": payload([["t", 1, 0, [1, 1]], ["t", 1, 0, [1, 1]]], b"abab"),
    "a plane missing": payload([["t", 1, 0, [1]]], b"a"),
    "a plane too many": payload([["t", 1, 0, [1, 1, 1]]], b"abc"),
    "too many gap bytes": payload([["t", 1, 9, [1] * 11]], bytes(11)),
    "planes cut": payload([["t", 2, 0, [2, 2]]], b"abc"),
    "bytes left over": payload([["t", 1, 0, [1, 1]]], b"abc"),
    "place beyond the end": payload([["t", 1, 1, [1, 1, 1]]], b"\x64ab"),
    "places beyond the end": payload([["t", 2, 1, [2, 2, 2]]], b"\x32\x32abcd"),
    "plane longer than its elements": payload([["t", 1, 0, [2, 1]]], b"abc"),
    "no zstd": payload([["t", 9, 0, [9, 5]]], b"123456789", b"12345"),
    "zstd bomb": payload([["t", 99, 0, [99, 98]]], bytes(99), (bomb + bytes(98))[:98]),
    "zstd of fewer": payload(
        [["t", 99, 0, [99, len(zstd(bytes(98)))]]], bytes(99), zstd(bytes(98))
    ),
    "zstd that lies": payload([["t", 100, 0, [100, len(lie)]]], bytes(100), lie),
    "zstd with a tail": payload(
        [["t", 99, 0, [99, len(zstd(bytes(99))) + 1]]], bytes(99), zstd(bytes(99)) + b"x"
    ),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_bad_payload_is_refused_and_writes_nothing(data: bytes) -> None:
    held = {"t": torch.arange(100, dtype=torch.int16)}
    with pytest.raises(SyncError) as caught:
        codec.apply_delta(data, held)
    assert "\n" not in str(caught.value)
    assert torch.equal(held["t"], torch.arange(100, dtype=torch.int16))


def test_a_bad_entry_after_good_ones_writes_nothing() -> None:
    held = {"a": torch.zeros(4, dtype=torch.int8), "b": torch.zeros(4, dtype=torch.int8)}
    good, bad = ["a", 1, 0, [1]], ["b", 1, 1, [1, 1]]
    with pytest.raises(SyncError, match="index is beyond"):
        codec.apply_delta(payload([good, bad], b"\x01", b"\x04\x01"), held)
    assert not held["a"].any()


@EVERYTHING
@given(st.data())
def test_a_damaged_payload_is_refused_whole_or_stays_in_bounds(data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    old = {"a": torch.from_numpy(rng.integers(0, 9, 400)), "b": torch.zeros(5, 40).bfloat16()}
    new = copies(old)
    new["a"][::37] += 1
    new["b"][2] = 1.0
    delta = bytearray(codec.encode_delta(new, old, identity.specs(old)).payload)
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(delta) - 1))
        with pytest.raises(SyncError):
            codec.apply_delta(bytes(delta[:cut]), old)
        return
    for _ in range(data.draw(st.integers(1, 3))):
        delta[data.draw(st.integers(0, len(delta) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    held = copies(old)
    try:
        codec.apply_delta(bytes(delta), held)
    except SyncError:
        assert bits(held) == bits(old)


def test_a_name_that_is_no_text_is_refused() -> None:
    old = {"weight": torch.zeros(8)}
    delta = codec.encode_delta({"weight": torch.ones(8)}, old, identity.specs(old)).payload
    with pytest.raises(SyncError, match="header is damaged"):
        codec.apply_delta(delta.replace(b"weight", b"\xffeight"), old)


def test_an_anchor_has_to_be_whole(model: dict[str, Tensor], same: Same) -> None:
    anchor = codec.encode_anchor(model)
    assert same(codec.decode_anchor(anchor.payload, anchor.specs), model)
    fewer = codec.encode_anchor({n: t for n, t in model.items() if n != "norm"})
    with pytest.raises(SyncError, match="'norm' is missing"):
        codec.decode_anchor(fewer.payload, anchor.specs)
    with pytest.raises(SyncError, match="'norm' is unknown"):
        codec.decode_anchor(anchor.payload, fewer.specs)
    part = payload([["t", 1, 0, [1, 1]]], b"ab")
    with pytest.raises(SyncError, match="not whole"):
        codec.decode_anchor(part, {"t": identity.TensorSpec("int16", [2], "")})


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (identity.TensorSpec("int16", [3], ""), "not whole"),
        (identity.TensorSpec("int16", [1], ""), "does not fit"),
        (identity.TensorSpec("float32", [2], ""), "does not fit"),
        (identity.TensorSpec("object", [2], ""), "unknown dtype"),
    ],
)
def test_an_anchor_of_another_layout_is_refused(spec: identity.TensorSpec, complaint: str) -> None:
    with pytest.raises(SyncError, match=complaint):
        codec.decode_anchor(payload([["t", 2, 0, [2, 2]]], b"abcd"), {"t": spec})


def test_verify_names_the_tensor_that_differs(model: dict[str, Tensor]) -> None:
    expected = identity.specs(model)
    identity.verify(model, expected)
    with pytest.raises(SyncError, match="'scale' is missing"):
        identity.verify({n: t for n, t in model.items() if n != "scale"}, expected)
    with pytest.raises(SyncError, match="'more' is unknown"):
        identity.verify(model | {"more": model["norm"]}, expected)
    with pytest.raises(SyncError, match=r"'norm' is float32 \[6, 8\], not float32 \[48\]"):
        identity.verify(model | {"norm": model["norm"].view(6, 8)}, expected)
    other = model["norm"].clone()
    other[5] = 1.0000001
    with pytest.raises(SyncError, match="'norm' does not have the digest"):
        identity.verify(model | {"norm": other}, expected)
