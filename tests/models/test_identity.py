"""A file of weights is told from another by its content."""

import random
from hashlib import sha256
from pathlib import Path

import pytest

from interlock.models import identity
from interlock.models.identity import model_digest, weights_digest


def test_weights_are_known_by_all_bytes_or_by_blocks_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_BLOCK", 8)
    monkeypatch.setattr(identity, "_WHOLE", 100)
    path = tmp_path / "model.safetensors"
    content = random.Random(0).randbytes(797)
    path.write_bytes(content)
    assert weights_digest(path) == f"sha256 {sha256(content).hexdigest()}"
    longer = random.Random(1).randbytes(8 * 640 - 3)
    path.write_bytes(longer)
    known = weights_digest(path)
    assert known.endswith(" of 64 blocks")
    starts = [8 * (at * 639 // 63) for at in range(64)]
    parts = b"".join(longer[start : start + 8] for start in starts)
    assert known == f"sha256 {sha256(b'5117 ' + parts).hexdigest()} of 64 blocks"
    for place, seen in ((0, True), (len(longer) - 1, True), (8 * 10, True), (8 * 11, False)):
        other = bytearray(longer)
        other[place] ^= 1
        path.write_bytes(other)
        assert (weights_digest(path) != known) == seen
    path.write_bytes(longer + b"x")
    assert weights_digest(path) != known


def test_a_model_is_all_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "other.txt").write_bytes(b"no weights")
    each = [
        f"{name}.safetensors sha256 {sha256(text).hexdigest()}"
        for name, text in (("a", b"one"), ("b", b"two"))
    ]
    known = model_digest(tmp_path)
    assert known == f"sha256 {sha256(chr(10).join(each).encode()).hexdigest()}"
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    assert model_digest(tmp_path) != known
