import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.errors import RunError
from interlock.records import ScoredGroup
from interlock.rundir import Ledger

MakeGroup = Callable[..., ScoredGroup]


def test_groups_come_back_equal_and_in_order(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = [make_group("b", 1.0, 0.0), make_group("a", 0.0, 0.5)]
    ledger.record(0, 2, first)
    ledger.record(0, 10, [make_group("c", 1.0, 1.0)])
    ledger.record(1, 1, [make_group("d", 0.0, 1.0)])
    assert ledger.read(0, 2) == first
    assert [group.group.problem.id for group in ledger.read(0, 2)] == ["b", "a"]
    assert ledger.read(0, 3) == []
    assert ledger.steps() == [(0, 2), (0, 10), (1, 1)]
    assert ledger.count() == 4


def test_recording_again_changes_nothing_when_equal(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [make_group("a", 1.0), make_group("b", 0.0)]
    ledger.record(0, 1, groups)
    ledger.record(0, 1, groups)
    assert ledger.count() == 2


@pytest.mark.parametrize("change", ["reward", "fewer", "more", "order"])
def test_recording_other_groups_is_refused(
    tmp_path: Path, make_group: MakeGroup, change: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [make_group("a", 1.0), make_group("b", 0.0)]
    others = {
        "reward": [make_group("a", 1.0), make_group("b", 0.5)],
        "fewer": groups[:1],
        "more": [*groups, make_group("c", 0.0)],
        "order": groups[::-1],
    }
    ledger.record(0, 1, groups)
    with pytest.raises(RunError, match="holds other groups for stage 0 step 1"):
        ledger.record(0, 1, others[change])
    assert ledger.read(0, 1) == groups
    ledger.record(0, 2, groups)  # the refusal left no transaction open
    assert ledger.count() == 4


def test_evaluations_are_kept_apart_from_groups(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    before, after = [make_group("a", 0.0)], [make_group("a", 1.0)]
    ledger.record_evaluation(0, 40, after)
    ledger.record_evaluation(0, 0, before)
    ledger.record(0, 1, [make_group("z", 1.0)])
    assert ledger.evaluation_steps() == [(0, 0), (0, 40)]
    assert ledger.read_evaluation(0, 0) == before
    assert ledger.read_evaluation(0, 40) == after
    assert ledger.steps() == [(0, 1)]


def test_a_reader_sees_what_a_writer_committed(tmp_path: Path, make_group: MakeGroup) -> None:
    path = tmp_path / "ledger.sqlite"
    writer = Ledger(path)
    writer.record(0, 1, [make_group("a", 1.0)])
    reader = Ledger.read_only(path)
    assert reader.count() == 1
    writer.record(0, 2, [make_group("b", 1.0)])
    assert reader.count() == 2
    with pytest.raises(RunError, match="read-only"):
        reader.record(0, 3, [make_group("c", 1.0)])


def test_no_file_reads_as_empty_and_is_not_created(tmp_path: Path) -> None:
    ledger = Ledger.read_only(tmp_path / "ledger.sqlite")
    assert (ledger.count(), ledger.steps(), ledger.read_evaluation(0, 0)) == (0, [], [])
    assert list(tmp_path.iterdir()) == []


def test_a_changed_payload_is_noticed(tmp_path: Path, make_group: MakeGroup) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.record(0, 1, [make_group("a", 1.0), make_group("b", 1.0)])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE groups SET payload = X'00' WHERE position = 1")
    with pytest.raises(RunError, match="stage 0 step 1 position 1 is damaged"):
        ledger.read(0, 1)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, " * 100)
    for kind in (Ledger, Ledger.read_only):
        with pytest.raises(RunError, match="not an SQLite file"):
            kind(tmp_path / "ledger.sqlite")


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    read = ledger._database.execute
    assert read("PRAGMA journal_mode").fetchone() == ("wal",)
    assert read("PRAGMA synchronous").fetchone() == (2,)  # FULL
