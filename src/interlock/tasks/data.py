"""Which files a data set is made of, and their rows, whatever the format.

    "rows.jsonl", "d/", "hf:org/name" ──find──> DataFiles(train, test)
    files ──rows_of──> (file, number, row), …                          by rows.py or tables.py

A path means, in this order:

    a file              .parquet or .arrow, or else JSONL
    a directory         as `datasets` saves one (dataset_dict.json, state.json); else train.jsonl;
                        else train*.parquet, in it or in its data/; and test likewise
    hf:org/name         a data set of the hub, as a directory; hf:org/name/folder is one in it, and
                        a revision comes last: hf:org/name/folder@v1
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from interlock import hub
from interlock.errors import TaskError
from interlock.regular import read_regular
from interlock.tasks.rows import Row, read_rows
from interlock.tasks.tables import SUFFIXES, read_table

_ON_THE_HUB = tuple(
    f"{folder}{part}{rest}"
    for part in ("train", "test")
    for folder, rest in (("", ".jsonl"), ("", "*.parquet"), ("data/", "*.parquet"))
)
_IN_A_FOLDER = re.compile(r"(hf:[^/@]+/[^/@]+)/([^@]+)(@.+)?")
_MOST_BYTES = 1 << 24  # of what tells which files there are


class DataFiles(NamedTuple):
    """The files of each part of a data set, in the order in which they are read."""

    train: Sequence[Path]
    test: Sequence[Path] = ()  # empty: it has no such part


def find(path: str) -> DataFiles:
    """The files that `path` means. Raises TaskError when there are none, or it is not clear."""
    place = _place(path)
    if place.is_dir():
        found = _saved(place) or _named(place)
        if found is not None:
            return found
        raise TaskError(
            f"{path} has no train.jsonl and no train*.parquet, and nothing that `datasets` saved; "
            f"give a file, or a directory with one of these{_folders(path, place)}"
        )
    if place.exists():
        return DataFiles([place])
    hint = "" if place.suffix in (".jsonl", *SUFFIXES) else hub.hint(path)
    raise TaskError(
        f"there is no {path}; give a file (JSONL, Parquet), or a directory with train.jsonl{hint}"
    )


def rows_of(files: Sequence[Path]) -> Iterator[tuple[Path, int, Row]]:
    """(file, number of the line or row from 1, row), one file after another. Raises TaskError."""
    for path in files:
        reader = read_table if path.suffix in SUFFIXES else read_rows
        for number, row in reader(path):
            yield path, number, row


def _place(path: str) -> Path:
    if not path.startswith(hub.PREFIX):
        return Path(path)
    within = _IN_A_FOLDER.fullmatch(path)
    if within is None:
        return hub.fetch(path, "dataset", _ON_THE_HUB)
    address, folder, revision = within.groups()
    snapshot = hub.fetch(
        address + (revision or ""), "dataset", [f"{folder}/{each}" for each in _ON_THE_HUB]
    )
    return snapshot / folder


def _saved(place: Path) -> DataFiles | None:
    """What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave behind."""
    if (place / "dataset_dict.json").is_file():
        names = _told(place / "dataset_dict.json", "splits")
        if "train" not in names:
            raise TaskError(
                f"{place} has the parts {', '.join(map(repr, names))} and no 'train'; give the "
                "directory of one of them"
            )
        test = _shards(place / "test") if "test" in names else []
        return DataFiles(_shards(place / "train"), test)
    return DataFiles(_shards(place)) if (place / "state.json").is_file() else None


def _shards(place: Path) -> list[Path]:
    files = [place / name for name in _told(place / "state.json", "_data_files")]
    if not files:
        raise TaskError(f"{place} is a data set without rows")
    return files


def _told(path: Path, key: str) -> list[str]:
    """The names that one of the files of `datasets` has under `key`."""
    try:
        told = json.loads(read_regular(path, _MOST_BYTES))[key]
        names = [each["filename"] if isinstance(each, dict) else each for each in told]
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        names = [None]
    if not all(isinstance(name, str) and Path(name).name == name != ".." for name in names):
        raise TaskError(f"{path} is not as `datasets` writes it; save the data set again")
    return names


def _named(place: Path) -> DataFiles | None:
    """Files called after the part that they are of."""
    lines, tables = place / "train.jsonl", _tables(place, "train")
    if lines.is_file() and tables:
        raise TaskError(f"{place} has train.jsonl and {tables[0].name}; give the one that is meant")
    if lines.is_file():
        test = place / "test.jsonl"
        return DataFiles([lines], [test] if test.is_file() else [])
    return DataFiles(tables, _tables(place, "test")) if tables else None


def _tables(place: Path, part: str) -> list[Path]:
    """As the hub has them: train.parquet, or train-00000-of-00002.parquet and so on."""
    pattern = f"{part}*.parquet"
    return sorted(place.glob(pattern)) or sorted((place / "data").glob(pattern))


def _folders(path: str, place: Path) -> str:
    """For the end of a complaint: where the data may be instead."""
    if path.startswith(hub.PREFIX):
        return "; where it has them in a folder, write hf:org/name/folder"
    inside = sorted(each.name for each in place.iterdir() if each.is_dir() and _named(each))
    return f" (there are {', '.join(map(repr, inside[:8]))} in it)" if inside else ""
