"""Where versions below torch are read, and what torch is built for."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from interlock.chips import vendors, versions
from interlock.chips.vendors import installed


def at(root: Path, name: str) -> vendors.Vendor:
    """A row whose files lie below `root`."""
    row = vendors.VENDORS[name]
    moved = {
        part: tuple(
            place._replace(file=f"{root}{place.file}") if place.file[:1] == "/" else place
            for place in getattr(row, part)
        )
        for part in ("driver", "firmware", "runtime")
    }
    return replace(row, **moved)


def says(directory: Path, tool: str, text: str) -> None:
    (directory / tool).write_text(f'#!/bin/sh\necho "$*" > "$0.asked"\ncat <<\'E\'\n{text}\nE\n')
    (directory / tool).chmod(0o755)


def test_versions_are_read_from_the_vendors_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    row, home = at(tmp_path, "npu"), "usr/local/Ascend"
    assert installed.software(row) == ("", "", "", "")
    write(f"{home}/driver/version.info", "Version=24.1.rc2\nascendhal_version=7.35\n")
    write(f"{home}/firmware/version.info", "Version=7.3.0.1.231\n")
    write(
        f"{home}/ascend-toolkit/latest/version.cfg", "# CANN\nruntime_running_version=[7.6:8.5.0]\n"
    )
    assert installed.software(row)[:3] == ("24.1.rc2", "7.3.0.1.231", "CANN 8.5.0")
    write("elsewhere/runtime/version.info", "Version=8.3.RC1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "elsewhere"))
    assert installed.software(row).runtime == "CANN 8.3.RC1"


TOOLS = [  # as the tools print it, by their documents and users
    ("rocm", "amd-smi", "AMDSMI Tool: 25.3.0 | ROCm version: 6.4.0 | amdgpu version: 6.12.12",
     "6.12.12"),
    ("npu", "npu-smi", "| npu-smi 24.1.rc2                 Version: 24.1.rc2             |",
     "24.1.rc2"),
    ("mlu", "cnmon", "| CNMON v6.2.29                                 Driver v6.2.29 |", "6.2.29"),
    ("musa", "mthreads-gmi", "    mthreads-gmi:1.14.0          Driver Version:2.7.0", "2.7.0"),
    ("hpu", "hl-smi", "1.20.0-bd4f4bb\n1.20.0-bd4f4bb", "1.20.0-bd4f4bb"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tool", "text", "driver"), TOOLS)
def test_the_driver_is_told_by_the_vendors_tool(
    name: str, tool: str, text: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert installed.software(at(tmp_path, name)).driver == ""
    says(tmp_path, tool, text)
    assert installed.software(at(tmp_path, name)).driver == driver


def test_nvidias_driver_is_asked_with_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    says(tmp_path, "nvidia-smi", "580.82.07, 96.00.74.00.1C\n580.82.07, 96.00.74.00.1D")
    found = versions.stack("cuda", "H100", serial="0a1b")
    assert (found.driver, found.firmware) == ("580.82.07", "96.00.74.00.1C")
    assert "--id=GPU-0a1b" in (tmp_path / "nvidia-smi.asked").read_text()
    monkeypatch.setattr(installed, "_DEADLINE_S", 0.2)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    assert versions.stack("cuda", "H100").firmware == ""


def test_a_tool_that_fails_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '1.2, 3'; exit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert installed.software(at(tmp_path, "cuda")).driver == ""


def test_the_libraries_that_torch_brings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"nvidia-nccl-cu13": "2.27.3", "nvidia-cudnn-cu13": "9.10.2.21", "numpy": "2", "": "1"}
    found = [SimpleNamespace(name=name, version=version) for name, version in names.items()]
    monkeypatch.setattr(installed.metadata, "distributions", lambda: found)
    libraries = installed.software(vendors.VENDORS["cuda"]).libraries
    assert libraries == "cuDNN 9.10.2.21, NCCL 2.27.3"


def test_what_torch_is_built_for_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+rocm7.2'\ncuda: Optional[str] = None\n"
        "hip: Optional[str] = '7.2.53211-e1a6bc5663'\nxpu = None\n"
    )
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: spec)
    found = installed.built.__wrapped__()
    assert found == {"__version__": "2.13.0+rocm7.2", "hip": "7.2.53211-e1a6bc5663"}
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    assert installed.built.__wrapped__() == {}
