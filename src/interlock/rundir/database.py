"""How a ledger's SQLite file is opened, to be written or only read, and what its errors become."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlock.errors import RunError
from interlock.rundir.files import storage_errors
from interlock.text import error_line

_REASON = 200  # characters of what SQLite says
_BUSY_TIMEOUT = 30.0  # seconds to wait for a reader that holds the file


@contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """As storage_errors; and what SQLite makes of damaged bytes is a RunError, too."""
    try:
        with storage_errors(path.parent):
            yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # of what was asked
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is damaged ({error_line(error, _REASON)}); restore it from a copy, or start a "
            "new run"
        ) from error


def connect(location: str) -> sqlite3.Connection:
    """isolation_level None: the transactions are the ones written above, and no others."""
    return sqlite3.connect(
        location, timeout=_BUSY_TIMEOUT, isolation_level=None, uri=True, check_same_thread=False
    )


@contextmanager
def kept(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Open beyond the block, unless that fails."""
    try:
        yield database
    except BaseException:
        database.close()
        raise


def refuse_pipe(path: Path) -> None:
    if path.exists() and not path.is_file():  # SQLite would wait for who writes to a pipe
        raise RunError(f"{path} is no file; restore the ledger from a copy")


def open_existing(path: Path) -> sqlite3.Connection:
    """A connection that reads and never writes."""
    # SQLite wants to create the -shm file of a WAL database even to read it; where the disk
    # forbids that, and no -wal file is left to merge, the file is all there is: immutable.
    modes = ["mode=ro"] if Path(f"{path}-wal").exists() else ["mode=ro", "immutable=1"]
    for mode in modes:
        try:
            with kept(connect(f"{path.absolute().as_uri()}?{mode}")) as database:
                database.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
            break
        except sqlite3.OperationalError:
            if mode == modes[-1]:
                raise
    return database
