"""Paths -> sources: each file is read once, known by its content, and refused unless it is whole.

    a directory   a run; a preflight with its certificate and parity; a fleet with its certificates;
                  or else every JSON file that lies in it

A run has no seal: what it holds is read by its own room, and must not change meanwhile.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from interlock.chips import certificates
from interlock.errors import RunError
from interlock.evidence import naming
from interlock.evidence.record import (
    EvidenceSource,
    PassedOver,
    SourceFile,
    SourceKind,
    SourceOrigin,
    Uncertified,
)
from interlock.evidence.written import (
    BenchFile,
    FleetFile,
    ParityFile,
    PlanFile,
    PreflightFile,
    RunFiles,
    WrittenSide,
)
from interlock.records.coding import from_json
from interlock.records.sealing import SealedDocument, document_of, is_whole
from interlock.regular import read_regular
from interlock.rundir import RunDir
from interlock.text import error_line, one_line

_MOST_BYTES = 64 << 20
_OF_A_RUN = ("manifest.json", "config.json", "metrics.jsonl", "events.jsonl")
_OF_FOLDERS = ("manifest.json", "preflight.json", "fleet.json")  # which say what else is read
_TOLD = ("interlock", "torch", "python")  # of the versions of a run; its manifest has all
_RECORDS: dict[SealedDocument, tuple[SourceKind, Any]] = {
    SealedDocument.PARITY: (SourceKind.PARITY, ParityFile),
    SealedDocument.FLEET: (SourceKind.FLEET, FleetFile),
    SealedDocument.PREFLIGHT: (SourceKind.PREFLIGHT, PreflightFile),
    SealedDocument.BENCH: (SourceKind.BENCH, BenchFile),
    SealedDocument.PLAN: (SourceKind.PLAN, PlanFile),
}
_READABLE = (
    "give certificates, parity.json, fleet.json, preflight folders, run directories, or what "
    "`interlock bench --json` and `interlock plan --json` print"
)


def refuse_to_replace(out: Path, sources: Sequence[EvidenceSource]) -> None:
    """Raises RunError where a page would take the place of a file that it cites."""
    for each in sources:
        for name in (each.origin.name, *each.origin.also):
            path = Path(name)
            own = [path / file.name for file in each.origin.files] if path.is_dir() else [path]
            if out.resolve() in (file.resolve() for file in own):
                raise RunError(f"--out {out} is one of the sources; give the page another name")


def read(paths: Sequence[Path]) -> list[EvidenceSource]:
    """All sources, numbered in the order given. Raises RunError, one line that names the file."""
    found: dict[tuple[str, ...], EvidenceSource] = {}
    for path in paths:
        for source in _of_path(path):
            digests = tuple(each.sha256 for each in source.origin.files)
            if digests in found:
                known = found[digests]
                also = [*known.origin.also, source.origin.name]
                found[digests] = _with_origin(known, also=also)
            else:
                found[digests] = source
    return [_with_origin(each, number=i) for i, each in enumerate(found.values(), start=1)]


def _with_origin(source: EvidenceSource, **changes: Any) -> EvidenceSource:
    origin = msgspec.structs.replace(source.origin, **changes)
    return msgspec.structs.replace(source, origin=origin)


def passed_over(paths: Sequence[Path]) -> list[PassedOver]:
    """The folders within those that stand for the files that lie in them: nobody reads these."""
    found = []
    for path in dict.fromkeys(paths):
        if path.is_dir() and not any((path / name).exists() for name in _OF_FOLDERS):
            within = sorted(each.name for each in path.iterdir() if each.is_dir())
            found += [PassedOver(str(path), within)] if within else []
    return found


def uncertified(sources: Sequence[EvidenceSource]) -> list[Uncertified]:
    """Fleets of some of whose devices no certificate was read."""
    known = {Path(name) for each in sources for name in (each.origin.name, *each.origin.also)}
    found = []
    for source in sources:
        if source.origin.kind is not SourceKind.FLEET:
            continue
        folder = Path(source.origin.name).parent
        devices = [(node.name, each) for node in source.content.nodes for each in node.devices]
        lacking = [
            f"{node} {each.name}"
            for node, each in devices
            if not each.folder or folder / each.folder / "certificate.json" not in known
        ]
        if lacking:
            found.append(Uncertified(source.origin.name, len(devices), lacking))
    return found


def _of_path(path: Path) -> Iterator[EvidenceSource]:
    if not path.is_dir():
        yield _file(path)
    elif (path / "manifest.json").exists():
        yield _run(path)
    elif (path / "preflight.json").exists():
        yield from _preflight(path)
    elif (path / "fleet.json").exists():
        fleet = _file(path / "fleet.json")
        yield fleet
        yield from _certificates_of(path, fleet.content)
    else:
        files = sorted(each for each in path.glob("*.json") if each.is_file())
        if not files:
            within = sum(each.is_dir() for each in path.iterdir())
            name = f"name those of its {within} folders that do, or " if within else ""
            raise RunError(f"{path} holds no evidence; {name}{_READABLE}")
        for each in files:
            yield _file(each)


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        raise RunError(f"there is no {path}; {_READABLE}") from None
    except OSError as error:
        why = error.strerror or error_line(error)
        raise RunError(f"cannot read {path}: {why}; {_READABLE}") from None


def _file(path: Path) -> EvidenceSource:
    data = _bytes(path)
    try:
        tree = from_json(data)
    except ValueError as error:
        raise RunError(f"{path} is no whole JSON ({error_line(error, 80)}); {_READABLE}") from None
    if isinstance(tree, dict) and {"findings", "stack", "trust"} <= tree.keys():
        return _certificate(path, data, tree)
    document = document_of(tree)
    if document is SealedDocument.SEARCH:
        raise RunError(
            f"{path} is a search; plan one of its placements: interlock plan … --chips … --json"
        )
    if document is None:
        raise RunError(f"{path} is nothing that evidence is taken from; {_READABLE}")
    if not is_whole(tree):
        raise RunError(
            f"{path} was changed or damaged: its checksum is not that of its content; make it "
            f"again with {document.value}"
        )
    kind, record = _RECORDS[document]
    try:
        content = msgspec.convert(tree, record)
    except msgspec.ValidationError as error:
        raise RunError(
            f"{path} is of another version of {document.value} ({error_line(error, 80)}); make it "
            "again"
        ) from None
    origin = SourceOrigin(
        0, kind, str(path), [], [_digest(path.name, data)], *_made(content), sealed=True
    )
    return EvidenceSource(origin, tree, content)


def _certificate(path: Path, data: bytes, tree: Any) -> EvidenceSource:
    found = certificates.decode(data, path)
    try:
        certificates.verify(found)
    except RunError as error:
        raise RunError(f"{path}: {error}; {certificates.remedy(found.device)}") from None
    origin = SourceOrigin(
        *(0, SourceKind.CERTIFICATE, str(path), [], [_digest(path.name, data)], found.issued),
        *(naming.software_of(found.stack), naming.chip_of(found.stack), True),
    )
    return EvidenceSource(origin, tree, found)


def _made(content: Any) -> tuple[float, str, str]:
    """When, by which software, on what."""
    match content:
        case ParityFile():
            sides = " and ".join(_side(each) for each in (content.a, content.b))
            return content.created, f"Interlock {content.interlock}", sides
        case FleetFile():
            kinds = {
                naming.called(each.kind) for node in content.nodes for each in node.devices
            } - {""}
            machine = f"{len(content.nodes)} nodes with devices: {', '.join(sorted(kinds))}"
            return content.issued, f"Interlock {content.interlock}", machine
        case PreflightFile():
            ended = max((each.ended for each in content.sections), default=0.0)
            stack = content.identity.stack
            return ended, naming.software_of(stack), naming.chip_of(stack)
        case BenchFile():
            return content.created, naming.software_of(content.stack), naming.chip_of(content.stack)
    assert isinstance(content, PlanFile)
    return content.created, f"Interlock {content.interlock}", "computed; nothing was run"


def _side(side: WrittenSide) -> str:
    called = f"{naming.called(side.label)} in {side.dtype}"
    if side.stack is None or naming.is_simulated(side.label):
        return called
    return f"{called} on {naming.chip_of(side.stack)}"


def _digest(name: str, data: bytes) -> SourceFile:
    return SourceFile(name, hashlib.sha256(data).hexdigest(), len(data))


def _preflight(folder: Path) -> Iterator[EvidenceSource]:
    """The folder's own record, and the certificate and the parity that it names, as it has them."""
    source = _file(folder / "preflight.json")
    yield source
    found: PreflightFile = source.content
    for section in found.sections:
        for name, sha256 in section.results.items():
            path, parts = folder / section.name / name, Path(section.name, name).parts
            if parts != (section.name, name) or ".." in parts:
                raise RunError(f"{folder / 'preflight.json'} names a file {one_line(name, 60)!r}")
            if hashlib.sha256(_bytes(path)).hexdigest() != sha256:
                raise RunError(f"{path} is not what the preflight left there; run it again")
            if name in ("certificate.json", "parity.json"):
                yield _file(path)


