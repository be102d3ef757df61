"""Every constant of the formulas: its value, the range it may have, where it comes from.

data/constants.toml ──> CONSTANTS: name -> Constant ──values()──> Rates, which formulas are given

`kind`: "measured" on a machine of ours, "vendor" as published by who made the thing, "fitted" on
the published runs of data/rl_runs.csv (`interlock plan --validate` fits them anew), "assumed".
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import msgspec

Origin = Literal["measured", "vendor", "fitted", "assumed"]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure that the formulas need and no chip's data sheet gives."""

    value: float
    spread: float  # relative: a factor of 1 + spread to either side is likely
    kind: Origin
    unit: str
    what: str
    source: str
    prior: float = 0.0  # of a fitted one: where it stays if no row says otherwise
    width: float = 0.0  # and how far it may go: standard deviation of its logarithm


class Rates(NamedTuple):
    """The constants as numbers; each is explained in data/constants.toml."""

    memory: float
    slope: float
    alike: float
    scoring: float
    routed: float
    products: float
    learning: float
    attention: float
    elements: float
    layer_s: float
    hop_s: float
    far_hop_s: float
    link: float
    step_s: float
    step_s_per_gb: float
    apart: float
    spread: float
    endless: float
    dispatch: float
    token_s: float
    row_s: float
    update_s: float


@cache
def constants() -> dict[str, Constant]:
    """All of the table, in its order."""
    text = files("interlock.plan").joinpath("data", "constants.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Constant])


def values() -> Rates:
    """The values that are used where nothing was measured."""
    table = constants()
    return Rates(**{name: table[name].value for name in Rates._fields})
