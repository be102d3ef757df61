"""The tables of the ledger: which there are, in which formats, and how the older ones are read."""

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.errors import RunError
from interlock.records.rl import Group, ScoredGroup
from interlock.rundir import older

# Of the tables below and the records in them; kept in the file as PRAGMA user_version. Of the
# formats before it, those with a converter can still be read.
_FORMAT = 4
OLDER: dict[int, dict[type[msgspec.Struct], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    2: {Group: older.group, ScoredGroup: older.scored_group},
    3: {},  # whose digests are of the payload alone
}
_SEALED = "problem_id TEXT NOT NULL, payload BLOB NOT NULL, sha256 TEXT NOT NULL"
_PLACE = "stage INTEGER NOT NULL, step INTEGER NOT NULL, position INTEGER NOT NULL"
_STREAM = "stage INTEGER NOT NULL, sequence INTEGER NOT NULL"
_TABLES = {
    "groups": f"{_PLACE}, sequence INTEGER NOT NULL, {_SEALED}, "
    "PRIMARY KEY (stage, step, position), UNIQUE (stage, sequence)",
    "evaluations": f"{_PLACE}, {_SEALED}, PRIMARY KEY (stage, step, position)",
    "arrivals": f"{_STREAM}, {_SEALED}, PRIMARY KEY (stage, sequence)",
    "set_asides": f"{_STREAM}, reason TEXT NOT NULL, PRIMARY KEY (stage, sequence)",
}


def format_of(database: sqlite3.Connection, path: Path) -> int:
    """The format of the tables, 0 when there are none yet. RunError when it cannot be read."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
    if version not in (_FORMAT, *OLDER) and (version or tables):
        known = ", ".join(map(str, sorted([*OLDER, _FORMAT])))
        raise RunError(
            f"{path} has ledger format {version}, and this version of Interlock reads {known}; "
            "use the version that wrote it, or start a new run"
        )
    if version and (lost := _TABLES.keys() - tables):
        raise RunError(
            f"{path} has lost its table {min(lost)!r}; restore it from a copy, or start a new run"
        )
    found: int = version
    return found


def create_tables(database: sqlite3.Connection) -> int:
    """All tables and the format in one transaction: a kill leaves both or neither. -> format"""
    with database:
        database.execute("BEGIN IMMEDIATE")
        for table, columns in _TABLES.items():
            database.execute(f"CREATE TABLE {table} ({columns})")
        database.execute(f"PRAGMA user_version = {_FORMAT}")
        database.execute(f"PRAGMA application_id = {1 + secrets.randbelow(1 << 30)}")
    return _FORMAT
