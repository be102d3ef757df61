"""A run as one file, or one folder, for another machine: plain files, and the digest of each.

    RUN is held ── contents.py ──> bundle.json, then every file: a tar, not compressed, or a folder
    bundle ── names, sizes and digests looked at as it is read ──> a run directory, whole or none

Nothing in a bundle is run or unpickled when it is read, no link is followed and no name leaves the
directory. Verifiers among its files are code all the same, and a run that goes on runs them.
"""

import hashlib
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import msgspec

from interlock import __version__
from interlock.errors import RunError
from interlock.migrate.contents import Tell, contents, placed
from interlock.processes.scratch import Scratch
from interlock.records.bundles import BundledFile, BundleList
from interlock.records.coding import from_json
from interlock.regular import open_regular, read_regular
from interlock.rundir import JsonLines, RunDir, atomic_directory, storage_errors, write_atomically
from interlock.rundir.files import atomic_file
from interlock.text import error_line, one_line

_FORMAT = 1
_LIST = "bundle.json"
_MOST_LIST = 64 << 20  # bytes
_PIECE = 1 << 20
_PACKED = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}


def is_bundle(path: Path) -> bool:
    """Whether it is to be unpacked: a file, or a folder with the list of one."""
    return path.is_file() or (path / _LIST).is_file()


def write(path: Path, target: Path, tell: Tell) -> BundleList:
    """Bundle the run at `path`: as a tar where `target` ends in .tar, else as a folder.

    Raises UserError, also when `target` is there; nothing is left of it then.
    """
    if target.suffix in _PACKED:
        raise RunError(f"{target}: a bundle is not compressed; end its name in .tar")
    if target.exists():
        raise RunError(f"{target} is there already, and is not overwritten; give another name")
    if target.resolve().is_relative_to(path.resolve()):
        raise RunError(f"{target} lies in the run {path} itself; give a place outside of it")
    with (
        RunDir.held(path) as run,
        storage_errors(target.parent),
        Scratch("interlock-bundle-", str(target.absolute().parent)) as scratch,
    ):
        if not run.checkpoints():
            raise RunError(f"{path} has no checkpoint to go on from; go on with it first")
        run.ledger.copy_to(scratch / "ledger.sqlite")
        found = contents(run, scratch / "ledger.sqlite", tell)
        files = {name: _facts(each) for name, each in sorted(found.files.items())}
        _check_saved(run.checkpoints()[-1].path, run.path, files)
        named = path.resolve().name
        made = BundleList(_FORMAT, __version__, named, time.time(), files, found.settings)
        size = sum(each.bytes for each in files.values())
        tell(f"writing {len(files)} files, {size / 1e6:,.1f} MB")
        if target.suffix == ".tar":
            _write_tar(target, made, found.files)
        else:
            _write_folder(target, made, found.files)
        run.event("bundled", f"bundled as {target.name}: {len(files)} files, {size} bytes")
    return made


def unpack(bundle: Path, into: Path, tell: Tell) -> BundleList:
    """Make a run directory of a bundle. Raises RunError; then there is none."""
    if into.is_symlink() or (into.exists() and not into.is_dir()):
        kind = "a link" if into.is_symlink() else "a file"
        raise RunError(f"{into} is {kind}; give a new directory")
    if into.resolve().is_relative_to(bundle.resolve()):
        raise RunError(f"{into} lies in the bundle {bundle} itself; give a place outside of it")
    if into.exists() and any(into.iterdir()):
        raise RunError(f"{into} is not empty; give a new directory")
    reader = _tar if bundle.is_file() else _folder
    with storage_errors(into.absolute().parent), atomic_directory(into.absolute()) as directory:
        directory.chmod(0o700)
        with reader(bundle) as (made, members):
            tell(f"reading {len(made.files)} files of {made.run}")
            _take(bundle, made, members, directory)
        _settle(bundle, made, directory, into.absolute())
    return made


