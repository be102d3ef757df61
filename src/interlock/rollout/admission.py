"""Whether a worker's chip may generate: plain functions over what it said, no torch.

Opened    ──admission──> what it is trusted with, and why it may not generate
Qualified ──verdict────> why it stays in quarantine, or None

A worker may be older, or lie: what it says is checked here, on the learner's side. One that tells
a whole lie, with a certificate to match, is beyond that: workers are the user's own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from interlock import config
from interlock.chips import certificates
from interlock.records import Result, Role, Stack, Trust
from interlock.rollout.protocol import Open, Opened, Qualified

UNQUALIFIED = "unqualified"


class Admission(NamedTuple):
    trust: str  # of the certificate; "cpu", which needs none; or "unqualified"
    why: str | None = None  # it may not generate


def admission(asked: Open, said: Opened) -> Admission:
    settings, stack = asked.settings, said.stack
    kind = certificates.kind_of(settings.device)
    if stack is None:
        if not certificates.needed(kind):
            return Admission(kind)
        why: str | None = "it does not say what it runs on; give it this version of interlock"
    elif stack.kind != kind:
        why = f"it runs on {stack.kind!r} instead of {kind!r}"
    else:
        why = certificates.refusal(
            said.certificate,
            stack,
            Role.GENERATE,
            device=settings.device,
            python=settings.python,
        )
    if why is not None:
        return Admission(UNQUALIFIED, why)
    if not certificates.needed(kind):
        return Admission(kind)
    assert said.certificate is not None
    return Admission(said.certificate.trust)


def verdict(said: Qualified, stack: Stack | None) -> str | None:
    """Why a worker whose stack was `stack` may not come back; None when it may.

    Here the CPU is no exception: there was a reason to ask.
    """
    found = said.certificate
    failed = [finding for finding in found.findings if finding.result is Result.FAIL]
    why = certificates.distrust(found, stack or found.stack, Role.GENERATE)
    if why is None or found.trust is not Trust.REJECT or not failed:
        return why
    return f"failed {', '.join(finding.check for finding in failed)}: {failed[0].summary}"


def hint(settings: config.Generator, checks: Sequence[str]) -> str:
    """The checks that would tell more of what was seen of a worker."""
    return certificates.remedy(settings.device, settings.python, checks)
