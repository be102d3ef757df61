"""The folder that a preflight leaves: small, without weights and without paths of the machine.

    preflight.json   what was run on what, section by section
    README.md        the same for a reader
    SECTION/         its own results, and the end of its log

A section's results appear whole; preflight.json is written after each. One process has the folder.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from interlock.errors import ConfigError, RunError
from interlock.records.coding import from_json
from interlock.records.sealing import SealedDocument, document_of, resealed, sealed
from interlock.records.trust import Stack
from interlock.regular import read_regular
from interlock.rundir.files import (
    atomic_directory,
    recover,
    remove_directory,
    storage_errors,
    write_atomically,
)
from interlock.rundir.locking import locked
from interlock.text import one_line

_FILE = "preflight.json"
_MOST_BYTES = 2 << 20  # of one result; a larger one is named and left out


class Status(StrEnum):
    DONE = "done"
    FAILED = "failed"
    NOT_RUN = "not run"


class Identity(msgspec.Struct, frozen=True):
    """What a device and its software are (identity.py); `refused`: why it cannot be used."""

    stack: Stack = Stack("")
    versions: dict[str, str] = {}
    refused: str = ""


class SectionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one section."""

    name: str
    status: Status
    headline: str  # one sentence; of what did not run or failed, why
    seconds: float = 0.0
    command: str = ""
    figures: dict[str, float | str] = {}
    shortened: str = ""  # how it is less than the whole section, for lack of time
    inputs: str = ""  # a digest of all that it depends on
    ended: float = 0.0  # since 1970
    results: dict[str, str] = {}  # sha256 of its files


class Preflight(msgspec.Struct, kw_only=True):
    """preflight.json."""

    device: str
    model: str  # its name, or that its weights are random
    minutes: float
    identity: Identity
    sections: list[SectionRecord] = []


@contextmanager
def opened(folder: Path, device: str) -> Iterator[list[SectionRecord]]:
    """Have the folder to oneself; what earlier calls left in it for `device`.

    Raises RunError when it cannot be used, ConfigError when it is another device's.
    """
    with _writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not locked(descriptor):
            raise RunError(f"{folder}: another preflight is at work there; wait for it")
        with _writing(folder):
            recover(folder)
        yield _known(folder, device)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Every way in which `folder` cannot be written is a RunError, /proc's too."""
    try:
        with storage_errors(folder):
            yield
    except OSError as error:
        why = f"{folder}: cannot be written ({error.strerror}); choose another --out"
        raise RunError(why) from None


def _known(folder: Path, device: str) -> list[SectionRecord]:
    path = folder / _FILE
    if not path.exists():
        return []
    try:
        found = from_json(read_regular(path), Preflight)
    except (OSError, ValueError):
        raise RunError(f"{path} is damaged; remove it, or choose another --out") from None
    if found.device != device:
        told = one_line(repr(found.device), 60)
        raise ConfigError(f"{folder} holds results of {told}; choose another --out")
    return found.sections


def write(folder: Path, found: Preflight) -> None:
    """Raises RunError."""
    with _writing(folder):
        data = msgspec.json.encode(sealed(SealedDocument.PREFLIGHT, found))
        write_atomically(folder / _FILE, msgspec.json.format(data, indent=1))
        write_atomically(folder / "README.md", _page(found).encode())


def keep(folder: Path, name: str, files: Mapping[str, Path], words: str, model: Path) -> list[str]:
    """Replace a section's results; the names of those that are too large to be kept.

    A certificate is sealed, and kept as it is; in all else the machine's paths get other names,
    and a seal is made anew.
    """
    left_out = []
    with atomic_directory(folder / name) as made:
        for kept, source in files.items():
            if not source.is_file():
                continue
            if source.stat().st_size > _MOST_BYTES:
                left_out.append(kept)
                continue
            (made / kept).write_bytes(_kept(source, model))
        (made / "log").write_text(without_paths(words, model), encoding="utf-8")
    return left_out


def _kept(source: Path, model: Path) -> bytes:
    data = source.read_bytes()
    if source.name == "certificate.json":
        return data
    data = without_paths(data.decode(errors="replace"), model).encode()
    try:
        tree = from_json(data)
    except ValueError:
        return data
    if document_of(tree) is None:
        return data
    return msgspec.json.format(msgspec.json.encode(resealed(tree)))


def digests(folder: Path, name: str) -> dict[str, str]:
    """sha256 of each of a section's results."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / name).iterdir())
    }


def drop(folder: Path, name: str) -> None:
    """Remove what an earlier call found, before it is found anew."""
    if (folder / name).is_dir():
        remove_directory(folder / name)


def without_paths(text: str, model: Path) -> str:
    """`text` with names for the directories of this machine, the longest first."""
    names = {
        str(model): "MODEL",
        str(Path(__file__).parents[2]): "SRC",
        sys.prefix: "PYTHON",
        sys.base_prefix: "PYTHON",
        os.getcwd(): "HERE",
        tempfile.gettempdir(): "TMP",
    }
    with suppress(RuntimeError):
        names[str(Path.home())] = "HOME"
    for path in sorted(names, key=len, reverse=True):
        if len(path) > 1:
            text = text.replace(path, names[path])
            text = text.replace(json.dumps(path)[1:-1], names[path])
    return text


def _page(found: Preflight) -> str:
    stack = found.identity.stack
    software = [stack.driver, stack.runtime, f"torch {stack.torch}", stack.plugin]
    lines = [
        f"# Preflight of {one_line(found.device)}",
        "",
        f"{one_line(stack.chip)}; {one_line(', '.join(filter(None, software)))}; "
        f"interlock {stack.interlock}, sources {found.identity.versions.get('sources', '')}; "
        f"{one_line(found.model)}; at most {found.minutes:g} minutes.",
        "",
        "| section | status | seconds | |",
        "|---|---|---|---|",
    ]
    for section in found.sections:
        cells = [section.headline, section.shortened]
        told = one_line("; ".join(filter(None, cells))).replace("|", "\\|")
        lines.append(f"| {section.name} | {section.status} | {section.seconds:.0f} | {told} |")
    for section in found.sections:
        if section.figures:
            lines += ["", f"## {section.name}", "", f"`{section.command}`", ""]
            lines += ["| | |", "|---|---|"]
            lines += [f"| {name} | {_figure(value)} |" for name, value in section.figures.items()]
    return "\n".join(lines) + "\n"


def _figure(value: float | str) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return one_line(text).replace("|", "\\|")
