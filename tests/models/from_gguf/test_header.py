"""Headers of GGUF files that are sound, and those that lie."""

import math
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import ModelError
from interlock.models.from_gguf.header import read_gguf
from interlock.models.from_gguf.settings import hugging_face_config
from interlock.models.from_gguf.vocabulary import tokenizer_of

HUGE = 2**63
F32, U32, STRING, LIST = 0, 4, 8, 9
INFO = ("w", [2, 4], F32, 0)


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def written(
    infos: list[tuple[str, list[int], int, int]] | None = None,
    entries: list[bytes] | None = None,
    data: bytes = b"\x01" * 64,
    **says: int,
) -> bytes:
    """A file; `says` replaces numbers of its head: version, tensors, entry_count, dimensions."""
    infos = [INFO] if infos is None else infos
    entries = entries or []
    head = b"GGUF" + struct.pack(
        "<IQQ",
        says.get("version", 3),
        says.get("tensors", len(infos)),
        says.get("entry_count", len(entries)),
    )
    body = head + b"".join(entries)
    for name, shape, kind, offset in infos:
        body += text(name) + struct.pack("<I", says.get("dimensions", len(shape)))
        body += struct.pack(f"<{len(shape)}QIQ", *shape[::-1], kind, offset)
    return body + b"\0" * (-len(body) % 32) + data


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelError) as raised:
        read_gguf(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message and len(message) < 400
    return message


def test_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    entries = [
        entry("name", STRING, text("naïve")),
        entry("sizes", LIST, struct.pack("<IQ3I", U32, 3, 7, 8, 9)),
        entry("words", LIST, struct.pack("<IQ", STRING, 2) + text("a b") + text("")),
        entry("ratio", 6, struct.pack("<f", 0.5)),
        entry("yes", 7, b"\x01"),
    ]
    values = np.arange(16, dtype=np.float32)
    infos = [INFO, ("v", [2, 32], 8, 32)]  # Q8_0: 34 bytes for 32 values
    path.write_bytes(written(infos, entries, values.tobytes() + b"\0" * 4 + bytes(68)))
    file = read_gguf(path)
    sizes = file.metadata.pop("sizes")
    assert sizes.tolist() == [7, 8, 9]
    assert file.metadata == {"name": "naïve", "words": ["a b", ""], "ratio": 0.5, "yes": True}
    w, v = file.tensors["w"], file.tensors["v"]
    assert (w.shape, w.type, w.nbytes) == ((2, 4), GGMLQuantizationType.F32, 32)
    assert file.rows(w).view(np.float32).tolist() == values[:8].reshape(2, 4).tolist()
    assert (v.start - w.start, v.nbytes, file.rows(v).shape) == (32, 68, (2, 34))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"GGUF", "ends at byte 4"),
        (b"GGML" + bytes(100), "does not begin with GGUF"),
        (written(version=1), "version 1 is not read"),
        (written(version=3 << 24), "big-endian"),
        (written(tensors=HUGE), f"says that it has {HUGE} tensors"),
        (written(entry_count=HUGE), f"says that it has {HUGE} metadata entries"),
        (written(dimensions=5), "5 dimensions"),
        (written(dimensions=0), "0 dimensions"),
        (written([("w", [2**40, 2**40], F32, 0)]), "does not lie in its data"),
        (written([("w", [0, 4], F32, 0)]), "no whole blocks"),
        (written([("w", [2, 31], 8, 0)]), "no whole blocks of Q8_0"),
        (written([("w", [2, 4], F32, 64)]), "does not lie in its data"),
        (written([("w", [2, 4], F32, HUGE)]), "does not lie in its data"),
        (written([("w", [2, 4], F32, 8)]), "does not lie in its data"),
        (written([("w", [2, 4], 999, 0)]), "type 999"),
        (written([INFO, INFO]), "stands twice"),
        (written([INFO, ("v", [1, 4], F32, 0)]), "lie upon one another"),
        (written(data=b""), "does not lie in its data"),
        (written(entries=[entry("a", 99, b"")]), "a is of type 99"),
        (written(entries=[entry("a", STRING, text("x", HUGE))]), "ends at byte"),
        (written(entries=[entry("a", STRING, text(b"\xff\xfe"))]), "no UTF-8"),
        (written(entries=[entry("a", LIST, struct.pack("<IQ", U32, HUGE))]), "ends at byte"),
        (written(entries=[entry("a", LIST, struct.pack("<IQ", STRING, HUGE))]), "lists"),
        (written(entries=[entry("a", LIST, struct.pack("<IQ", LIST, 1))]), "values of type 9"),
        (written(entries=[entry("a", U32, bytes(4))] * 2), "stands twice"),
        (
            written(entries=[entry("general.alignment", U32, struct.pack("<I", 0))]),
            "general.alignment is 0",
        ),
        (
            written(entries=[entry("general.alignment", STRING, text("\x1b[31m\n"))]),
            "general.alignment is",
        ),
    ],
)
def test_lies_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(tmp_path / "lies.gguf", content)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="it is a pipe"):
        read_gguf(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="cannot read"):
        read_gguf(tmp_path / "absent.gguf")


LONG = written(
    [INFO, ("v", [2, 32], 8, 32)],
    [
        entry("general.architecture", STRING, text("llama")),
        entry("tokenizer.ggml.tokens", LIST, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
        entry("sizes", LIST, struct.pack("<IQ3I", U32, 3, 7, 8, 9)),
    ],
    bytes(256),
)


def read_all(path: Path) -> None:
    """As far as a file goes that is no model."""
    file = read_gguf(path)
    for tensor in file.tensors.values():
        assert tensor.start + tensor.nbytes <= path.stat().st_size
        assert math.prod(file.rows(tensor).shape) == tensor.nbytes
    hugging_face_config(file)
    tokenizer_of(file)


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_one_line_and_no_more_memory_than_the_file_has(
    tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(LONG)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 8))
        bad = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x40\0\0\0\0", b"\x7f"]))
        content[place : place + len(bad)] = bad
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(content[:cut]))
    tracemalloc.start()
    try:
        read_all(path)
    except ModelError as error:
        assert "\n" not in str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 300_000


def test_counts_within_a_large_file_allocate_no_more_than_it(tmp_path: Path) -> None:
    """A list of as many empty strings as there is room for, and of numbers."""
    strings = entry("a", LIST, struct.pack("<IQ", STRING, 2**16) + bytes(8 * 2**16))
    path = tmp_path / "strings.gguf"
    path.write_bytes(written(entries=[strings]))
    numbers = tmp_path / "numbers.gguf"
    numbers.write_bytes(
        written(entries=[entry("a", LIST, struct.pack("<IQ", 0, 2**22) + bytes(2**22))])
    )
    for each in (path, numbers):
        tracemalloc.start()
        read_gguf(each)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1.2 * each.stat().st_size + 2e5
