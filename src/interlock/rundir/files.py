"""Writing that a kill, a power cut or a full disk cannot leave half done.

    bytes     ── write_atomically ──> temporary sibling ── fsync ──> rename ── fsync of the parent
    directory ── atomic_directory ──> temporary sibling ── fsync of all in it ──> rename ── fsync …
    a stream  ── atomic_file ──> the same, for what is too long to be held
    one line  ── JsonLines.append ──> end of the file ── fsync; what failed is cut off again

Whoever owns a directory calls `recover` on it before writing: it puts away what a killed process
left. Nothing here locks anything; one writer at a time is the caller's duty (see `run.py`).
"""

import errno
import os
import re
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from interlock.errors import RunError
from interlock.records.coding import from_json
from interlock.regular import open_regular, read_regular

_TEMPORARY = ".tmp-"  # not finished: of no use once its writer is gone
_ASIDE = ".old-"  # finished, moved aside for the moment in which its successor takes the name

_FULL = "no space left on the disk; free some, and do it again (train: with --resume)"
_READ_ONLY = "the file system is read-only; remount it, or choose another directory"
_NO_PERMISSION = "no permission to write; change its owner or mode, or choose another directory"
_DISK_ERROR = "the disk failed or refused a write; check it and `ulimit -f`, and do it again"

_NO_LOCKS = (
    "the file system keeps no locks (flock); mount it with them, or choose another directory"
)

_ERRNO_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EIO: _DISK_ERROR,
    errno.EFBIG: _DISK_ERROR,
    errno.ELOOP: "a file of it is a symbolic link, which is not followed; remove the link",
    errno.ENXIO: "a file of it is a pipe or a device; remove that",
    errno.ENOTDIR: "a part of this path is a file; choose another directory",
    errno.EISDIR: "a directory has the name of one of its files; move that away",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.EEXIST: "a file of this name is in the way; choose another directory",
    errno.ENAMETOOLONG: "the name is too long; choose another directory",
}
_SQLITE_REMEDIES = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: "cannot open the ledger; check that the directory may be written to",
    sqlite3.SQLITE_IOERR: _DISK_ERROR,
    sqlite3.SQLITE_BUSY: "another process keeps the ledger locked; end it and use --resume",
    sqlite3.SQLITE_CORRUPT: "the ledger is damaged; restore it from a copy, or start a new run",
    sqlite3.SQLITE_NOTADB: "the ledger is not an SQLite file; restore it, or start a new run",
}


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn what disks do wrong inside the block into a one-line RunError about `directory`.

    Covers OSError, SQLite's errors, and errors of Rust libraries (safetensors, tokenizers), which
    carry their errno as "(os error N)". Anything that is not the disk's doing passes unchanged.
    """
    try:
        yield
    except Exception as error:
        remedy = _remedy(error)
        if isinstance(error, FileNotFoundError) and not (directory.exists() and _was(error)):
            remedy = "the directory is gone, or none can be made there; choose another directory"
        if remedy is None:
            raise
        raise RunError(f"{directory}: {remedy}") from error


def _was(error: FileNotFoundError) -> bool:
    """Whether what is missing was to be read: some file systems say so of what is to be made."""
    name = Path(error.filename or "").name
    return not name.startswith(_TEMPORARY) and not name.endswith(".lock")


def _remedy(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return _ERRNO_REMEDIES.get(error.errno or 0)
    if isinstance(error, sqlite3.Error):
        extended = getattr(error, "sqlite_errorcode", 0)
        return _SQLITE_REMEDIES.get(extended & 0xFF)  # the low byte is the primary result code
    told = re.search(r"\(os error (\d+)\)", str(error))
    return _ERRNO_REMEDIES.get(int(told[1])) if told else None


def unlinked(path: str, flags: int) -> int:
    """An opener that follows no symbolic link and waits for no pipe: what is written is the file of
    this name itself.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)  # as a pipe without a reader is
    return descriptor


