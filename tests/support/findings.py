"""Findings of every check, such that the rules give a trust."""

from interlock.chips.verdict import NEEDED
from interlock.records.trust import Finding, Result, Trust

_OFF = {Trust.GENERATE: "backward", Trust.REJECT: "forward"}


def findings_for(trust: Trust) -> list[Finding]:
    """One check failed, or did not run, where `trust` is not `train`."""
    found = {name: Finding(name, Result.PASS, "right") for name in NEEDED}
    if trust in _OFF:
        found[_OFF[trust]] = Finding(_OFF[trust], Result.FAIL, "wrong")
    if trust is Trust.UNKNOWN:
        found["forward"] = Finding("forward", Result.UNKNOWN, "nobody asked")
    return list(found.values())
