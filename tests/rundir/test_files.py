import errno
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from interlock.errors import RunError
from interlock.rundir.files import (
    JsonLines,
    atomic_directory,
    recover,
    remove_directory,
    storage_errors,
    write_atomically,
)


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_atomically_keeps_the_old_file_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    write_atomically(target, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(RunError, match="no space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_directory_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    for content, names in (("1", ["a", "b"]), ("2", ["a"])):
        with atomic_directory(target) as directory:
            for name in names:
                (directory / name).write_text(content)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "2"}
    assert os.listdir(tmp_path) == ["weights"]


def test_atomic_directory_that_fails_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    with atomic_directory(target) as directory:
        (directory / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as directory:
        (directory / "a").write_text("2")
        raise ZeroDivisionError
    assert (target / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["weights"]


def test_recover_removes_the_unfinished_and_brings_back_what_was_moved_aside(
    tmp_path: Path,
) -> None:
    for name in (".tmp-7-x", ".old-lost", ".old-kept", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".tmp-7-y").write_text("torn")
    assert recover(tmp_path) == [".old-kept", ".old-lost", ".tmp-7-x", ".tmp-7-y"]
    assert sorted(os.listdir(tmp_path)) == ["kept", "lost"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    assert (tmp_path / "lost" / "file").read_text() == ".old-lost"


def test_remove_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    remove_directory(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_json_lines_append_and_read(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    assert lines.read() == []
    lines.append({"step": 1, "loss": 0.5})
    lines.append({"step": 2, "loss": float("nan"), "text": "two\nlines"})
    assert lines.read() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "text": "two\nlines"},
    ]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3, "lo', b'{"step": 3}', b"\x00\x00"])
def test_a_torn_last_line_is_not_read_and_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n' + torn)
    lines = JsonLines(path)
    assert lines.read() == [{"step": 1}, {"step": 2}]
    assert lines.repair() == len(torn)
    assert lines.repair() == 0
    lines.append({"step": 3})
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n{"step":3}\n'


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"[1]", b"\xff"])
def test_a_damaged_whole_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step":1}\n' + damage + b'\n{"step":3}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        JsonLines(path).read()


def test_a_failed_append_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left"):
        lines.append({"step": 2})
    assert path.read_bytes() == b'{"step":1}\n'


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, ""), "free some, and do it again (train: with --resume)"),
        (OSError(errno.EROFS, ""), "read-only"),
        (PermissionError(errno.EACCES, ""), "no permission"),
        (NotADirectoryError(errno.ENOTDIR, ""), "is a file"),
        (IsADirectoryError(errno.EISDIR, ""), "a directory has the name of one of its files"),
        (
            OSError(errno.ENOSYS, ""),
            "keeps no locks (flock); mount it with them",
        ),  # as Lustre has it
        (OSError(errno.ENOLCK, ""), "keeps no locks (flock); mount it with them"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
    ],
)
def test_storage_errors_name_the_directory_and_the_remedy(error: Exception, remedy: str) -> None:
    with pytest.raises(RunError) as caught, storage_errors(Path("runs/x")):
        raise error
    message = str(caught.value)
    assert message.startswith("runs/x: ") and remedy in message and "\n" not in message


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_file_system_that_makes_nothing_is_told_of() -> None:
    told = "^/proc: the directory is gone, or none can be made there; choose another directory$"
    with pytest.raises(RunError, match=told), atomic_directory(Path("/proc/interlock")):
        pass
    with pytest.raises(RunError, match=told), storage_errors(Path("/proc")):
        Path("/proc/interlock.lock").touch()
    with pytest.raises(FileNotFoundError), storage_errors(Path("/proc")):  # what is read
        Path("/proc/interlock").read_bytes()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, ""), sqlite3.IntegrityError("x"), KeyError("x")]
)
def test_what_is_not_the_disks_doing_passes_unchanged(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


def test_all_files_of_a_directory_have_one_mode(tmp_path: Path) -> None:
    """safetensors makes its own files 0600, beside others that anyone may read."""
    with atomic_directory(tmp_path / "weights") as directory:
        for name, mode in (("model.safetensors", 0o600), ("config.json", 0o644)):
            (directory / name).touch(mode)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "weights").iterdir()}
    assert modes == {(tmp_path / "weights").stat().st_mode & 0o666}


def test_a_link_or_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("kept")
    link.symlink_to(target)  # as /dev/stdout is one
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(RunError, match="is a link, a device or a pipe"):
            write_atomically(path, b"new")
    assert link.is_symlink() and pipe.is_fifo() and target.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "target"]


def test_a_directory_that_was_removed_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "run"
    for write in (
        lambda: write_atomically(gone / "manifest.json", b"{}"),
        lambda: JsonLines(gone / "metrics.jsonl").append({"step": 1}),
    ):
        with pytest.raises(RunError, match=r"/run: the directory is gone"):
            write()
    remove_directory(gone)
    assert os.listdir(tmp_path) == []


def test_lines_are_not_appended_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lines.jsonl")  # which nobody reads
    with pytest.raises(RunError, match="a pipe or a device"):
        JsonLines(tmp_path / "lines.jsonl").append({"step": 1})
