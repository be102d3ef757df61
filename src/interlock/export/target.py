"""Where an export goes: refused where something is, whole on the disk or not there at all."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from interlock.errors import RunError
from interlock.rundir.files import atomic_directory, atomic_file
from interlock.text import error_line

_REMEDIES = {
    errno.ENOSPC: "no space left on the disk; free some, or choose another with --out",
    errno.EDQUOT: "the disk quota is used up; free some, or choose another disk with --out",
    errno.EFBIG: "a file may not become that large here; raise `ulimit -f`, or use --out",
    errno.EROFS: "the file system is read-only; choose another with --out",
    errno.EACCES: "no permission to write; choose another place with --out",
    errno.EPERM: "no permission to write; choose another place with --out",
    errno.ENOTDIR: "a part of this path is a file; choose another with --out",
    errno.EEXIST: "something is there by now; choose another name with --out",
    errno.ENAMETOOLONG: "the name is too long; choose another with --out",
    errno.EIO: "the disk failed; choose another with --out",
}


def check_free(target: Path, directory: bool) -> None:
    """Raise RunError when something is at `target`: a directory that holds nothing may be."""
    if target.is_symlink():
        raise RunError(f"{target} is a symbolic link, which is not followed; give its target")
    if not target.exists():
        return
    if not directory or not target.is_dir():
        raise RunError(f"{target} exists, and nothing is replaced; choose another with --out")
    with _disk_errors(target):
        if os.listdir(target):
            raise RunError(f"{target} is not empty; choose another directory with --out")


@contextmanager
def new_file(target: Path) -> Iterator[IO[bytes]]:
    """Yield an open file that becomes `target`. Raises RunError when that is there, or the disk
    refuses; then nothing is left of it.
    """
    check_free(target, directory=False)
    with _disk_errors(target), atomic_file(target) as file:
        yield file


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target`. Raises RunError as new_file does."""
    check_free(target, directory=True)
    try:
        with atomic_directory(target) as directory:
            yield directory
    except RunError as error:
        if isinstance(error.__cause__, Exception):
            raise RunError(_told(target, error.__cause__)) from error.__cause__
        raise


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(_told(target, error)) from error


def _told(target: Path, error: Exception) -> str:
    """One line. Rust libraries (safetensors, tokenizers) tell the number in their words."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else said and int(said[1])
    told = _REMEDIES.get(number or 0) or f"cannot be written ({error_line(error, 120)})"
    return f"{target}: {told}"
