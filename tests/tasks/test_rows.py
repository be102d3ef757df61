"""The reader of JSONL against lines of any kind: rows, or file and line of what is wrong."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import TaskError
from interlock.tasks.rows import read_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
LINES = st.one_of(
    st.dictionaries(st.text(), VALUES, max_size=3).map(lambda row: json.dumps(row).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
    st.sampled_from(
        [b"[" * 99_999, b'{"a":' * 99_999, b'{"a": 1e999}', b"9" * 5_000, b"\xef\xbb\xbf"]
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=4))
def test_any_line_is_an_object_or_named(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([b'{"first": 1}', *lines]))
    try:
        rows = list(read_rows(path))
    except TaskError as error:
        place = str(error).removeprefix(f"{path}:").partition(":")[0]
        assert int(place) >= 2 and "\n" not in str(error)
    else:
        assert rows[0] == (1, {"first": 1})
        for _, row in rows:
            assert isinstance(row, dict)
            json.dumps(row, ensure_ascii=False).encode()


ROWS = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
PLAIN = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps(ROWS).encode(), "is one JSON array; write its objects one a line"),
        (b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=1).encode(), "is one JSON array"),
        (gzip.compress(PLAIN), "is compressed; unpack it"),
        (bz2.compress(PLAIN), "is compressed; unpack it"),
        (lzma.compress(PLAIN), "is compressed; unpack it"),
        (b"PAR1" + bytes(8) + b"PAR1", "give it a name that ends in .parquet"),
        (json.dumps(ROWS[0], indent=1).encode(), "column 2; a line is one JSON object"),
        (b"question,answer\na,1\n", "column 1; a line is one JSON object"),
        (b"3\n" + PLAIN, "expected a JSON object, not 3"),
    ],
    ids=[
        "array",
        "indented-array",
        "gzip",
        "bz2",
        "xz",
        "parquet",
        "indented-object",
        "csv",
        "number",
    ],
)
def test_what_is_no_jsonl_is_told_with_what_to_do(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError) as refused:
        list(read_rows(path))
    assert told in str(refused.value) and "\n" not in str(refused.value)
    path.write_bytes(PLAIN)
    assert [row for _, row in read_rows(path)] == ROWS
