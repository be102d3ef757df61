"""Versions of what lies below torch, and what torch and its plugins are built for.

Nothing is imported, nothing raised, and nothing takes longer than a few seconds.
"""

import functools
import importlib.util
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from interlock.chips.vendors.vendor import Told, Vendor

_DEADLINE_S = 5.0  # for a vendor's tool to answer


class Software(NamedTuple):
    """Versions of what lies below torch; "" where there is none or it cannot be found."""

    driver: str = ""
    firmware: str = ""
    runtime: str = ""  # with its name: "CUDA 13.0"
    libraries: str = ""  # that torch brings: "cuDNN 9.10.2, NCCL 2.27.3"


def software(vendor: Vendor, serial: str = "") -> Software:
    """What lies below torch for a vendor's devices; `serial` names one of them."""
    told = _answer(vendor, serial)
    runtime = built().get(vendor.build, "") or _first(vendor.runtime, told)
    return Software(
        driver=_first(vendor.driver, told),
        firmware=_first(vendor.firmware, told),
        runtime=f"{vendor.runtime_name} {runtime}" if runtime else "",
        libraries=_libraries(vendor),
    )


@functools.cache
def built() -> dict[str, str]:
    """What the torch that an import would find was built with: {"cuda": "13.0"}."""
    try:
        found = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return {}
    if found is None or found.origin is None:
        return {}
    text = _text(Path(found.origin).with_name("version.py"))
    return dict(re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))


def minor(version: str) -> str:
    """ "2.13" of "torch_npu 2.13.0rc1"; empty where there is none."""
    found = re.search(r"\d+\.\d+", version)
    return found[0] if found else ""


def wanted_torch(vendor: Vendor, plugin: str) -> str | None:
    """The minor version of torch that a version of its plugin is built for; None where it does not
    say.

    Some have the version of their torch. Others have numbers of their own, and may name torch's
    after them: "torch_mlu 1.24.1+torch2.5.0".
    """
    if vendor.plugin_follows_torch:
        return minor(plugin)
    found = re.search(r"torch(\d+\.\d+)", plugin)
    return found[1] if found else None


def _answer(vendor: Vendor, serial: str) -> str:
    """What the vendor's command prints."""
    if not vendor.versions_command:
        return ""
    one = [vendor.versions_of_one + serial] if serial and vendor.versions_of_one else []
    try:
        told = subprocess.run(
            [*vendor.versions_command, *one],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.decode(errors="replace") if told.returncode == 0 else ""


def _first(places: tuple[Told, ...], told: str) -> str:
    for place in places:
        text = _text(_path(place.file)) if place.file else told
        if found := re.search(place.pattern, text, re.IGNORECASE | re.MULTILINE):
            return found[1].strip()
    return ""


def _path(file: str) -> Path:
    """Of a file below a variable that is not set, one that cannot be."""
    variable, _, rest = file.partition("/")
    if not variable.startswith("$"):
        return Path(file)
    return Path(os.environ.get(variable[1:]) or "/dev/null", rest)


def _libraries(vendor: Vendor) -> str:
    """As the packages that torch depends on call them: nvidia-cudnn-cu13 and its like."""
    if not vendor.libraries:
        return ""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        if name := re.fullmatch(vendor.libraries, package.name or ""):
            found[name[1]] = package.version
    return ", ".join(f"{vendor.library_names[name]} {found[name]}" for name in sorted(found))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
