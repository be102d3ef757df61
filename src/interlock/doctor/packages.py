"""The packages of Interlock's extras: each role installs its own."""

import re
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from interlock.doctor.finding import Diagnosis, State, fits
from interlock.doctor.machine import Machine

_DEVELOPMENT = ("bench", "lint", "test")  # extras for who changes Interlock


def extras(machine: Machine) -> Iterator[Diagnosis]:
    """Which extras are whole, and what the others lack."""
    if not machine.requirements:
        text = "Interlock runs from its sources: its extras are not known"
        yield Diagnosis("packages", State.MISSING, text, "pip install -e .")
        return
    lacking = {
        extra: [text for each in wanted if (text := _lacks(machine, each))]
        for extra, wanted in sorted(_by_extra(machine).items())
    }
    if whole := [extra for extra, absent in lacking.items() if not absent]:
        yield Diagnosis("packages", State.OK, f"installed: {', '.join(whole)}")
    for extra, absent in lacking.items():
        if absent:
            text = f"{extra}: {', '.join(absent)}"
            remedy = f"pip install 'interlock[{extra}]'"
            yield Diagnosis("packages", State.MISSING, text, remedy)


def wanted_torch(machine: Machine) -> SpecifierSet:
    """The versions of torch that Interlock is made for."""
    requirements = map(Requirement, machine.requirements)
    found = [each.specifier for each in requirements if each.name == "torch"]
    return found[0] if found else SpecifierSet()


def _by_extra(machine: Machine) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for each in map(Requirement, machine.requirements):
        name = re.search(r"extra == [\"']([^\"']+)", str(each.marker or ""))
        if name and each.marker and name[1] not in _DEVELOPMENT:
            needed = each.marker.evaluate({"extra": name[1]})  # else of another system
            found.setdefault(name[1], []).extend([each] * needed)
    return found


def _lacks(machine: Machine, wanted: Requirement) -> str:
    """What is wrong with one package; "": nothing."""
    version = machine.packages.get(canonicalize_name(wanted.name))
    if version is None:
        return f"no {wanted.name}"
    known = fits(version, wanted.specifier)
    return "" if known else f"{wanted.name} {version} is not {wanted.specifier}"
