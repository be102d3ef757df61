"""One line of what doctor says."""

import re
from enum import StrEnum

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import Version


class State(StrEnum):
    OK = "ok"  # it is there, and as it should be
    MISSING = "missing"  # it is not there; whoever needs it does without
    TRAP = "trap"  # known to go wrong with the versions that are installed
    WRONG = "wrong"  # it stands in the way of the devices of this machine


class Diagnosis(msgspec.Struct, frozen=True):
    """What is so, and what to do about it."""

    topic: str
    state: State
    text: str
    remedy: str = ""  # a command, or one sentence


def fits(version: str, wanted: SpecifierSet) -> bool:
    """Whether a version is among those that are wanted; one that is none is not.

    Vendors' have numbers first, and a name or a commit about them: "ROCm 7.13.26183-444cadec".
    """
    found = re.search(r"\d+(\.\d+)*", version)
    return found is not None and wanted.contains(Version(found[0]), prereleases=True)