def write_atomically(path: Path, data: bytes, over: bytes = b"") -> None:
    """Replace `path` by `data`; a reader or a kill sees the old content or the new, never a part.

    Raises RunError when the disk is full, read-only or out of bounds, and where `path` is a link, a
    device or a pipe, such as /dev/stdout, which would be replaced too; it is then as before. So it
    is where a file is there that does not begin as `over`, in any case: what somebody named by
    mistake, and not what was written there before.
    """
    temporary = _temporary(path)
    with storage_errors(path.parent):
        _refuse_to_replace(path, over)
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb", opener=unlinked) as file:
                with suppress(FileNotFoundError):  # who may read it stays as it was
                    os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield an open file to fill; it becomes `path`, which must not exist, on success.

    When the block raises, what was written is removed. Raises OSError, when the disk does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb", opener=unlinked) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(path):  # made meanwhile
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill; it becomes `path`, replacing any before it, on success.

    When the block raises, or the disk does (RunError), what was written is removed and `path` is
    as before. A kill leaves `path` old or new, or absent until `recover` brings the old one back.
    """
    temporary = _temporary(path)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            settle(temporary)
            _take_name(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def settle(directory: Path) -> None:
    """Have all below a directory on the disk, and its files readable by whom it is.

    (safetensors makes its files the owner's alone, whatever the umask.)
    """
    mode = directory.stat().st_mode & 0o666
    for folder, _, files in os.walk(directory):
        for name in files:
            Path(folder, name).chmod(mode)
            sync(Path(folder, name))
        sync(Path(folder))


def remove_directory(path: Path) -> None:
    """Remove a tree so that a kill leaves all of it or, under its own name, nothing."""
    temporary = _temporary(path)
    with storage_errors(path.parent), suppress(FileNotFoundError):  # somebody else removed it
        os.rename(path, temporary)
        shutil.rmtree(temporary)


def recover(directory: Path) -> list[str]:
    """Put away what a killed writer left directly in `directory`; return the names it left.

    Unfinished entries are removed. One that was moved aside takes its name again if its successor
    never did. Only safe while no other process writes here.
    """
    found = sorted(name for name in os.listdir(directory) if name.startswith((_TEMPORARY, _ASIDE)))
    with storage_errors(directory):
        for name in found:
            path = directory / name
            home = directory / name.removeprefix(_ASIDE)
            if name.startswith(_ASIDE) and not home.exists():
                os.rename(path, home)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync(directory)
    return found


def _refuse_to_replace(path: Path, over: bytes) -> None:
    """What is there and is neither a file nor a directory, which rename(2) refuses by itself.

    And a file that holds anything else than what begins as `over`.
    """
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RunError(f"{path} is a link, a device or a pipe; give the name of a file")
        if over and stat.S_ISREG(mode):
            with open(path, "rb") as file:
                begins = file.read(len(over))
            if begins and begins.lower() != over.lower():
                raise RunError(f"{path} is there already and holds something else; give a new name")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")


def _take_name(new: Path, path: Path) -> None:
    """Rename `new` to `path`. rename(2) does not replace a directory that holds anything."""
    aside = path.with_name(_ASIDE + path.name)
    if path.exists():
        os.rename(path, aside)
    os.rename(new, path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JsonLines:
    """An append-only file of JSON objects, one a line. Non-finite numbers are written as null.

    Threads may append at the same time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def append(self, record: dict[str, Any] | msgspec.Struct) -> None:
        """Add one line, durable on return. Raises RunError; the file is then as it was before."""
        data = memoryview(msgspec.json.encode(record) + b"\n")
        with (
            self._lock,
            storage_errors(self.path.parent),
            open(self.path, "ab", buffering=0, opener=unlinked) as file,
        ):
            start = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(start)
                raise
            if start == 0:
                sync(self.path.parent)

    def repair(self) -> int:
        """Cut off a last line that a kill left unfinished; return how many bytes that were."""
        if not self.path.exists():
            return 0
        data = self._content()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with (
                storage_errors(self.path.parent),
                open(self.path, "r+b", opener=unlinked) as file,
            ):
                file.truncate(whole)
                os.fsync(file.fileno())
        return len(data) - whole

    @property
    def torn(self) -> bool:
        """Whether it ends within a line, which is read as none."""
        try:
            with open_regular(self.path) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                return file.read(1) not in (b"", b"\n")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from None

    def read(self) -> list[dict[str, Any]]:
        """All finished lines, oldest first; [] when there is no file.

        Raises RunError naming the line that is not a JSON object.
        """
        if not self.path.exists():
            return []
        *lines, _unfinished = self._content().split(b"\n")
        return [self._parse(line, number) for number, line in enumerate(lines, start=1)]

    def _content(self) -> bytes:
        try:
            return read_regular(self.path)
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from None

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return from_json(line, dict[str, Any])
        except ValueError as error:
            raise RunError(
                f"{self.path} line {number} is damaged ({error}); delete that line and try again"
            ) from None