class _SavedDigests(msgspec.Struct):
    """Of a checkpoint's state.json, what its files were when it was saved."""

    sha256: dict[str, str]


def _check_saved(checkpoint: Path, run: Path, files: dict[str, BundledFile]) -> None:
    """Raise RunError unless a run can go on from its checkpoint where it is unpacked."""
    inside = f"run/{checkpoint.relative_to(run).as_posix()}"
    remedy = "remove that checkpoint to bundle the one before"
    try:
        saved = from_json(read_regular(checkpoint / "state.json"), _SavedDigests).sha256
    except (OSError, ValueError) as error:
        why = error_line(error)
        raise RunError(f"{checkpoint / 'state.json'} is unreadable ({why}); {remedy}") from None
    for name, digest in saved.items():
        facts = files.get(f"{inside}/{name}")
        if facts is None or facts.sha256 != digest:
            raise RunError(f"{checkpoint / name} is not what was saved; {remedy}")


class _Member(NamedTuple):
    """A file of a bundle that is read: its name, as it says, and its bytes."""

    name: str
    content: IO[bytes]


def _facts(path: Path) -> BundledFile:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BundledFile(digest, file.tell())


def _encoded(made: BundleList) -> bytes:
    return msgspec.json.format(msgspec.json.encode(made), indent=1)


def _write_tar(target: Path, made: BundleList, files: dict[str, Path]) -> None:
    listed = _encoded(made)
    with (
        atomic_file(target) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        Scratch("interlock-bundle-", str(target.absolute().parent)) as scratch,
    ):
        (scratch / _LIST).write_bytes(listed)
        with (scratch / _LIST).open("rb") as first:
            tar.addfile(_info(_LIST, len(listed)), first)
        for name, facts in made.files.items():
            with open_regular(files[name]) as source:
                checked = _Checked(source)
                tar.addfile(_info(name, facts.bytes), checked)
            _same(files[name], checked, facts)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def _write_folder(target: Path, made: BundleList, files: dict[str, Path]) -> None:
    with atomic_directory(target.absolute()) as directory:
        directory.chmod(0o700)
        (directory / _LIST).write_bytes(_encoded(made))
        for name, facts in made.files.items():
            with open_regular(files[name]) as source:
                checked = _Checked(source)
                _fill(directory / name, checked, facts.bytes)
            _same(files[name], checked, facts)


class _Checked:
    """What is read of a file, with the digest of it."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content, self._digest = content, hashlib.sha256()
        self.bytes = 0

    def read(self, most: int = -1) -> bytes:
        piece = self._content.read(most)
        self._digest.update(piece)
        self.bytes += len(piece)
        return piece

    @property
    def facts(self) -> BundledFile:
        return BundledFile(self._digest.hexdigest(), self.bytes)


def _same(path: Path, checked: _Checked, facts: BundledFile) -> None:
    if checked.facts != facts:
        raise RunError(f"{path} changed while it was bundled; leave the run alone, and try again")


def _fill(path: Path, content: _Checked, size: int) -> None:
    """A new file of at most `size` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        left = size
        while left and (piece := content.read(min(_PIECE, left))):
            file.write(piece)
            left -= len(piece)


@contextmanager
def _tar(bundle: Path) -> Iterator[tuple[BundleList, Iterator[_Member]]]:
    try:
        with open_regular(bundle) as file, _opened(bundle, file) as tar:
            first = tar.next()  # which was read when it was opened
            content = tar.extractfile(first) if first and first.isreg() else None
            if first is None or content is None or first.name != _LIST:
                raise RunError(f"{bundle} is no bundle: it does not begin with {_LIST}")
            yield _read_list(bundle, content), _members(bundle, tar)
    except (tarfile.TarError, EOFError) as error:
        raise RunError(f"{bundle} is no bundle, or was cut off ({error}); copy it again") from None


