"""The ledger: every group and every evaluation, durable before it is used.

    Group ── arrive ──> arrivals ──┐
                                   │ one SQLite transaction (WAL, synchronous=FULL)
    ScoredGroup ── record ─────────┴─> groups ── read ──> learner, report

It is the recovery boundary of a run: what `arrive` or `record` returned from survives a kill or a
power cut. A resumed run reads a step from here rather than generating it again, so what a step
holds never changes. A group's `sequence` is its problem's place in the stage's endless stream of
problems, from 0; the database itself refuses to use one twice. Any thread may call anything here.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from interlock.errors import RunError
from interlock.records.coding import Record, from_bytes, to_bytes
from interlock.records.rl import Group, ScoredGroup, Verdict
from interlock.rundir.database import (
    connect,
    kept,
    ledger_errors,
    open_existing,
    refuse_pipe,
)
from interlock.rundir.ledger_tables import OLDER, create_tables, format_of


class _By(msgspec.Struct):
    """Of a group, only whose it is: the rest is not decoded."""

    worker: str


class JudgedProblem(msgspec.Struct):
    """Of a problem, only which it is."""

    id: str
    task: str = ""


class AskedGroup(msgspec.Struct):
    problem: JudgedProblem


class JudgedGroup(msgspec.Struct):
    """Of a scored group, what was asked and how the answers were judged: no answer is decoded."""

    group: AskedGroup
    verdicts: list[Verdict]


class Ledger:
    """Groups that wait to be used by (stage, sequence), used and scored ones by (stage, step)."""

    missing = False  # there is no file, or nothing in it

    def __init__(self, path: Path) -> None:
        """Open for writing, creating the file when there is none.

        Raises RunError, also when the ledger was written in another format: rows of an older one
        are read, by `read_only`, but not added to.
        """
        self.path = path
        self._lock = threading.RLock()
        with ledger_errors(path):
            if path.is_symlink():  # which SQLite would follow
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            refuse_pipe(path)
            with kept(connect(str(path))) as self._database:
                self.format = format_of(self._database, path)
                self.check_current()
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                if not self.format:
                    self.format = create_tables(self._database)

    @classmethod
    def read_only(cls, path: Path) -> "Ledger":
        """Open for reading beside a running writer or on a read-only disk; no file reads as empty.

        Raises RunError when the file cannot be read.
        """
        ledger = cls.__new__(cls)
        ledger.path = path
        ledger._lock = threading.RLock()
        with ledger_errors(path):
            refuse_pipe(path)
            there = path.exists()
            with kept(open_existing(path) if there else connect(":memory:")) as ledger._database:
                ledger.format = format_of(ledger._database, path)
        if ledger.format:
            return ledger
        ledger.close()  # no file, or a kill came before the first table
        return cls.empty(path)

    @classmethod
    def empty(cls, path: Path) -> "Ledger":
        """In memory, for readers of a file that is not there."""
        ledger = cls.__new__(cls)
        ledger.path, ledger.missing = path, True
        ledger._lock = threading.RLock()
        with ledger_errors(path):
            ledger._database = connect(":memory:")
            ledger.format = create_tables(ledger._database)
        return ledger

    @property
    def identity(self) -> int:
        """Drawn when it was made, so that no run takes another's; 0: it is of before there were."""
        with self._lock:
            found: int = self._database.execute("PRAGMA application_id").fetchone()[0]
        return found

    def check_current(self) -> None:
        """Raise RunError when the ledger can be read, but is not of the format that is written."""
        if self.format in OLDER:
            raise RunError(
                f"{self.path} has ledger format {self.format}, which this version of Interlock "
                "reads but does not go on with; finish the run with the version that wrote it, or "
                "start a new run"
            )

    def arrive(self, stage: int, groups: Sequence[tuple[int, Group]]) -> list[int]:
        """Keep finished groups, by sequence, until they are used or discarded; durable on return.

        One that arrives again replaces the earlier. Returns the sequences that were accepted: one
        that a step has used already is not. Raises RunError when the disk does not take them.
        """
        rows = [
            (stage, sequence, *sealed(group, "arrivals", stage, sequence, group.problem.id))
            for sequence, group in groups
        ]
        accepted: dict[int, None] = {}
        with self.transaction() as database:
            for row in rows:
                changed = database.execute(
                    "INSERT OR REPLACE INTO arrivals SELECT ?, ?, ?, ?, ? "
                    "WHERE NOT EXISTS (SELECT 1 FROM groups WHERE stage = ? AND sequence = ?)",
                    (*row, *row[:2]),
                )
                if changed.rowcount:
                    accepted[row[1]] = None
        return list(accepted)

    def arrivals(self, stage: int) -> list[tuple[int, Group]]:
        """The groups that arrived and were not used, by sequence. RunError when one is damaged."""
        with self.access() as database:
            rows = database.execute(
                "SELECT sequence, problem_id, payload, sha256 FROM arrivals "
                "WHERE stage = ? ORDER BY sequence",
                (stage,),
            ).fetchall()
        found = []
        for sequence, problem, payload, digest in rows:
            key = "arrivals", stage, sequence, problem
            where = f"{self.path}: arrivals, stage {stage} sequence {sequence}"
            found.append((sequence, self.unsealed(where, Group, key, payload, digest)))
        return found

    def discard(self, stage: int, sequences: Sequence[int]) -> None:
        """Forget arrivals; those that are not there are gone already."""
        with self.transaction() as database:
            _delete_arrivals(database, stage, sequences)

    def withdraw(self, stage: int, worker: str) -> list[int]:
        """Forget the arrivals that this worker made; durable on return. -> their sequences"""
        with self.transaction() as database:
            rows = database.execute(
                "SELECT sequence, payload FROM arrivals WHERE stage = ?", (stage,)
            )
            made = [sequence for sequence, data in rows if from_bytes(data, _By).worker == worker]
            _delete_arrivals(database, stage, made)
        return made

    def record(
        self, stage: int, step: int, groups: Sequence[ScoredGroup], sequences: Sequence[int]
    ) -> None:
        """Use groups: keep all of one step with their sequences, which leave the arrivals.

        One transaction, durable on return. Recording the same again changes nothing. Raises
        RunError when the step holds other groups already, when a sequence was used before, and
        when the disk is full or read-only; the ledger is then as before.
        """
        rows = [
            (
                *(stage, step, position, sequence),
                *sealed(scored, "groups", stage, step, position, sequence, scored.group.problem.id),
            )
            for position, (scored, sequence) in enumerate(zip(groups, sequences, strict=True))
        ]
        with self.transaction() as database:
            try:
                self._insert("groups", stage, step, rows)
            except sqlite3.IntegrityError:
                raise RunError(self._explain_clash(stage, step, sequences)) from None
            _delete_arrivals(database, stage, sequences)

    def read(self, stage: int, step: int) -> list[ScoredGroup]:
        """The groups of one step; [] when none were recorded. RunError when one is damaged."""
        return self._read("groups", stage, step, ScoredGroup)

    def whole(self, stage: int, step: int) -> tuple[list[ScoredGroup], str]:
        """As `read`, without what is damaged; and the first of that, in a line."""
        found, damage = [], ""
        for read in self._each("groups", stage, step, ScoredGroup):
            try:
                found.append(read())
            except RunError as error:
                damage = damage or str(error)
        return found, damage

    def judged(self, stage: int, step: int) -> list[JudgedGroup]:
        """As `read`, of each group only what was asked and how it was judged."""
        return self._read("groups", stage, step, JudgedGroup)

    def sequences(self, stage: int, step: int) -> list[int]:
        """The sequences of one step's groups, in the order of `read`."""
        return [row[0] for row in self._rows("groups", "sequence", stage, step)]

    def used(self, stage: int) -> set[int]:
        """The sequences of all groups that the steps of a stage have used."""
        with self.access() as database:
            rows = database.execute("SELECT sequence FROM groups WHERE stage = ?", (stage,))
            return {sequence for (sequence,) in rows}

    def steps(self) -> list[tuple[int, int]]:
        """Every (stage, step) that holds groups, in order."""
        return self._steps("groups")

    def count(self) -> int:
        """How many groups were used in all."""
        with self.access() as database:
            return database.execute("SELECT COUNT(*) FROM groups").fetchone()[0]

    def set_aside(self, stage: int, sequence: int, reason: str) -> None:
        """Note that a problem will not be tried again, and why; the first reason stands."""
        with self.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO set_asides VALUES (?, ?, ?)", (stage, sequence, reason)
            )

    def set_asides(self, stage: int) -> dict[int, str]:
        """Why each problem that was set aside was, by sequence."""
        with self.access() as database:
            return dict(
                database.execute(
                    "SELECT sequence, reason FROM set_asides WHERE stage = ? ORDER BY sequence",
                    (stage,),
                )
            )

    def record_evaluation(self, stage: int, step: int, scored: Sequence[ScoredGroup]) -> None:
        """Keep the held-out answers after `step` updates of a stage; rules as `record`."""
        rows = [
            (
                *(stage, step, position),
                *sealed(group, "evaluations", stage, step, position, group.group.problem.id),
            )
            for position, group in enumerate(scored)
        ]
        with self.transaction():
            self._insert("evaluations", stage, step, rows)

    def read_evaluation(self, stage: int, step: int) -> list[ScoredGroup]:
        return self._read("evaluations", stage, step, ScoredGroup)

    def evaluation_steps(self) -> list[tuple[int, int]]:
        return self._steps("evaluations")

    def copy_to(self, path: Path) -> None:
        """Write all of it to a new file, as one moment has it. Raises RunError."""
        with self.access() as database, ledger_errors(path), closing(connect(str(path))) as target:
            database.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")

    def forget_after(self, stage: int, step: int) -> None:
        """Drop what came after a step, and all that waits; in one transaction."""
        later = "WHERE stage > ? OR (stage = ? AND step > ?)"
        with self.transaction() as database:
            for table in ("groups", "evaluations"):
                database.execute(f"DELETE FROM {table} {later}", (stage, stage, step))
            for table in ("arrivals", "set_asides"):
                database.execute(f"DELETE FROM {table} WHERE stage >= ?", (stage,))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def access(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock, ledger_errors(self.path):
            yield self._database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing; durable when it ends."""
        with self.access() as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    def _insert(self, table: str, stage: int, step: int, rows: list[tuple[Any, ...]]) -> None:
        """Insert the rows of one step where it has none. RunError when it has others."""
        there = self._rows(table, "*", stage, step)
        if not there and rows:
            marks = ", ".join("?" * len(rows[0]))
            self._database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        elif there and there != rows:
            raise RunError(
                f"{self.path} holds other {table} for stage {stage} step {step}: the resumed "
                "run does not repeat the first one; start again in another directory"
            )

    def _explain_clash(self, stage: int, step: int, sequences: Sequence[int]) -> str:
        """To be asked inside the failed transaction, which holds the rows before the clash."""
        clash = sequences[len(self.sequences(stage, step))]
        return (
            f"{self.path}: stage {stage} step {step} would use the group of problem {clash} of "
            "the stream a second time; start again in another directory"
        )

    def _read(self, table: str, stage: int, step: int, kind: type[Record]) -> list[Record]:
        return [read() for read in self._each(table, stage, step, kind)]

    def _each(
        self, table: str, stage: int, step: int, kind: type[Record]
    ) -> Iterator[Callable[[], Record]]:
        for *key, payload, digest in self._rows(table, "*", stage, step):
            where = f"{self.path}: {table}, stage {stage} step {step} position {key[2]}"
            yield partial(self.unsealed, where, kind, (table, *key), payload, digest)

    def unsealed(
        self, where: str, kind: type[Record], key: tuple[Any, ...], payload: bytes, digest: str
    ) -> Record:
        """What `sealed` made of a record. Raises RunError when it is damaged or of elsewhere."""
        whole = isinstance(payload, bytes)  # a damaged row may hold anything
        if not whole or _digest(payload, () if self.format in OLDER else key) != digest:
            raise RunError(f"{where} is damaged; restore the ledger or start a new run")
        try:
            if self.format not in OLDER:
                return from_bytes(payload, kind)
            convert = OLDER[self.format].get(kind, lambda tree: tree)
            return msgspec.convert(convert(from_bytes(payload, Any)), kind)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{where} was written by another version ({error})") from None

    def _rows(self, table: str, columns: str, stage: int, step: int) -> list[tuple[Any, ...]]:
        with self.access() as database:
            return database.execute(
                f"SELECT {columns} FROM {table} WHERE stage = ? AND step = ? ORDER BY position",
                (stage, step),
            ).fetchall()

    def _steps(self, table: str) -> list[tuple[int, int]]:
        with self.access() as database:
            return database.execute(
                f"SELECT DISTINCT stage, step FROM {table} ORDER BY stage, step"
            ).fetchall()


def sealed(record: msgspec.Struct, *key: Any) -> tuple[Any, bytes, str]:
    """The last columns of a row, whose table and columns before them are `key`."""
    payload = to_bytes(record)
    return key[-1], payload, _digest(payload, key)


def _digest(payload: bytes, key: Sequence[Any]) -> str:
    """Of what a row holds and of where it stands: one that is moved, or another's, is damaged."""
    return sha256((msgspec.json.encode(key) if key else b"") + payload).hexdigest()


def _delete_arrivals(database: sqlite3.Connection, stage: int, sequences: Sequence[int]) -> None:
    database.executemany(
        "DELETE FROM arrivals WHERE stage = ? AND sequence = ?",
        [(stage, sequence) for sequence in sequences],
    )
