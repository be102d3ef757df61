"""What facts mean for the devices of each vendor."""

import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from interlock.chips import vendors
from interlock.chips.vendors import Setting, Software, Vendor
from interlock.doctor.finding import Diagnosis, State, fits
from interlock.doctor.machine import DeviceFile, Machine
from interlock.text import one_line


def concerned(machine: Machine, asked: str | None) -> list[Vendor]:
    """The vendors whose devices are to be looked at: those that the machine shows, or asked for."""
    if asked is None:
        return [row for row in vendors.VENDORS.values() if not row.host and _shown(machine, row)]
    rows = [row for row in vendors.named(vendors.kind_of(asked)) if not row.host]
    # Of two that share a kind: the one whose card is here, or that torch is built for.
    for is_it in (_at_hand, built_for):
        rows = [row for row in rows if is_it(machine, row)] or rows
    return rows[:1]


def diagnose_devices(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    """All of one vendor's devices."""
    found = [*_hardware(machine, row), *_driver(machine, row), *_torch_for(machine, row)]
    yield from found
    yield from _seen_by_torch(machine, row, all(line.state is not State.WRONG for line in found))
    yield from _settings(machine, row)
    yield from _traps(machine, row)


def builds(machine: Machine) -> str:
    """What torch was built for: "CUDA 13.0"; "" for CPUs alone."""
    rows = [row for row in vendors.VENDORS.values() if row.build and built_for(machine, row)]
    return ", ".join(f"{row.runtime_name} {machine.torch.built[row.build]}" for row in rows)


def built_for(machine: Machine, row: Vendor) -> bool:
    """Whether the torch that is installed was built for a vendor's devices."""
    return row.build in machine.torch.built


def _shown(machine: Machine, row: Vendor) -> bool:
    """Whether the machine shows that it has, or is to have, devices of a vendor."""
    plugin = bool(row.plugin) and canonicalize_name(row.plugin) in machine.packages
    return plugin or bool(_seen(machine, row)) or _at_hand(machine, row)


def _at_hand(machine: Machine, row: Vendor) -> bool:
    return bool(_own(machine, row) or _files(machine, row) or _cards(machine, row))


def _own(machine: Machine, row: Vendor) -> bool:
    return bool(row.system) and machine.system == row.system


def _files(machine: Machine, row: Vendor) -> list[DeviceFile]:
    def is_its(file: DeviceFile) -> bool:
        makers = ("", row.bus.partition(":")[0])
        return file.maker in makers and re.fullmatch(row.nodes, file.name) is not None

    return [file for file in machine.files if is_its(file)]


def _cards(machine: Machine, row: Vendor) -> list[str]:
    return [card for card in machine.bus if re.fullmatch(row.bus, card)]


def _seen(machine: Machine, row: Vendor) -> list[str]:
    """The devices that torch has; of two vendors that share a kind, it is built for one."""
    if row.build and not built_for(machine, row):
        return []
    return [name for name in machine.torch.devices if vendors.kind_of(name) == row.kind]


def _hardware(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    files, cards = _files(machine, row), _cards(machine, row)
    if shut := [f"/dev/{file.name}" for file in files if not file.opens]:
        remedy = "have its owner give you the right to open it"
        if row.group:
            remedy = f"sudo usermod -aG {row.group} $USER, and log in again"
        yield Diagnosis(row.name, State.WRONG, f"{shut[0]} does not open for this user", remedy)
    elif files:
        names = ", ".join(f"/dev/{file.name}" for file in files)
        yield Diagnosis(row.name, State.OK, names)
    elif cards:
        yield Diagnosis(
            row.name,
            State.WRONG,
            f"there is one on the bus (PCI {cards[0]}), but no file of it in /dev",
            f"{row.get_driver}; for a container: {row.container}",
        )
    elif _own(machine, row):
        yield Diagnosis(row.name, State.OK, f"every {row.system} has one")
    elif not _seen(machine, row):
        remedy = f"for a container: {row.container}" if row.container else "use another machine"
        yield Diagnosis(row.name, State.WRONG, "there is no such device here", remedy)


def _driver(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    found = machine.software.get(row.name, Software())
    parts = [f"driver {found.driver}" if found.driver else "", found.runtime, found.libraries]
    if found.driver:
        yield Diagnosis(row.name, State.OK, ", ".join(filter(None, parts)))
    elif row.driver and _files(machine, row):
        tool = row.versions_command[0]
        yield Diagnosis(
            row.name,
            State.MISSING,
            "its driver's version cannot be found, which certificates name",
            f"put {tool} on the PATH",
        )


def _torch_for(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    """Does the torch that is installed belong to a vendor's devices?"""
    torch = machine.torch
    if not torch.version:
        return
    if row.build and not built_for(machine, row):
        text = f"torch {torch.version} is not built for it"
        yield Diagnosis(row.name, State.WRONG, text, row.get_torch)
    if not row.plugin:
        return
    others = builds(machine)
    if row.plain_torch and others:
        text = f"torch {torch.version} is built for {others}, which {row.plugin} refuses"
        yield Diagnosis(row.name, State.WRONG, text, row.get_torch)
    version = machine.packages.get(canonicalize_name(row.plugin), "")
    minor = vendors.minor(torch.version)
    wanted = vendors.wanted_torch(row, version)
    install = row.get_torch
    if row.plugin_follows_torch:
        install = f"pip install '{row.plugin}=={minor}.*'"
    if not version:
        yield Diagnosis(row.name, State.WRONG, f"its plugin {row.plugin} is not installed", install)
    elif wanted not in (None, minor):
        text = f"{row.plugin} {version} is made for torch {wanted}, not for {torch.version}"
        yield Diagnosis(row.name, State.WRONG, text, install)
    else:
        yield Diagnosis(row.name, State.OK, f"{row.plugin} {version}")


def _seen_by_torch(machine: Machine, row: Vendor, sound: bool) -> Iterator[Diagnosis]:
    """Whether torch has them; `sound`: nothing that was found so far explains that it has none."""
    if seen := _seen(machine, row):
        yield Diagnosis(row.name, State.OK, f"torch has {', '.join(seen)}")
        return
    hidden = machine.env.get(row.visible)
    if hidden is not None and hidden.strip() in ("", "-1"):
        text, remedy = f"{row.visible}={hidden} hides all devices", f"unset {row.visible}"
        yield Diagnosis(row.name, State.WRONG, text, remedy)
    elif sound and machine.torch.version and not machine.torch.error:
        remedy = f"driver and torch may not belong together; {row.get_driver or row.get_torch}"
        yield Diagnosis(row.name, State.WRONG, "torch finds none, though all is there", remedy)


def _settings(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    rules = [*row.settings, *(vendors.SETTINGS if row.plugin else ())]
    lines = [line for rule in rules if (line := _setting(machine, row, rule)) is not None]
    yield from lines or [Diagnosis(row.name, State.OK, "no variable is set against it")]


def _setting(machine: Machine, row: Vendor, rule: Setting) -> Diagnosis | None:
    value = machine.env.get(rule.variable, "")
    if re.fullmatch(rule.right, value, re.IGNORECASE):
        return None
    state = State.WRONG if value else State.MISSING
    is_set = f"{rule.variable}={one_line(value, 40)}" if value else f"{rule.variable} is not set"
    return Diagnosis(row.name, state, f"{is_set}: {rule.otherwise}", rule.remedy)


def _traps(machine: Machine, row: Vendor) -> Iterator[Diagnosis]:
    software = machine.software.get(row.name, Software())
    found = {
        **machine.packages,
        "torch": machine.torch.version,
        "driver": software.driver,
        "runtime": software.runtime,
    }
    for trap in row.traps:
        version = found.get(canonicalize_name(trap.part), "")
        there = not trap.part or version
        if there and (not trap.versions or fits(version, SpecifierSet(trap.versions))):
            yield Diagnosis(row.name, State.TRAP, f"{trap.what} ({trap.thread})", trap.remedy)
