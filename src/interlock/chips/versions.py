"""Which software a device runs under, found in metadata, files and tools of the vendors. No torch
device is touched, nothing is raised, and nothing takes longer than a few seconds.

    cuda   nvidia-smi; /proc/driver/nvidia, /sys/module/amdgpu     torch.version
    npu    version.info of Ascend's driver, firmware and toolkit   torch_npu
    other  what torch knows, and the version of the plugin
"""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from interlock.records.trust import Stack

_DEADLINE_S = 5.0
_PLUGINS = {"npu": "torch_npu", "mlu": "torch_mlu", "musa": "torch_musa"}
_ASCEND = Path("/usr/local/Ascend")


def stack(
    kind: str, chip: str, *, serial: str = "", driver: str = "", plugin: str | None = None
) -> Stack:
    """The stack of a chip; what is not given is looked for, and empty where it is not found."""
    firmware, runtime = "", ""
    match kind:
        case "cuda":
            driver, firmware = _nvidia(serial) if torch.version.hip is None else (_amd(), "")
            runtime = _named("ROCm", torch.version.hip) or _named("CUDA", torch.version.cuda)
        case "npu":
            driver = _value(_ASCEND / "driver" / "version.info")
            firmware = _value(_ASCEND / "firmware" / "version.info")
            runtime = _named("CANN", _cann())
        case "xpu":
            runtime = _named("oneAPI", getattr(torch.version, "xpu", None))
        case "mps":
            runtime = _named("macOS", platform.mac_ver()[0])
    return Stack(
        kind=kind,
        chip=chip,
        driver=driver,
        firmware=firmware,
        runtime=runtime,
        torch=str(torch.__version__),  # a subclass, which msgspec refuses
        plugin=_plugin(kind) if plugin is None else plugin,
        interlock=_version("interlock"),
        serial=serial,
    )


def minor(version: str) -> str:
    """ "2.13" of "torch_npu 2.13.0rc1"; empty where there is none."""
    found = re.search(r"\d+\.\d+", version)
    return found[0] if found else ""


def wanted_torch(stack: Stack) -> str | None:
    """The minor version of torch that the plugin is built for; None where it does not say.

    Ascend's has the version of its torch. Others have numbers of their own, and may name torch's
    after them: "torch_mlu 1.24.1+torch2.5.0".
    """
    if stack.kind in ("npu", "sim"):
        return minor(stack.plugin)
    found = re.search(r"torch(\d+\.\d+)", stack.plugin)
    return found[1] if found else None


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _plugin(kind: str) -> str:
    name = _PLUGINS.get(kind)
    return _named(name, _version(name)) if name else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _named(name: str, version: str | None) -> str:
    return f"{name} {version}" if version else ""


def _nvidia(uuid: str) -> tuple[str, str]:
    """Versions of driver and video BIOS."""
    command = ["nvidia-smi", "--query-gpu=driver_version,vbios_version", "--format=csv,noheader"]
    if uuid:
        command.append(f"--id=GPU-{uuid.removeprefix('GPU-')}")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S)
        driver, firmware = told.stdout.splitlines()[0].split(", ")
        return driver, firmware
    except (OSError, subprocess.SubprocessError, LookupError, ValueError):
        found = re.search(r"Module\s+(\d[\d.]*)", _text(Path("/proc/driver/nvidia/version")))
        return (found[1] if found else ""), ""


def _amd() -> str:
    return _text(Path("/sys/module/amdgpu/version")).strip()


def _cann() -> str:
    """The version of Ascend's toolkit, which has moved between files from release to release."""
    home = Path(os.environ.get("ASCEND_TOOLKIT_HOME", _ASCEND / "ascend-toolkit" / "latest"))
    places = ("compiler/version.info", "runtime/version.info", "version.info", "version.cfg")
    return next(filter(None, (_value(home / place) for place in places)), "")


def _value(file: Path) -> str:
    """The version in a file of lines "Version=8.5.0" or "runtime_running_version=[7.1:8.5.0]"."""
    found = re.search(r"version\s*=\s*\[?(?:[\w.]*:)?([\w.]+)", _text(file), re.IGNORECASE)
    return found[1] if found else ""


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
