"""The ledger: every scored group and every evaluation, durable before it is used.

    groups ── record ──> one SQLite transaction (WAL, synchronous=FULL) ──> read ──> learner, report

It is the recovery boundary of a run: what `record` returned from survives a kill or a power cut.
A resumed run reads a step from here rather than generating it again, so an entry never changes.
"""

import sqlite3
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from interlock.errors import RunError
from interlock.records import ScoredGroup, from_bytes, to_bytes
from interlock.rundir.files import storage_errors

_BUSY_TIMEOUT = 30.0  # seconds to wait for a reader that holds the file


class Ledger:
    """Scored groups by (stage, step), in the order in which they were recorded."""

    def __init__(self, path: Path) -> None:
        """Open for writing, creating the file when there is none. Raises RunError."""
        self.path = path
        with storage_errors(path.parent):
            self._database = _connect(str(path))
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            _create_tables(self._database)

    @classmethod
    def read_only(cls, path: Path) -> "Ledger":
        """Open for reading beside a running writer or on a read-only disk; no file reads as empty.

        Raises RunError when the file cannot be read.
        """
        ledger = cls.__new__(cls)
        ledger.path = path
        if not path.exists():
            ledger._database = _connect(":memory:")
            _create_tables(ledger._database)
            return ledger
        # SQLite wants to create the -shm file of a WAL database even to read it; where the disk
        # forbids that, and no -wal file is left to merge, the file is all there is: immutable.
        modes = ["mode=ro"] if Path(f"{path}-wal").exists() else ["mode=ro", "immutable=1"]
        with storage_errors(path.parent):
            for mode in modes:
                ledger._database = _connect(f"{path.absolute().as_uri()}?{mode}")
                try:
                    ledger._database.execute("SELECT 1 FROM groups LIMIT 1")
                    break
                except sqlite3.OperationalError:
                    ledger._database.close()
                    if mode == modes[-1]:
                        raise
        return ledger

    def record(self, stage: int, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Keep all groups of one step, in one transaction, durable on return.

        Recording the same bytes again changes nothing. Raises RunError when the step holds other
        groups already, and when the disk is full or read-only; the ledger is then as before.
        """
        self._record("groups", stage, step, groups)

    def read(self, stage: int, step: int) -> list[ScoredGroup]:
        """The groups of one step; [] when none were recorded. RunError when one is damaged."""
        return self._read("groups", stage, step)

    def steps(self) -> list[tuple[int, int]]:
        """Every (stage, step) that holds groups, in order."""
        return self._steps("groups")

    def count(self) -> int:
        """How many groups there are in all."""
        with storage_errors(self.path.parent):
            return self._database.execute("SELECT COUNT(*) FROM groups").fetchone()[0]

    def record_evaluation(self, stage: int, step: int, scored: Sequence[ScoredGroup]) -> None:
        """Keep the greedy held-out answers after `step` updates of a stage; rules as `record`."""
        self._record("evaluations", stage, step, scored)

    def read_evaluation(self, stage: int, step: int) -> list[ScoredGroup]:
        return self._read("evaluations", stage, step)

    def evaluation_steps(self) -> list[tuple[int, int]]:
        return self._steps("evaluations")

    def close(self) -> None:
        self._database.close()

    def _record(self, table: str, stage: int, step: int, groups: Sequence[ScoredGroup]) -> None:
        payloads = [to_bytes(group) for group in groups]
        digests = [sha256(payload).hexdigest() for payload in payloads]
        rows = [
            (stage, step, position, group.group.problem.id, payload, digest)
            for position, (group, payload, digest) in enumerate(
                zip(groups, payloads, digests, strict=True)
            )
        ]
        with storage_errors(self.path.parent), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            kept = [digest for _, digest in self._rows(table, "sha256", stage, step)]
            if not kept:
                self._database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?)", rows)
            elif kept != digests:
                raise RunError(
                    f"{self.path} holds other {table} for stage {stage} step {step}: the resumed "
                    "run does not repeat the first one; start again in another directory"
                )

    def _read(self, table: str, stage: int, step: int) -> list[ScoredGroup]:
        groups = []
        with storage_errors(self.path.parent):
            rows = self._rows(table, "payload, sha256", stage, step)
        for position, payload, digest in rows:
            where = f"{self.path}: {table}, stage {stage} step {step} position {position}"
            if sha256(payload).hexdigest() != digest:
                raise RunError(f"{where} is damaged; restore the ledger or start a new run")
            try:
                groups.append(from_bytes(payload, ScoredGroup))
            except msgspec.MsgspecError as error:
                raise RunError(f"{where} was written by another version ({error})") from None
        return groups

    def _rows(self, table: str, columns: str, stage: int, step: int) -> list[tuple]:
        return self._database.execute(
            f"SELECT position, {columns} FROM {table} WHERE stage = ? AND step = ? "
            "ORDER BY position",
            (stage, step),
        ).fetchall()

    def _steps(self, table: str) -> list[tuple[int, int]]:
        with storage_errors(self.path.parent):
            return self._database.execute(
                f"SELECT DISTINCT stage, step FROM {table} ORDER BY stage, step"
            ).fetchall()


def _connect(location: str) -> sqlite3.Connection:
    """isolation_level None: the transactions are the ones written above, and no others."""
    return sqlite3.connect(location, timeout=_BUSY_TIMEOUT, isolation_level=None, uri=True)


def _create_tables(database: sqlite3.Connection) -> None:
    for table in ("groups", "evaluations"):
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (stage INTEGER NOT NULL, step INTEGER NOT NULL, "
            "position INTEGER NOT NULL, problem_id TEXT NOT NULL, payload BLOB NOT NULL, "
            "sha256 TEXT NOT NULL, PRIMARY KEY (stage, step, position))"
        )
