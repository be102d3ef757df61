"""What a run hangs on besides its settings: data, verifiers, chat template, teachers, by content.

    files of the stages, model ──identify──> {"stage 0: rows.jsonl": "sha256 …"} ──> manifest

A resumed run must find the same. Of a hub's repository the revision is kept too. Weights among the
files are a teacher's; those of the model are not read for this: a resumed run takes its own.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from interlock.errors import RunError, TooFewProblems
from interlock.models.identity import weights_digest
from interlock.models.tokenizer import Tokenizer
from interlock.text import one_line

_REVISION = re.compile(r"/(models|datasets)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


def identify(model: Path, tokenizer: Tokenizer, stages: Sequence[Sequence[Path]]) -> dict[str, str]:
    """Digests by the name of what they are of; `stages` are the files of each stage."""
    found = {"chat template": _sha256((tokenizer.template or "").encode())}
    found["tokenizer"] = _sha256((model / "tokenizer.json").read_bytes())
    found |= _revision(model)
    for index, files in enumerate(stages):
        for path in files:
            name = f"{_stage(index)}{path.name}"
            while name in found:
                name += " (another)"
            found[name] = (
                weights_digest(path)
                if path.suffix == ".safetensors"
                else _sha256(path.read_bytes())
            )
            found |= _revision(path)
    return found


def of_stage(recorded: Mapping[str, str], index: int) -> dict[str, str]:
    """Of what `identify` told, the files of one stage, by their names."""
    own = _stage(index)
    return {
        name.removeprefix(own): digest for name, digest in recorded.items() if name.startswith(own)
    }


def changed(files: Iterable[Path], known_files: Mapping[str, str]) -> Path | None:
    """The first of `files` that is none of those by its name which `of_stage` gave; None: all are,
    or nothing is known of them.
    """
    for path in files:
        known = {
            digest
            for name, digest in known_files.items()
            if name == path.name or name.startswith(f"{path.name} (another)")
        }
        if known and _sha256(path.read_bytes()) not in known:
            return path
    return None


def lost(error: TooFewProblems, run: str | Path) -> RunError:
    """Of a run that found as many when it began: its settings are right, and its data are not."""
    return RunError(
        f"{error.what}, as {one_line(str(run), 200)} did: its data are others now; put them back"
    )


def _stage(index: int) -> str:
    return f"stage {index}: "


def _sha256(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def _revision(path: Path) -> dict[str, str]:
    """Of a file in the hub's cache: its repository's revision."""
    place = _REVISION.search(str(path.absolute()))
    if place is None:
        return {}
    return {place[2].replace("--", "/"): f"revision {place[3]}"}