def _certificates_of(folder: Path, fleet: FleetFile) -> Iterator[EvidenceSource]:
    for node in fleet.nodes:
        for each in node.devices:
            path = (folder / each.folder / "certificate.json").resolve()
            if each.folder and path.is_relative_to(folder.resolve()) and path.exists():
                yield _file(folder / each.folder / "certificate.json")


def _run(path: Path) -> EvidenceSource:
    before = _digests_of_run(path)
    with closing(RunDir.read(path)) as view:
        if view.status == "running":
            raise RunError(f"{path} is a run that goes on; wait for its end, or give a copy")
        manifest = view.manifest
        if view.status == "finished" and (why := _incomplete(path)):
            raise RunError(f"{path} is finished, and {why}; give another copy")
        content = RunFiles(manifest, view.status, view.metrics(), view.events())
    tree: dict[str, Any] = {
        name: _lines(path / name) if name.endswith("l") else from_json(_bytes(path / name))
        for name in _OF_A_RUN
        if (path / name).exists()
    }
    if before != _digests_of_run(path):
        raise RunError(f"{path} changed while it was read; wait for its end, or give a copy")
    if not manifest.sessions or not isinstance(tree["config.json"].get("name"), str):
        raise RunError(f"{path} is no whole run: it has no session, or no name; give another copy")
    made = manifest.sessions[-1].ended or manifest.created
    versions = ", ".join(
        f"{name} {manifest.versions[name]}" for name in _TOLD if name in manifest.versions
    )
    devices = {own.device for line in content.metrics for own in line.workers.values()}
    names = {naming.called(each) for each in devices if each}
    names |= {naming.chip_of(each) for each in content.learners}
    machine = ", ".join([manifest.platform, *sorted(names)])
    origin = SourceOrigin(
        0, SourceKind.RUN, str(path), [], before, made, one_line(versions, 400), machine, False
    )
    return EvidenceSource(origin, tree, content)


def _digests_of_run(path: Path) -> list[SourceFile]:
    return [_digest(name, _bytes(path / name)) for name in _OF_A_RUN if (path / name).exists()]


def _incomplete(path: Path) -> str | None:
    """What no run that is finished lacks; one that was killed may."""
    for name in _OF_A_RUN:
        if name == "events.jsonl" and not (path / name).exists():
            continue  # nothing happened
        if not (path / name).exists():
            return f"has no {name}"
        if name.endswith("l") and not _bytes(path / name).endswith(b"\n"):
            return f"its {name} ends within a line"
    return None


def _lines(path: Path) -> list[Any]:
    """The finished ones; what a kill left torn is none."""
    return [from_json(line) for line in _bytes(path).split(b"\n")[:-1]]