@contextmanager
def _header_errors(bundle: Path) -> Iterator[None]:
    """tarfile has no error of its own for numbers that are none."""
    try:
        yield
    except ValueError as error:
        raise RunError(f"{bundle} is no bundle ({error_line(error, 80)})") from None


def _opened(bundle: Path, file: IO[bytes]) -> tarfile.TarFile:
    with _header_errors(bundle):
        return tarfile.open(fileobj=file, mode="r|")


def _next(bundle: Path, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _header_errors(bundle):
        return tar.next()


def _members(bundle: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    while (info := _next(bundle, tar)) is not None:
        content = tar.extractfile(info) if info.isreg() else None
        if content is None:
            shown = one_line(repr(info.name), 80)
            raise RunError(f"{bundle} holds {shown}, which is no plain file; do not trust it")
        yield _Member(info.name, content)


@contextmanager
def _folder(bundle: Path) -> Iterator[tuple[BundleList, Iterator[_Member]]]:
    with open_regular(bundle / _LIST) as file:
        made = _read_list(bundle, file)

    def members() -> Iterator[_Member]:
        _check_listed(bundle, made)
        for name in made.files:
            try:
                with open_regular(bundle / name) as content:
                    yield _Member(name, content)
            except OSError as error:
                raise RunError(f"{bundle} lacks {name} ({error.strerror}); copy it again") from None

    yield made, members()


def _check_listed(bundle: Path, made: BundleList) -> None:
    """Raise RunError where a folder has more in it than its list, be it a link to a folder."""
    listed = {_LIST, *made.files}
    for path in bundle.rglob("*"):
        name = path.relative_to(bundle).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in listed:
            raise _unlisted(bundle, name)


def _unlisted(bundle: Path, name: str) -> RunError:
    shown = one_line(repr(name), 80)
    return RunError(f"{bundle} holds {shown}, which its list does not; do not trust it")


def _read_list(bundle: Path, content: IO[bytes]) -> BundleList:
    data = content.read(_MOST_LIST + 1)
    try:
        made = from_json(data, BundleList)
    except ValueError as error:
        raise RunError(f"{bundle}: its {_LIST} cannot be read ({error}); copy it again") from None
    if made.format != _FORMAT:
        raise RunError(
            f"{bundle} has format {made.format}, not {_FORMAT}; use interlock "
            f"{one_line(made.interlock, 20)} to unpack it"
        )
    for name in (*made.files, *made.settings.values()):
        parts = PurePosixPath(name).parts
        plain = name == "/".join(parts) and not set(parts) & {"..", "/"} and name.isprintable()
        if not plain or parts[:1] not in (("run",), ("model",), ("files",)):
            shown = one_line(repr(name), 80)
            raise RunError(f"{bundle} names {shown}, which is outside of a run; do not trust it")
    return made


def _take(bundle: Path, made: BundleList, members: Iterator[_Member], directory: Path) -> None:
    """Write every listed file, and no other, once; each as its digest says."""
    missing = dict(made.files)
    for name, content in members:
        facts = missing.pop(name, None)
        if facts is None:
            raise _unlisted(bundle, name)
        checked = _Checked(content)
        _fill(directory / name.removeprefix("run/"), checked, facts.bytes)
        if checked.facts != facts:
            raise RunError(f"{bundle}: {name} is not what was bundled; copy it again")
    if missing:
        raise RunError(f"{bundle} lacks {min(missing)} and {len(missing) - 1} more; copy it again")


def _settle(bundle: Path, made: BundleList, directory: Path, into: Path) -> None:
    """Let the config name the files that came along, where they will be."""
    try:
        config: dict[str, Any] = from_json((directory / "config.json").read_bytes())
        former = {"until": time.time(), "config": msgspec.to_builtins(config)}
        JsonLines(directory / "config-history.jsonl").append(former)
        placed(config, {name: into / place for name, place in made.settings.items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{bundle} holds no run that can be read ({error!r})") from None
    data = msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
    write_atomically(directory / "config.json", data)
