"""Certificates: sealed, and filed where a run looks for them.

    qualify ──seal──> Certificate ──keep──> <directory>/cuda-3f9a….json   one file per stack
    admission.py <── Certificate ──find(stack)────────┘

<directory> is $INTERLOCK_CERTIFICATES, else $XDG_DATA_HOME/interlock/certificates, else
~/.local/share/interlock/certificates. The seal is a checksum: it shows that a file was damaged, not
who wrote it. What a certificate claims is judged by its findings (verdict.py). No torch here.
"""

import hashlib
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from interlock.errors import RunError
from interlock.records.coding import from_json
from interlock.records.trust import Certificate, Result, Stack, Trust
from interlock.regular import read_regular
from interlock.rundir.files import storage_errors, write_atomically

_SPECIAL = "$float"  # the key under which JSON, which has no infinity and no NaN, holds one


def seal(certificate: Certificate) -> Certificate:
    """The same with its checksum: sha256 of everything else in it, as JSON with sorted keys."""
    whole = msgspec.convert(msgspec.to_builtins(certificate), Certificate)  # 1 becomes 1.0
    return replace(whole, checksum=_checksum(whole))


def verify(certificate: Certificate) -> None:
    """Raises RunError when the content is not what was sealed."""
    if certificate.checksum != _checksum(certificate):
        raise RunError(
            f"the certificate of {described(certificate.stack)} was changed or damaged: its "
            "checksum is not that of its content"
        )


def save(certificate: Certificate, path: Path) -> None:
    """Write it as JSON to read, whole or not at all. Raises RunError."""
    data = msgspec.json.encode(_without_specials(msgspec.to_builtins(certificate)))
    write_atomically(path, msgspec.json.format(data, indent=2) + b"\n")


def load(path: Path) -> Certificate:
    """Read what `save` wrote; whether the seal holds is for `verify` to say.

    Raises RunError when there is no such file, or it is no certificate, or one of an older format.
    """
    try:
        return decode(read_regular(path), path)
    except FileNotFoundError:
        raise RunError(f"no certificate at {path}; interlock qualify writes one") from None
    except OSError as error:
        raise RunError(f"{path} is no certificate ({error}); remove it") from None


def decode(data: bytes, path: Path) -> Certificate:
    """As `load`, of what was read from `path`."""
    try:
        tree = _with_specials(from_json(data))
        if isinstance(tree, dict) and "digest" in tree:  # before it was called checksum
            raise RunError(
                f"{path} is a certificate of an older format; {remedy(str(tree.get('device')))}"
            )
        return msgspec.convert(tree, Certificate)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RunError(f"{path} is no certificate ({error}); remove it") from None


def keep(certificate: Certificate) -> Path | None:
    """File it for runs of this user on this machine, in place of an older one of its stack.

    A fault that was found always counts. None: no fault was found, and the one that is filed proves
    more. Raises RunError when it cannot be written.
    """
    path = _place(certificate.stack)
    with storage_errors(path.parent):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    faulty = any(finding.result is Result.FAIL for finding in certificate.findings)
    before = None if faulty else _sound(path)
    if before is not None and _proven(before) > _proven(certificate):
        return None
    save(certificate, path)
    with storage_errors(path.parent):
        path.chmod(0o600)
    return path


def find(stack: Stack) -> Certificate | None:
    """The certificate filed for this stack; else the latest of its kind, for admission.py to say
    what has changed since; None when there is none. Raises RunError as `load` does.
    """
    path = _place(stack)
    with storage_errors(path.parent):
        filed = path.exists()
    if filed:
        return load(path)
    others = filter(None, map(_sound, path.parent.glob(f"{stack.kind}-*.json")))
    return max(others, key=lambda certificate: certificate.issued, default=None)


def remedy(device: str, python: str | None = None, checks: Sequence[str] = ()) -> str:
    """How to qualify a device, or to run some checks again, from a shell on its machine."""
    command = f"{shlex.quote(python)} -m interlock.cli" if python else "interlock"
    only = f" --only {','.join(checks)}" if checks else ""
    return f"run: {command} qualify --device {shlex.quote(device)}{only}"


def described(stack: Stack) -> str:
    """A stack in messages: "npu (Ascend 910B, torch_npu 2.13.0)"."""
    software = stack.plugin or f"torch {stack.torch}"
    return f"{stack.kind} ({', '.join(filter(None, [stack.chip, software]))})"


def _checksum(certificate: Certificate) -> str:
    tree = _without_specials(msgspec.to_builtins(replace(certificate, checksum="")))
    return hashlib.sha256(msgspec.json.encode(tree, order="sorted")).hexdigest()


def _directory() -> Path:
    own = os.environ.get("INTERLOCK_CERTIFICATES")
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    try:
        return Path(own or Path(base, "interlock", "certificates")).expanduser()
    except RuntimeError:  # nobody knows where home is
        raise RunError(
            "there is no home directory to keep certificates in; set $INTERLOCK_CERTIFICATES"
        ) from None


def _place(stack: Stack) -> Path:
    name = hashlib.sha256(msgspec.json.encode(stack)).hexdigest()[:16]
    return _directory() / f"{stack.kind}-{name}.json"


def _sound(path: Path) -> Certificate | None:
    """The certificate in a file; None when there is none that one could rely on."""
    try:
        found = load(path)
        verify(found)
    except RunError:
        return None
    return found


def _proven(certificate: Certificate) -> tuple[int, ...]:
    """How much a certificate says, beside another of its stack."""
    trusts = [Trust.UNKNOWN, Trust.REJECT, Trust.GENERATE, Trust.TRAIN]
    levels = ["quick", "default", "soak"]
    level = levels.index(certificate.level) if certificate.level in levels else -1
    models = len(certificate.models)
    return trusts.index(certificate.trust), certificate.world_size, level, models


def _without_specials(value: Any) -> Any:
    """The tree with infinities and NaN, which broken devices measure, as JSON can hold them."""
    if isinstance(value, dict):
        return {key: _without_specials(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_specials(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_SPECIAL: str(value)}
    return value


def _with_specials(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_SPECIAL}:
            return float(value[_SPECIAL])
        return {key: _with_specials(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_specials(each) for each in value]
    return value
