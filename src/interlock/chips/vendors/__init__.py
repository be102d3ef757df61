"""All that Interlock knows of one vendor's devices and not of another's: a row for each, no torch.

    "npu:0" ── kind_of ──> "npu" ── of ──> Vendor (vendor.py), names that others look up in torch

    table.py      the rows: environment, known traps, files, tools
    codes.py      what the vendors' libraries say when they fail
    installed.py  versions of what lies below torch

A kind is what torch calls a device: "cuda" is Nvidia's and AMD's, "npu" Huawei's, "xpu" Intel's,
"hpu" its Gaudi's, "mps" Apple's, "mlu" Cambricon's, "musa" Moore Threads'. Two more are ours:
"cpu", the reference, and "sim", the simulated one, which torch takes for an "npu". Where two
vendors share a kind, the torch that is installed is built for one of them. A kind without a row is
taken to have nothing special, so a new vendor's devices work before anybody writes one.
"""

from interlock.chips.vendors import codes
from interlock.chips.vendors.codes import FALLBACK, REFUSAL
from interlock.chips.vendors.installed import Software, built, minor, software, wanted_torch
from interlock.chips.vendors.table import OF_PLUGINS, ROWS
from interlock.chips.vendors.vendor import Code, Origin, Setting, Trap, Vendor

__all__ = [
    "CODES",
    "FALLBACK",
    "KINDS",
    "REFUSAL",
    "SETTINGS",
    "VENDORS",
    "Code",
    "Origin",
    "Setting",
    "Software",
    "Trap",
    "Vendor",
    "built",
    "changes_numbers",
    "kind_of",
    "minor",
    "named",
    "of",
    "software",
    "wanted_torch",
]

VENDORS = {vendor.name: vendor for vendor in ROWS}
KINDS = list(dict.fromkeys(vendor.kind for vendor in ROWS))
SETTINGS = OF_PLUGINS  # of every vendor whose devices come by a plugin
# Beginnings of environment variables of torch and of what vendors share.
_OF_ALL = ("DISABLE_ADDMM", "OMP_NUM", "PYTORCH_", "TORCH", "XLA_")
# The first that fits counts: what explains the others stands first.
CODES = sorted(
    [code for vendor in ROWS for code in vendor.codes] + [*codes.SHARED],
    key=lambda code: list(Origin).index(code.origin),
)


def of(kind: str) -> Vendor:
    """The row of a kind; one of nothing special where there is none."""
    rows = named(kind)
    if len(rows) > 1:
        libraries = built()
        rows = [row for row in rows if row.build in libraries] or rows
    return rows[0]


def simulated(kind: str) -> bool:
    """Whether a kind is computed by the CPU without being it: its speed says nothing."""
    return of(kind).host and kind != "cpu"


def named(kind: str) -> list[Vendor]:
    """The rows of all vendors whose devices may be of this kind."""
    return [row for row in ROWS if row.kind == kind] or [Vendor(name=kind, kind=kind)]


def kind_of(device: str) -> str:
    """The kind of a device as settings name it: "npu" of "npu:0", "sim" of "sim:crash"."""
    return device.partition(":")[0]


def changes_numbers(variable: str) -> bool:
    """Whether an environment variable may change what some device, or torch, computes."""
    prefixes = [prefix for vendor in ROWS for prefix in vendor.variables]
    return variable.startswith((*_OF_ALL, *prefixes))
