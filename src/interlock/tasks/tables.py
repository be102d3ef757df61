"""The one reader of tables of Apache Arrow: Parquet files, and what `datasets` saves to disk.

    .parquet, .arrow ──pyarrow──> batches of columns ──> rows as rows.py reads them of JSONL

A file is read batch by batch, never whole. A row has every column of its file: one without a value
is None, as a null of JSON is. Numbers come as JSON would have written them: a 32-bit 0.1 is 0.1.
Only pyarrow is needed (interlock[data]), for what `datasets` wrote, too.
"""

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.errors import TaskError
from interlock.regular import open_regular
from interlock.tasks.rows import Row, WrittenFloat
from interlock.text import error_headline

if TYPE_CHECKING:
    from pyarrow import RecordBatch

SUFFIXES = (".parquet", ".arrow")
_BATCH_ROWS = 1024


def read_table(path: Path) -> Iterator[tuple[int, Row]]:
    """(number of the row from 1, row) of a file. Raises TaskError, also when there is none."""
    number = 0
    for batch in _batches(path):
        for row in _rows(path, batch):
            number += 1
            yield number, row
    if number == 0:
        raise TaskError(f"{path}: the file has no rows")


def _batches(path: Path) -> Iterator["RecordBatch"]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise TaskError(f"{path} needs pyarrow; pip install 'interlock[data]'") from None
    try:
        with open_regular(path) as file:
            if path.suffix == ".parquet":
                with parquet.ParquetFile(file) as table:
                    yield from table.iter_batches(_BATCH_ROWS)
            else:
                yield from _stream(ipc, pyarrow.PythonFile(file, "r"))
    except FileNotFoundError:
        raise TaskError(f"no data at {path}; give the path of a file") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
        why = error_headline(error, 120)
        raise TaskError(f"{path} cannot be read as {kind} ({why}); write it again") from None


def _stream(ipc: Any, file: Any) -> Iterator["RecordBatch"]:
    """Of Arrow's two forms of a file, `datasets` writes the stream."""
    with suppress(ValueError):
        yield from ipc.open_file(file)  # only a file of the other form has its magic bytes
        return
    file.seek(0)
    yield from ipc.open_stream(file)


def _rows(path: Path, batch: "RecordBatch") -> Iterator[Row]:
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(f"{path}: the column {twice!r} is there twice; give each another name")
    columns = [_values(path, name, batch.column(name)) for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _values(path: Path, name: str, column: Any) -> list[Any]:
    """A column [rows] as Python's values."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, LookupError, ArithmeticError, NotImplementedError) as error:
        # Text that is no UTF-8, a time out of Python's range or of a zone that nobody knows.
        why = error_headline(error, 120)
        raise TaskError(f"{path}: the column {name!r} cannot be read: {why}") from None
    match str(column.type):
        case "float" | "halffloat":  # of 32 and 16 bits: the shortest text that means the same
            shortest = column.to_numpy(zero_copy_only=False)
            return [
                None if value is None else float(str(short))
                for value, short in zip(values, shortest, strict=True)
            ]
        case kind if kind.startswith("decimal"):
            return [WrittenFloat(str(v)) if isinstance(v, Decimal) else v for v in values]
    return values
