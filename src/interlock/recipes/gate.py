"""Looks at this process's own devices: may they take the roles that a recipe gives them?

    learner.device ────────── train ─────┐
    generator.device (inline) generate ──┴─ chips/admission.py ──> Use ──check──> ConfigError

Workers of a fleet show their own certificates, and are judged by workers/admission.py. With
`unqualified = true` nothing is refused, and every use is kept as an event of the run.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch

from interlock.chips import certificates, device
from interlock.chips.admission import UNQUALIFIED, admit, needs_certificate
from interlock.errors import ConfigError, RunError
from interlock.learner.distributed.ranks import Ranks
from interlock.recipes.held_chips import own
from interlock.records.cost import HeldChip
from interlock.records.trust import Role, Sizes


class _Own(msgspec.Struct):
    """What one of the learner's processes tells the others."""

    why: str
    chip: HeldChip


class Use(NamedTuple):
    """A device in a role."""

    device: str  # as the recipe names it
    role: Role
    trust: str  # of its certificate; "cpu", which needs none; or "unqualified"
    why: str  # it may not; "": it may
    tried: Sizes | None = None  # what its certificate was made at; None: it needs none
    chips: tuple[HeldChip, ...] = ()  # one for each process


def learner(name: str, ranks: Ranks) -> Use:
    """Every process of the learner looks at its own; the first that may not train decides."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))  # torchrun's
    use = _use(name, ranks.device or device.claim(name), Role.TRAIN, min(ranks.size, here))
    with ranks.collective_errors():
        every = ranks.all_gather(_Own(use.why, *use.chips))
    use = use._replace(chips=tuple(each.chip for each in every))
    refused = [each.why for each in every if each.why]
    return use._replace(trust=UNQUALIFIED, why=refused[0]) if refused else use


def inline(name: str) -> Use:
    """The generator that runs in the learner's process."""
    return _use(name, device.claim(name), Role.GENERATE)


def check(uses: Sequence[Use], unqualified: bool) -> None:
    """Raises ConfigError on the first that may not be, unless all may be used `unqualified`."""
    for use in uses:
        if use.why and not unqualified:
            raise ConfigError(f"{use.device} may not {use.role}: {use.why}")


def _use(name: str, place: torch.device, role: Role, world_size: int = 1) -> Use:
    stack = device.stack(place)
    chips = (own(place, stack),)
    try:
        certificate = certificates.find(stack) if needs_certificate(stack.kind) else None
    except RunError as error:
        return Use(name, role, UNQUALIFIED, str(error), chips=chips)
    found = admit(stack, certificate, role, world_size, device=name)
    tried = certificate.tried if certificate is not None else None
    return Use(name, role, found.trust, found.why or "", tried, chips)
