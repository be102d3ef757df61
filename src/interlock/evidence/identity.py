"""Which chip a source is of, and whether a certificate is of the same.

A chip is known by its serial number. Without one, or where a source does not tell it, there is the
name of its device alone, and what follows from that says so.
"""

from enum import Enum, auto
from typing import NamedTuple

from interlock.chips import vendors
from interlock.evidence.written import WrittenSide
from interlock.records.metrics import StepMetrics, WorkerMetrics
from interlock.records.trust import Certificate


class ToldChip(NamedTuple):
    """A chip as a source tells of it. None: it does not tell; "": there is none."""

    device: str  # as it was asked for
    kind: str
    chip: str | None = None
    serial: str | None = None


class Sameness(Enum):
    """How a certificate is known to be of a chip."""

    BY_SERIAL = auto()
    BY_NAME = auto()  # of its device: the chip has no serial number
    BY_NAME_ALONE = auto()  # likewise: the source does not tell of one


def of_side(side: WrittenSide) -> ToldChip:
    """The chip of one side of a comparison."""
    device = side.label.partition(":")[2]
    if side.stack is None:
        return ToldChip(device, vendors.kind_of(device))
    return ToldChip(device, side.stack.kind, side.stack.chip, side.stack.serial)


def of_worker(worker: WorkerMetrics) -> ToldChip | None:
    """The chip of a worker of a run; None: it had not told of its device."""
    if not worker.device:
        return None
    return ToldChip(worker.device, vendors.kind_of(worker.device), worker.chip, worker.serial)


def worker_at(metrics: list[StepMetrics], name: str, time: float) -> WorkerMetrics | None:
    """What was logged of a worker with the step at that time, or last before it."""
    lines = [line for line in metrics if name in line.workers]
    later = (line for line in lines if line.time is not None and line.time >= time)
    found = next(later, lines[-1] if lines else None)
    return None if found is None else found.workers[name]


def sameness(told: ToldChip, certificate: Certificate) -> Sameness | None:
    """How `certificate` is of this chip; None: it is of another."""
    stack = certificate.stack
    if told.kind != stack.kind or told.chip not in (None, stack.chip):
        return None
    if told.serial:
        return Sameness.BY_SERIAL if told.serial == stack.serial else None
    if told.device != certificate.device or (told.serial == "" and stack.serial):
        return None
    return Sameness.BY_NAME_ALONE if told.serial is None else Sameness.BY_NAME


def same_chip(certificate: Certificate) -> tuple[str, str, str]:
    """What certificates of one chip have in common."""
    stack = certificate.stack
    return stack.kind, stack.chip, stack.serial or certificate.device
