"""One preflight: the sections in turn, each within its share of the time that is left.

A section that is done with the same inputs is not run again; nothing that a section does stops the
others, and one that does not fit is named.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from interlock.errors import ConfigError, TrainingError
from interlock.preflight import command, folder
from interlock.preflight.command import CommandEnd
from interlock.preflight.folder import Identity, Preflight, SectionRecord, Status, without_paths
from interlock.preflight.sections import Job, PreflightSection, PreflightSetting, SectionResult
from interlock.processes.deadline import Deadline
from interlock.processes.scratch import Scratch
from interlock.records.coding import from_json
from interlock.text import last_line

_OPENING_S = 120.0  # for a device to say what it is
Watch = Callable[[SectionRecord, bool], None]  # what ended; whether it was done before


def identify(device: str) -> Identity:
    """Raises ConfigError when the device is not there, TrainingError when it does not answer."""
    with Scratch("interlock-preflight-") as where:
        asked = command.python("interlock.preflight.identity", device, "identity.json")
        ended = command.run(asked, _OPENING_S, where)
        try:
            found = from_json((where / "identity.json").read_bytes(), Identity)
        except (OSError, ValueError):
            raise TrainingError(
                f"device {device!r} cannot be opened: {_why(ended, _OPENING_S)}"
            ) from None
    if found.refused:
        raise ConfigError(found.refused)
    return found


def run(
    setting: PreflightSetting,
    identity: Identity,
    sections: Sequence[PreflightSection],
    minutes: float,
    out: Path,
    watch: Watch,
) -> Preflight:
    """Run what is not done, and write the folder `out`, which is there, after each section.

    Sections that the folder has and that are not asked for stay in it. Raises RunError when it
    cannot be written, ConfigError when it is another device's.
    """
    model = setting.model.name if setting.given else "a small model with random weights"
    found = Preflight(device=setting.device, model=model, minutes=minutes, identity=identity)
    names = {section.name for section in sections}
    with folder.opened(out, setting.device) as known:
        before = {record.name: record for record in known}
        found.sections = [record for record in known if record.name not in names]
        folder.write(out, found)
        time_left = Deadline(60 * minutes)
        for place, section in enumerate(sections):
            left = sum(each.weight for each in sections[place:])
            seconds = time_left.left * section.weight / left
            record = _again(before.get(section.name), section, setting, identity, seconds)
            done_before = record is not None
            if record is None:
                folder.drop(out, section.name)
                record = _section(section, setting, identity, seconds, out)
            found.sections.append(record)
            folder.write(out, found)
            watch(record, done_before)
    return found


def _again(
    record: SectionRecord | None,
    section: PreflightSection,
    setting: PreflightSetting,
    identity: Identity,
    seconds: float,
) -> SectionRecord | None:
    """What was found before, where a new run would find no more."""
    if record is None or record.status is not Status.DONE:
        return None
    if record.inputs != _inputs(section, setting, identity):
        return None
    job = section.job(setting, seconds)
    whole = isinstance(job, Job) and not job.shortened
    return None if record.shortened and whole else record


def _section(
    section: PreflightSection,
    setting: PreflightSetting,
    identity: Identity,
    seconds: float,
    out: Path,
) -> SectionRecord:
    job = section.job(setting, seconds)
    if not isinstance(job, str) and seconds < section.least_s:
        job = f"{seconds:.0f} s are left for it, it takes at least {section.least_s:.0f}"
    if isinstance(job, str):
        return SectionRecord(name=section.name, status=Status.NOT_RUN, headline=job)
    with Scratch("interlock-preflight-") as where:
        ended = command.run(job.command, seconds, where, **job.env)
        status, told = _judged(section, job, ended, seconds, where)
        files = {Path(name).name: where / name for name in job.files}
        large = folder.keep(out, section.name, files, ended.words, setting.model)
        text = without_paths(told.headline, setting.model)
    if large:
        text += f" (too large to be kept: {', '.join(large)})"
    return SectionRecord(
        name=section.name,
        status=status,
        headline=text,
        seconds=ended.seconds,
        command=_written(job, setting),
        figures=told.figures,
        shortened=job.shortened,
        inputs=_inputs(section, setting, identity),
        ended=time.time(),
        results=folder.digests(out, section.name),
    )


def _judged(
    section: PreflightSection, job: Job, ended: CommandEnd, seconds: float, where: Path
) -> tuple[Status, SectionResult]:
    try:
        told = section.told(where)
    except Exception:  # not there, or damaged in whatever way: it must not stop the others
        told = SectionResult("")
    if ended.code not in job.done:
        why = _why(ended, seconds)
        # Where it says by its results that something is wrong, its log says less.
        says = told.headline if told.headline and ended.code == 1 else why
        return Status.FAILED, replace(told, headline=says)
    if told.nothing or ended.code == 5:
        return Status.NOT_RUN, told
    if not told.headline:
        return Status.FAILED, SectionResult(f"it left no results: {_why(ended, seconds)}")
    return Status.DONE, told


def _why(ended: CommandEnd, seconds: float) -> str:
    if ended.code is None:
        return f"killed: not at its end after {seconds:.0f} s"
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return f"{how}: {last_line(ended.words, 300)}".removesuffix(": ")


def _written(job: Job, setting: PreflightSetting) -> str:
    """The command as a reader may type it."""
    text = " ".join(["python", *job.command[2:]])
    if setting.checkout is not None:
        text = text.replace(f"{setting.checkout}/", "").replace(str(setting.checkout), ".")
    return without_paths(text, setting.model)


def _inputs(section: PreflightSection, setting: PreflightSetting, identity: Identity) -> str:
    """A digest of what decides a section's results."""
    used = {name: str(getattr(setting, name)) for name in sorted(section.uses - {"model"})}
    if "model" in section.uses:
        used["model"] = _model(setting.model) if setting.given else ""
    told = msgspec.json.encode([section.name, setting.device, identity, used], order="sorted")
    return hashlib.sha256(told).hexdigest()[:16]


def _model(directory: Path) -> str:
    """Changes when a file of the model does."""
    files = [(path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file()]
    return repr([(name, facts.st_size, facts.st_mtime_ns) for name, facts in files])
