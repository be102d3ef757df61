"""Whether a worker's chip may generate: plain functions over what it said, no torch.

Opened    ──admission──> what it is trusted with, and why it may not generate
Qualified ──verdict────> why it stays in quarantine, or None

A worker may be older, or lie: what it says is checked here, on the learner's side. One that tells
a whole lie, with a certificate to match, is beyond that: workers are the user's own.
"""

import math
from collections.abc import Sequence

from interlock.chips import certificates, vendors
from interlock.chips.admission import UNQUALIFIED, Admission, admit, distrust, needs_certificate
from interlock.config.schema import GeneratorSettings
from interlock.records.trust import Result, Role, Stack, Trust
from interlock.workers.protocol import Open, Opened, Qualified

_CLOCKS_S = 3600.0  # by which the clocks of two machines may differ
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")  # of vLLM, in devices


def admission(asked: Open, said: Opened) -> Admission:
    """Whether a worker may generate on the device that it says it has."""
    settings, stack = asked.settings, said.stack
    kind = vendors.kind_of(settings.device)
    if stack is None:
        if not needs_certificate(kind):
            return Admission(kind)
        why = "it does not say what it runs on; give it this version of interlock"
        return Admission(UNQUALIFIED, why)
    if stack.kind != kind:
        return Admission(UNQUALIFIED, f"it runs on {stack.kind!r} instead of {kind!r}")
    return admit(
        stack,
        said.certificate,
        Role.GENERATE,
        _world_size(settings),
        device=settings.device,
        python=settings.python,
    )


def verdict(
    said: Qualified, settings: GeneratorSettings, stack: Stack | None, since: float
) -> str | None:
    """Why a worker may not come back; None when it may.

    `stack`: what it said it runs on, if it came that far; `since`: when it was asked, in seconds
    since 1970. Here the CPU is no exception: there was a reason to ask.
    """
    found, kind = said.certificate, vendors.kind_of(settings.device)
    failed = [finding for finding in found.findings if finding.result is Result.FAIL]
    if (found.stack.kind, found.device) != (kind, settings.device):
        return (
            f"the certificate is of {found.device!r}, a device of kind {found.stack.kind!r}, "
            f"instead of {settings.device!r}"
        )
    if not found.issued >= since - _CLOCKS_S:  # nor is it when that is no number
        return "the certificate is older than the quarantine"
    # Collectives are not tried here: of those, the certificate that it shows when it is back tells.
    why = distrust(found, stack or found.stack, Role.GENERATE)
    if why is None or found.trust is not Trust.REJECT or not failed:
        return why
    return f"failed {', '.join(finding.check for finding in failed)}: {failed[0].summary}"


def hint(settings: GeneratorSettings, checks: Sequence[str]) -> str:
    """The checks that would tell more of what was seen of a worker."""
    return certificates.remedy(settings.device, settings.python, checks)


def _world_size(settings: GeneratorSettings) -> int:
    """Over how many devices the engine spreads: their collectives are part of its numbers."""
    sizes = [settings.options.get(name, 1) for name in _SIZES]
    return math.prod(size for size in sizes if isinstance(size, int))
