"""The energy of this machine's chips, as far as a driver tells of it; else nothing is said.

    vendors' tools, watts of each device ──looked at now and then──> joules, by trapezoids
    /sys/class/powercap, joules of the CPU's packages ─────────────> their difference

Of a package that is the whole of it, whoever computes there. No torch. Tried were the CPU's files
alone, in the form that the kernel documents; the tools were not (vendors/table.py).
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from interlock.chips import vendors
from interlock.records.cost import HeldChip

_POWERCAP = Path("/sys/class/powercap")
_DEADLINE_S = 5.0  # for a vendor's tool to answer


class Energy(NamedTuple):
    """What a chip took since it was looked at before."""

    joules: float
    seconds: float


class PowerMeter:
    """What chips take, look by look; one that does not tell is in no answer."""

    def __init__(
        self, now: Callable[[], float] = time.monotonic, powercap: Path = _POWERCAP
    ) -> None:
        self._now, self._host = now, socket.gethostname()
        self._packages = [
            path
            for path in sorted(powercap.glob("*:*"))
            if re.fullmatch(r"package-\d+", _text(path / "name"))
        ]
        self._silent: set[str] = set()  # kinds whose tool is not there, or fails
        self._watts: dict[str, tuple[float, float]] = {}  # by place: when, and how many
        self._counters: dict[Path, float] = {}  # microjoules
        self._counted: float | None = None  # when

    def look(self, chips: Iterable[HeldChip]) -> dict[str, Energy]:
        """What each took since the look before, by its place; the first look tells nothing."""
        here = [chip for chip in chips if chip.host == self._host and chip.device]
        kinds = {vendors.kind_of(chip.device) for chip in here}
        cpus = {kind for kind in kinds if vendors.of(kind).host}
        watts = {kind: self._told(kind) for kind in kinds - cpus}
        package = self._of_packages() if cpus else None
        found = {}
        for chip in here:
            kind = vendors.kind_of(chip.device)
            taken = package if kind in cpus else self._of_device(chip, watts[kind])
            if taken is not None:
                found[chip.place] = taken
        return found

    def _told(self, kind: str) -> dict[str, float]:
        """Watts by serial or number, as the vendor's tool prints them."""
        vendor = vendors.of(kind)
        if not vendor.power_command or kind in self._silent:
            return {}
        try:
            told = subprocess.run(
                vendor.power_command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DEADLINE_S,
            )
        except subprocess.TimeoutExpired:
            return {}
        except OSError:
            self._silent.add(kind)
            return {}
        text = told.stdout.decode(errors="replace")
        return {
            each["device"].lower(): float(each["watts"]) for each in re.finditer(vendor.power, text)
        }

    def _of_device(self, chip: HeldChip, watts: dict[str, float]) -> Energy | None:
        kind, _, number = chip.device.partition(":")
        names = [chip.serial.lower()]
        if not os.environ.get(vendors.of(kind).visible):  # else numbers are not the tool's
            names.append(number or "0")
        now = self._now()
        power = next((watts[name] for name in names if name in watts), None)
        before = self._watts.pop(chip.place, None)
        if power is None:
            return None
        self._watts[chip.place] = now, power
        if before is None:
            return None
        seconds = now - before[0]
        return Energy(seconds * (before[1] + power) / 2, seconds)

    def _of_packages(self) -> Energy | None:
        """All packages of the machine together; None where one does not tell."""
        now, since = self._now(), self._counted
        before, self._counters = self._counters, {}
        self._counted = now
        joules = 0.0
        for path in self._packages:
            try:
                counter = float(_text(path / "energy_uj"))
                span = float(_text(path / "max_energy_range_uj"))
            except ValueError:  # root's alone, as a rule
                self._counters = {}
                return None
            self._counters[path] = counter
            grown = counter - before.get(path, counter)
            joules += (grown if grown >= 0 else grown + span) / 1e6
        if since is None or not self._packages or before.keys() != self._counters.keys():
            return None
        return Energy(joules, now - since)


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text().strip()
    return ""
