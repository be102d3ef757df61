"""What is read whole is a regular file: a pipe or a device is refused at once, by every reader."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.chips import certificates
from interlock.config.reading import load_recipe
from interlock.errors import UserError
from interlock.models.files import read_text
from interlock.regular import read_regular
from interlock.rundir import RunDir
from interlock.rundir.files import JsonLines
from interlock.tasks.rows import read_rows


def test_all_of_a_file_is_read_and_no_more_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 1024)
    assert read_regular(path, most=1024) == b"\xff" * 1024
    with pytest.raises(OSError, match="longer than"):
        read_regular(path, most=1023)


def test_what_is_missing_or_a_directory_fails_as_open_does(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)


def manifest(path: Path) -> object:
    (path.parent / "manifest.json").symlink_to(path)
    return RunDir.read(path.parent)


@pytest.mark.parametrize(
    "read",
    [
        load_recipe,
        certificates.load,
        read_text,
        manifest,
        lambda path: list(read_rows(path)),
        lambda path: JsonLines(path).read(),
    ],
    ids=["recipe", "certificate", "model", "manifest", "rows", "metrics"],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_at_once(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    if kind == "pipe":
        os.mkfifo(path)  # which nobody writes to
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a pipe or a device"):
        read(path)
