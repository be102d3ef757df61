"""The rules: what a chip may be trusted with, given what its checks found.

    role       granted when                                  refused when
    train      every check passed                            a check that training needs failed
    generate   every check that generation needs passed      a check that generation needs failed

    trust      train      training is granted
               generate   generation is granted, training is not
               reject     generation is refused
               unknown    none of these: a check that decides did not run

It is asked when a certificate is made and again whenever one is read: a certificate never says more
than its findings, and what a later suite of checks asks besides is missing in an earlier one's.
"""

from collections.abc import Iterable, Mapping

from interlock.records.trust import Finding, Result, Role, Trust

_BOTH = frozenset(Role)
_TRAIN = frozenset({Role.TRAIN})

# The roles that each check is needed for. What a check is stands in qualify/checks.py.
NEEDED: dict[str, frozenset[Role]] = {
    "versions": _BOTH,
    "operators": _BOTH,
    "training-operators": _TRAIN,
    "forward": _BOTH,
    "products": _BOTH,  # of transposed factors: gradients ask for them, but they are products
    "opinfo": _BOTH,
    "backward": _TRAIN,
    "training": _TRAIN,
    "optimizer": _TRAIN,
    "learner-parity": _TRAIN,
    "engine-parity": _BOTH,
    "stale-weights": _BOTH,
    "random": _BOTH,
    "sampler": _BOTH,
    "batch-invariance": _BOTH,
    "collectives": _TRAIN,
    "determinism": _TRAIN,
    "addresses": _BOTH,
    "memory": _BOTH,
    "speed": _TRAIN,
    "soak": _BOTH,
}


def judge(findings: Iterable[Finding]) -> tuple[Trust, list[str]]:
    """The trust, and what stands in the way of more: a line for each check that failed, and for
    those that did not run for one reason.
    """
    found = {name: Finding(name, Result.UNKNOWN, "") for name in NEEDED}
    found |= {finding.check: finding for finding in findings}
    failed = [finding for finding in found.values() if finding.result is Result.FAIL]
    unknown: dict[str, list[str]] = {}
    for finding in found.values():
        if finding.result is Result.UNKNOWN:
            unknown.setdefault(finding.summary, []).append(finding.check)
    results = {name: finding.result for name, finding in found.items()}
    return _trust(results), [
        *(f"{finding.check} failed: {finding.summary}" for finding in failed),
        *(f"{', '.join(names)} did not run{why and f': {why}'}" for why, names in unknown.items()),
    ]


def _trust(results: Mapping[str, Result]) -> Trust:
    granted = {role: _granted(role, results) for role in Role}
    if granted[Role.GENERATE] is Result.FAIL:
        return Trust.REJECT
    if granted[Role.TRAIN] is Result.PASS:
        return Trust.TRAIN
    if granted[Role.GENERATE] is Result.PASS:
        return Trust.GENERATE
    return Trust.UNKNOWN


def _granted(role: Role, results: Mapping[str, Result]) -> Result:
    needed = {results[name] for name, roles in NEEDED.items() if role in roles}
    for result in (Result.FAIL, Result.UNKNOWN):
        if result in needed:
            return result
    return Result.PASS
