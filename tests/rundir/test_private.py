"""A run's directory tells nobody anything, and nobody can bend what is written in it."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from numpy import zeros
from safetensors.numpy import save_file

from interlock.errors import RunError
from interlock.records.metrics import RolloutMetrics, StepMetrics
from interlock.rundir import JsonLines, RunDir, write_atomically

SECRETS = ("hunter2", "s3cr3t", "hf_abc", "9f8e7d")
TREE: dict[str, Any] = {
    "name": "test",
    "model": {"path": "m"},
    "stage": [{"kind": "sft", "data": "a", "steps": 2}],
    "generator": [
        {"name": "w", "env": {"API": "hunter2"}, "options": {"hf_token": "hf_abc", "swap": 4}}
    ],
    "sync": {"url": "https://me:s3cr3t@host/weights?sig=9f8e7d"},
}


def change_of(env: str) -> dict[str, Any]:
    return TREE | {"generator": [TREE["generator"][0] | {"env": {"API": env}}]}


def files_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_no_secret_is_in_any_file_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        run.event("sink_failed", f"no answer of {TREE['sync']['url']}", url=TREE["sync"]["url"])
    assert RunDir.read(run.path).config["generator"][0]["options"]["swap"] == 4
    with RunDir.open(run.path, TREE) as run:
        assert [event.kind for event in run.events()] == ["sink_failed", "resumed"]
    with RunDir.open(run.path, change_of("s3cr3t")) as run:
        (changed,) = (each for each in run.events() if each.kind == "settings_changed")
    assert 'generator[0].env.API = "digest:' in changed.message
    with pytest.raises(ValueError), RunDir.open(run.path, TREE):
        raise ValueError(f"cannot read {TREE['sync']['url']}")
    assert b"https://\xe2\x80\xa6@host/weights" in files_of(run.path)
    for secret in SECRETS:
        assert secret.encode() not in files_of(run.path)


def test_secrets_of_an_older_run_are_not_shown(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", TREE, {}).close()
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("digest:", "hunter2 of before: "))
    assert "hunter2" in path.read_text() and "hunter2" not in str(RunDir.read(path.parent).config)


def test_the_directory_is_private_and_the_weights_have_one_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with RunDir.create(tmp_path / "run", TREE, {}) as run, run.weights() as directory:
            save_file({"a": zeros(3)}, directory / "model.safetensors")
            (directory / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert run.path.stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in (run.path / "weights").iterdir()}
    assert modes == {0o644}


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "ledger.sqlite"])
def test_what_is_written_follows_no_link(tmp_path: Path, name: str) -> None:
    RunDir.create(tmp_path / "run", TREE, {}).close()
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(victim)
    with pytest.raises(RunError):
        RunDir.open(tmp_path / "run", TREE).log(StepMetrics(stage=0, step=1))
    assert victim.read_text() == "precious\n"


def test_temporary_files_follow_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / f".tmp-{os.getpid()}-a.json").symlink_to(victim)
    write_atomically(tmp_path / "a.json", b"{}")
    assert victim.read_text() == "precious\n" and (tmp_path / "a.json").read_bytes() == b"{}"
    (tmp_path / "lines").symlink_to(victim)
    with pytest.raises(RunError, match="symbolic link"):
        JsonLines(tmp_path / "lines").append({"a": 1})


def another_ledger(path: Path) -> bytes:
    """That of another run: the same groups, taken for ours."""
    other = path.parent.parent / "other.sqlite"
    shutil.copy(path, other)
    with closing(sqlite3.connect(other)) as database:
        database.execute("PRAGMA application_id = 7")
    return other.read_bytes()


def finished_step(path: Path, make_group: Callable[..., Any]) -> None:
    with RunDir.create(path, TREE, {}) as run:
        run.ledger.record(0, 1, [make_group("a", 1.0), make_group("b", 0.0)], [0, 1])
        run.log(StepMetrics(stage=0, step=1, rollout=RolloutMetrics(groups=2)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(another_ledger(path)), "is another run's"),
        (lambda path: path.write_bytes(b""), "is gone"),
        (lambda path: _run(path, "DROP TABLE groups"), "has lost its table 'groups'"),
        (lambda path: _run(path, "DELETE FROM groups"), "lacks the groups of stage 0 step 1"),
    ],
)
def test_a_run_whose_ledger_is_gone_does_not_go_on(
    tmp_path: Path, make_group: Callable[..., Any], spoil: Callable[[Path], None], words: str
) -> None:
    finished_step(tmp_path / "run", make_group)
    RunDir.open(tmp_path / "run", TREE).close()
    for leftover in (tmp_path / "run").glob("ledger.sqlite-*"):
        leftover.unlink()
    spoil(tmp_path / "run" / "ledger.sqlite")
    with pytest.raises(RunError, match=f"ledger.sqlite {words}; restore it from a copy"):
        RunDir.open(tmp_path / "run", TREE)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE groups SET problem_id = 'c' WHERE position = 0",
        "UPDATE groups SET step = 2 WHERE position = 1",
        "UPDATE groups SET sequence = 7 WHERE position = 0",
        "UPDATE groups SET position = 5 WHERE position = 0",
    ],
)
def test_a_row_in_anothers_place_is_damaged(
    tmp_path: Path, make_group: Callable[..., Any], change: str
) -> None:
    finished_step(tmp_path / "run", make_group)
    _run(tmp_path / "run" / "ledger.sqlite", change)
    ledger = RunDir.read(tmp_path / "run").ledger
    with pytest.raises(RunError, match="is damaged"):
        ledger.read(0, 1), ledger.read(0, 2)


def _run(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()
