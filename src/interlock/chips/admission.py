"""Whether a device may take a role in a run: one rule, for our own and for workers'.

    stack, certificate, role, world size ── admit ──> Admission: what it is trusted with, why not

Who looks at which device is for the callers: recipes/gate.py at those of this process,
workers/admission.py at those that workers tell of. Files and seals are certificates.py's. No torch.
"""

from typing import NamedTuple

from msgspec.structs import fields

from interlock.chips import certificates
from interlock.chips.verdict import judge
from interlock.errors import RunError
from interlock.records.trust import Certificate, Role, Stack, Trust

UNQUALIFIED = "unqualified"  # the trust of what may not take its role, and is used all the same
MOST_RANKS = 8  # that collectives are proven with; links between machines are not looked at
_COVERS = {Trust.TRAIN: {Role.TRAIN, Role.GENERATE}, Trust.GENERATE: {Role.GENERATE}}


class Admission(NamedTuple):
    """Of one device to one role."""

    trust: str  # of its certificate; its kind, "cpu", where it needs none; or UNQUALIFIED
    why: str | None = None  # it may not take the role, and the remedy; None: it may


def needs_certificate(kind: str) -> bool:
    """Whether devices of this kind must be certified. The CPU is the reference."""
    return kind != "cpu"


def admit(
    stack: Stack,
    certificate: Certificate | None,
    role: Role,
    world_size: int = 1,
    *,
    device: str = "",
    python: str | None = None,
) -> Admission:
    """Decide whether a device may take a role.

    Args:
        stack: what the device is now.
        certificate: what is filed for it, if anything.
        role: what it is to do.
        world_size: how many processes of its machine compute together.
        device: its name in the settings, for the remedy; "": its kind.
        python: the interpreter of a worker's own environment, for the remedy.

    Example:
        >>> admit(Stack("npu"), None, Role.TRAIN, device="npu:0").why
        "there is no certificate for npu (torch ); run: interlock qualify --device npu:0"
    """
    if not needs_certificate(stack.kind):
        return Admission(stack.kind)
    why = distrust(certificate, stack, role, world_size)
    if why is not None:
        remedy = certificates.remedy(device or stack.kind, python)
        return Admission(UNQUALIFIED, f"{why}; {remedy}")
    assert certificate is not None
    return Admission(certificate.trust)


def distrust(
    certificate: Certificate | None, stack: Stack, role: Role, world_size: int = 1
) -> str | None:
    """Why `certificate` does not prove that `stack` may take `role`; None when it does.

    As of `admit`, but whatever the kind: of the CPU too.
    """
    if certificate is None:
        return f"there is no certificate for {certificates.described(stack)}"
    try:
        certificates.verify(certificate)
    except RunError as error:
        return str(error)
    for name in (field.name for field in fields(Stack)):
        was, now = getattr(certificate.stack, name), getattr(stack, name)
        if was != now:
            return f"its certificate is for another stack: {name} {was!r}, and here it is {now!r}"
    trust, reasons = judge(certificate.findings)
    first = f" ({reasons[0]})" if reasons else ""
    if trust is not certificate.trust:
        return f"its certificate says {certificate.trust}, and its findings {trust}{first}"
    if role not in _COVERS.get(trust, set()):
        return f"its certificate says {trust}, which is not enough to {role}{first}"
    proven = certificate.world_size
    if proven < min(world_size, MOST_RANKS):
        return f"its collectives are proven with {proven} processes, but {world_size} are asked"
    return None
