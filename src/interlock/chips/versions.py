"""Which software a device runs under, found in metadata and by vendors/. No torch device is
touched, nothing is raised, and nothing takes longer than a few seconds.
"""

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import torch

from interlock.chips import vendors
from interlock.records.trust import Stack

_PACKAGE = Path(__file__).parents[1]


def stack(
    kind: str, chip: str, *, serial: str = "", driver: str = "", plugin: str | None = None
) -> Stack:
    """The stack of a chip; what is not given is looked for, and empty where it is not found."""
    vendor = vendors.of(kind)
    found = vendors.software(vendor, serial)
    return Stack(
        kind=kind,
        chip=chip,
        driver=found.driver or driver,
        firmware=found.firmware,
        runtime=found.runtime,
        torch=str(torch.__version__),  # a subclass, which msgspec refuses
        plugin=_plugin(vendor.plugin) if plugin is None else plugin,
        interlock=_version("interlock"),
        serial=serial,
        libraries=found.libraries,
        vllm=_version("vllm"),
        suite=suite(),
    )


def suite() -> str:
    """The checks that `qualify` makes, as a digest of their sources: others prove other things."""
    return sources("qualify")


def sources(room: str = "") -> str:
    """A digest of the sources of a room; "": of all."""
    digest = hashlib.sha256()
    for file in sorted((_PACKAGE / room).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit of Interlock's sources: of the repository it was installed from, or lies in; ""
    where there is none.
    """
    try:
        told = metadata.distribution("interlock").read_text("direct_url.json") or "{}"
        if found := json.loads(told).get("vcs_info", {}).get("commit_id"):
            return str(found)
        git = _PACKAGE.parents[1] / ".git"
        head = (git / "HEAD").read_text().strip()
        return (git / head.removeprefix("ref: ")).read_text().strip() if ":" in head else head
    except (metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return ""


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _plugin(package: str) -> str:
    version = _version(package) if package else ""
    return f"{package} {version}" if version else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
