"""The energy of chips: counters of the kernel, and what vendors' tools print."""

import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from interlock.chips import vendors
from interlock.chips.power import Energy, PowerMeter
from interlock.records.cost import HeldChip

HOST = socket.gethostname()
CPU = HeldChip("EPYC", "here/cpu", "cpu", "", HOST)


def package(folder: Path, name: str, counter: int, span: int = 1000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{counter}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")


def test_the_packages_of_a_cpu_add_up_and_their_counters_turn_over(tmp_path: Path) -> None:
    package(tmp_path / "intel-rapl:0", "package-0", 100)
    package(tmp_path / "intel-rapl:1", "package-1", 900)
    package(tmp_path / "intel-rapl:0:0", "core", 5)  # is in package-0
    times = iter([0.0, 10.0, 15.0])
    meter = PowerMeter(lambda: next(times), tmp_path)
    assert meter.look([CPU]) == {}
    package(tmp_path / "intel-rapl:0", "package-0", 400)
    package(tmp_path / "intel-rapl:1", "package-1", 100)
    assert meter.look([CPU]) == {"here/cpu": Energy(pytest.approx((300 + 200) / 1e6), 10.0)}
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.look([CPU]) == {}


def test_no_files_and_other_machines_tell_nothing(tmp_path: Path) -> None:
    meter = PowerMeter(powercap=tmp_path)
    meter.look([CPU])
    assert meter.look([CPU, HeldChip("X", "there", "cpu", "", "elsewhere")]) == {}


# As the tools print them, in their documents.
PRINTED = {
    "cuda": ("GPU-11aa-22, 100.50\nGPU-33bb-44, 71.00\n", {"11aa-22": 100.5, "33bb-44": 71.0}),
    "rocm": (
        '{"card0": {"Average Graphics Package Power (W)": "35.0"}, '
        '"card1": {"Current Socket Graphics Package Power (W)": "130.0"}}',
        {"0": 35.0, "1": 130.0},
    ),
    "npu": (
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages |\n"
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM       |\n"
        "| 0     910B3               | OK            | 93.6        36                0    / 0  |\n"
        "| 0                         | 0000:C1:00.0  | 0           0    / 0          3161/65536|\n"
        "| 7     910B3               | OK            | 88          36                0    / 0  |\n",
        {"0": 93.6, "7": 88.0},
    ),
    "hpu": ("0, 93.0 W\n1, 101 W\n", {"0": 93.0, "1": 101.0}),
}


@pytest.mark.parametrize("name", PRINTED)
def test_what_tools_print_is_read(name: str) -> None:
    text, expected = PRINTED[name]
    vendor = next(row for row in vendors.VENDORS.values() if row.name == name)
    found = {each["device"]: float(each["watts"]) for each in re.finditer(vendor.power, text)}
    assert found == expected and vendor.power_command


def test_watts_become_joules_by_trapezoids(monkeypatch: pytest.MonkeyPatch) -> None:
    """By serial; what a tool does not tell at one look is not guessed over."""
    answers = iter(["GPU-aa, 100\n", "GPU-aa, 200\n", "", "GPU-aa, 50\n", "GPU-aa, 50\n"])

    def run(command: Any, **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 0, next(answers).encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    times = iter([0.0, 10.0, 20.0, 30.0, 34.0])
    meter = PowerMeter(lambda: next(times))
    chip = HeldChip("X", "aa", "cuda:3", "AA", HOST)
    found = [meter.look([chip]) for _ in range(5)]
    assert found == [{}, {"aa": Energy(1500.0, 10.0)}, {}, {}, {"aa": Energy(200.0, 4.0)}]


def test_a_tool_that_is_not_there_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: Any, **_: Any) -> Any:
        asked.append(command)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    meter = PowerMeter()
    chip = HeldChip("X", "aa", "cuda:3", "AA", HOST)
    assert [meter.look([chip]), meter.look([chip])] == [{}, {}] and len(asked) == 1
