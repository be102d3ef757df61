"""How chips are called on the page: what is simulated is called so wherever it is named."""

from interlock.chips import vendors
from interlock.evidence.record import Cited, EvidenceSource, at, derive, pointer
from interlock.records.trust import Stack
from interlock.text import one_line

SIMULATED = "simulated device"
_MOST = 120


def is_simulated(device: str) -> bool:
    """Of a device as settings or a side of a parity name it: "sim:crash", "torch:sim"."""
    return any(vendors.simulated(vendors.kind_of(each)) for each in (device, _behind(device)))


def _behind(device: str) -> str:
    return device.partition(":")[2]


def called(device: str) -> str:
    """A device's name, and that it is simulated where it is."""
    name = one_line(device, _MOST)
    return f"{name} ({SIMULATED})" if is_simulated(device) else name


def told(device: str, kind: str, chip: str | None, serial: str | None) -> str:
    """A device with what is known of its chip."""
    if vendors.simulated(kind) or not chip:
        return called(device)
    return f"{called(device)} ({one_line(', '.join(filter(None, (chip, serial))), _MOST)})"


def device(source: EvidenceSource, field: str) -> Cited:
    """The device whose name stands in a field."""
    name = str(at(source.tree, field))
    return derive(source, name, field, called) if is_simulated(name) else _plain(source, field)


def _plain(source: EvidenceSource, field: str) -> Cited:
    value = at(source.tree, field)
    return Cited(value, called(str(value)), source.origin.number, field)


def chip_of(stack: Stack) -> str:
    """A stack's chip for a reader."""
    name = one_line(stack.chip, _MOST) or stack.kind
    if vendors.simulated(stack.kind):
        return f"{SIMULATED} ({name}, {one_line(stack.driver, _MOST)})"
    return f"{name}, {one_line(stack.serial, _MOST)}" if stack.serial else name


def chip(source: EvidenceSource, stack: Stack, *place: str) -> Cited:
    """The chip of a stack at `place`, as `chip_of`."""
    field = pointer(*place, "chip")
    return derive(source, stack.chip, field, lambda _: chip_of(stack))


def software_of(stack: Stack) -> str:
    """What a stack runs under."""
    parts = [stack.driver, stack.firmware, stack.runtime, f"torch {stack.torch}", stack.plugin]
    parts += [stack.libraries, stack.vllm and f"vLLM {stack.vllm}"]
    parts += [stack.interlock and f"Interlock {stack.interlock}"]
    return one_line(", ".join(filter(None, parts)), 400)
