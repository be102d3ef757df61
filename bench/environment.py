"""What a benchmark ran on: the facts that RESULTS.md states beside every figure.

No host name and no path: two machines of the same kind give the same facts.
"""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("interlock", "torch", "transformers", "trl", "accelerate", "tokenizers", "ray")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve")  # bf16, sve: Arm
_CPUINFO = Path("/proc/cpuinfo")


def environment() -> dict[str, str]:
    """Machine, versions and date, ready to be printed or put in JSON. Imports no torch."""
    facts = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    facts |= {package: _version(package) for package in _PACKAGES}
    if threads := os.environ.get("OMP_NUM_THREADS"):
        facts["OMP_NUM_THREADS"] = threads
    return facts | {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}


def _cpu() -> str:
    """Model name, and those of its instruction sets that decide the speed of a matrix product."""
    if not _CPUINFO.exists():
        return platform.processor() or platform.machine()
    fields = {
        name.strip(): value.strip()
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines()
        for name, _, value in [line.partition(":")]
    }
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    found = [name for name in _INSTRUCTIONS if name in flags]
    return " ".join([fields.get("model name", platform.machine()), f"({', '.join(found)})"])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(json.dumps(environment(), indent=2))
