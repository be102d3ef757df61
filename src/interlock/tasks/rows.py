"""The one reader of JSONL: a JSON object a line, for tasks and for every stage that has data.

UTF-8; a byte order mark before the first line is no part of it. Blank lines are passed over, and
only a newline ends a line. What is wrong is told with file and line.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from interlock.errors import ModelError, TaskError
from interlock.regular import read_regular
from interlock.text import one_line

Row = dict[str, Any]
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
_ARRAY = re.compile(rb"\s*\[\s*\{")
_MOST_DIGITS = 400  # a float ends at 309


class WrittenFloat(float):
    """A number that knows how it was written: 0.00001 is no "1e-05" to whoever reads an answer."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of every line. Raises TaskError, also when there is none."""
    try:
        content = read_regular(path).removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise TaskError(f"no data at {path}; give the path of a JSONL file") from None
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from None
    if other := _other_form(content):
        raise TaskError(f"{path} {other}")
    lines = content.split(b"\n")
    if not any(line.strip() for line in lines):
        raise TaskError(f"{path}: the file is empty")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            with row_errors(path, number):
                row = _row(line)
            yield number, row


def _other_form(content: bytes) -> str | None:
    """What a file is that is no JSONL, and what to do about it, where its first bytes tell."""
    if content.startswith(_COMPRESSED):
        return "is compressed; unpack it, and give the path of what comes out"
    if content.startswith(b"PAR1"):
        return "is a Parquet file; give it a name that ends in .parquet"
    if _ARRAY.match(content):
        return "is one JSON array; write its objects one a line, as jq -c '.[]' does"
    return None


@contextmanager
def row_errors(path: Path, number: int) -> Iterator[None]:
    """What is wrong in the block is wrong with one row: told as a TaskError with file and line."""
    try:
        yield
    except (ValueError, ModelError, TaskError) as error:
        raise TaskError(f"{path}:{number}: {error}") from None


def plain(number: int | float) -> str:
    """A number as plain digits, as it was written where that is known. Raises ValueError."""
    if isinstance(number, int):
        return str(number)
    exact = Decimal(number.text if isinstance(number, WrittenFloat) else repr(number))
    if not exact.is_finite():
        raise ValueError(f"{exact} is no number that an answer can be")
    if abs(exact.adjusted()) > _MOST_DIGITS:
        raise ValueError(f"the number {exact} has too many digits; give it as a text")
    return format(exact, "f")


def _row(line: bytes) -> Row:
    try:
        text = line.decode()
        row = json.loads(
            text,
            parse_float=WrittenFloat,
            parse_int=_whole,
            parse_constant=_refuse,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON: {error.msg}, column {error.colno}; a line is one JSON object"
        ) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, not {one_line(text, 40)}")
    if "\\u" in text and _has_half_a_character(row):
        raise ValueError("half of a surrogate pair is no text")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {one_line(twice, 40)!r} stands twice")
    return found


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit, against the time it takes
        raise ValueError(f"a number of {len(digits)} digits; give it as a text") from None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _has_half_a_character(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
