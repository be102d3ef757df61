"""Looks at this machine: files, packages, environment, torch. Takes some seconds, most of them for
torch's import.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import msgspec
from packaging.utils import canonicalize_name

from interlock import __version__
from interlock.chips import vendors
from interlock.doctor.machine import DeviceFile, Machine, Torch
from interlock.errors import SandboxError
from interlock.models.fetch import cache_dir
from interlock.processes.channel import Channel
from interlock.processes.child import UNASKED_BYTES, Child, ChildError, ChildLate, inherited
from interlock.processes.run_delay import processors
from interlock.sandbox.canary import open_sandbox
from interlock.text import error_headline, error_line

_TORCH_S = 60.0  # to import torch from a cold disk, and to look for devices
_ACCELERATORS = ("03", "12")  # classes of PCI: display controllers, processing accelerators


def survey(asked: str | None = None) -> Machine:
    """The facts of this machine. `asked` is a device that is used as well, to see that it works."""
    way, fault = _sandbox()
    cache = cache_dir()
    rows = vendors.VENDORS.values()
    of_vendors = [setting.variable for row in rows for setting in row.settings]
    known = {*of_vendors, *(row.visible for row in rows), "OMP_NUM_THREADS"}
    known |= {setting.variable for setting in vendors.SETTINGS}
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        interlock=__version__,
        torch=_torch(asked),
        files=_device_files(),
        bus=_bus(),
        software={row.name: vendors.software(row) for row in rows if not row.host},
        packages={canonicalize_name(each.name): each.version for each in metadata.distributions()},
        requirements=_requirements(),
        env={name: value for name, value in os.environ.items() if name in known},  # no secrets
        cores=processors(),
        quota=_quota(),
        memory=_memory(),
        shared_memory=_free(Path("/dev/shm")),
        cache=str(cache),
        cache_free=_free(cache),
        runs_free=_free(Path()),
        sandbox=way,
        sandbox_fault=fault,
    )


def _torch(asked: str | None) -> Torch:
    """In a process of its own: a plugin or a driver may end it, or never return."""
    built = vendors.built()
    known = Torch(version=built.get("__version__", ""), built=built)
    if not known.version:
        return known
    try:
        with closing(Child(__name__, inherited())) as child:
            told = child.ask((asked or "").encode(), _TORCH_S, UNASKED_BYTES)
        return msgspec.structs.replace(known, **msgspec.json.decode(told))
    except ChildLate:
        reason = (
            f"it is not imported within {_TORCH_S:g} s, on a busy machine or by a driver's hang"
        )
        return msgspec.structs.replace(known, error=reason)
    except (ChildError, OSError) as error:
        reason = f"its process gives no answer: {error_line(error, 300)}"
        return msgspec.structs.replace(known, error=reason)


def serve(channel: Channel) -> None:
    """The process: torch's devices, and whether the one that was asked for can be used."""
    data = channel.receive()
    if data is None:
        return
    found: dict[str, object] = {}
    try:
        from interlock.chips import device

        found["devices"] = device.available()
        if data:
            device.claim(data.decode())
    except Exception as error:
        found["refused" if "devices" in found else "error"] = error_headline(error, 300)
    channel.send(msgspec.json.encode(found))


def _sandbox() -> tuple[str, str]:
    """The way that isolates, or why none does."""
    try:
        return open_sandbox().name, ""
    except (SandboxError, OSError) as error:
        return "", error_line(error)


def _device_files() -> list[DeviceFile]:
    root = Path("/dev")
    known = re.compile("|".join(row.nodes for row in vendors.VENDORS.values() if row.nodes))
    found = [str(path.relative_to(root)) for path in (*root.glob("*"), *root.glob("accel/*"))]
    return [
        DeviceFile(
            name,
            os.access(root / name, os.R_OK | os.W_OK),
            _hexadecimal(Path("/sys/class") / name / "device" / "vendor"),
        )
        for name in sorted(found)
        if known.fullmatch(name)
    ]


def _bus() -> list[str]:
    cards = Path("/sys/bus/pci/devices").glob("*")
    told = [(_hexadecimal(card / "vendor"), _hexadecimal(card / "class")[:4]) for card in cards]
    return sorted(f"{maker}:{kind}" for maker, kind in told if kind.startswith(_ACCELERATORS))


def _hexadecimal(file: Path) -> str:
    """The digits in a file of /sys, as "0x10de"."""
    return _text(file).strip().removeprefix("0x")


def _requirements() -> list[str]:
    try:
        return metadata.requires("interlock") or []
    except metadata.PackageNotFoundError:  # it runs from its sources
        return []


def _quota() -> float:
    """CPUs that the control groups above this process may use; 0: as many as there are."""
    limits = []
    for directory in _control_groups("cpu"):
        told = _text(directory / "cpu.max").split() or [
            _text(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if len(told) == 2 and told[0].isdigit() and told[1].isdigit():
            limits.append(int(told[0]) / int(told[1]))
    return min(limits, default=0.0)


def _memory() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")))
    room = [int(found[1]) << 10] if found else []
    for directory in _control_groups("memory"):
        for most, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            told = [_text(directory / f"memory.{name}").strip() for name in (most, used)]
            if all(each.isdigit() for each in told):
                room.append(int(told[0]) - int(told[1]))
    return max(0, min(room, default=0))


def _control_groups(controller: str) -> Iterator[Path]:
    """The control groups of this process that may limit it, of version 1 or 2, upwards."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        group = root / path.lstrip("/")
        yield from (each for each in (group, *group.parents) if each.is_relative_to(root))


def _free(directory: Path) -> int:
    """Free where `directory` is, or would be made."""
    for each in (directory.absolute(), *directory.absolute().parents):
        try:
            return shutil.disk_usage(each).free
        except OSError:
            continue
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
