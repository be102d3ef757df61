"""What an hour of a chip costs: the user's dated file first, then the catalogue's.

[[price]]                        A price has a date and a source; one without is refused.
chip = "H800"
usd_per_hour = 2.0
date = 2026-11-01
source = "contract 4711"
"""

import datetime
import tomllib
from pathlib import Path
from typing import NamedTuple

import msgspec

from interlock.errors import ConfigError
from interlock.plan.chips import ChipSpec, find
from interlock.regular import read_regular
from interlock.text import error_line

_MOST_BYTES = 1 << 20


class Price(NamedTuple):
    """Dollars per chip and hour: low, high, and where they are from."""

    low: float
    high: float
    source: str
    date: str = ""  # "": as its source has it

    @property
    def middle(self) -> float:
        return (self.low * self.high) ** 0.5


class _PriceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chip: str
    usd_per_hour: float
    date: datetime.date
    source: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    price: list[_PriceEntry]


def read_prices(path: Path) -> dict[str, Price]:
    """A file of prices, by the catalogue's name of the chip. Raises ConfigError."""
    try:
        tree = tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8-sig"))
        entries = msgspec.convert(tree, _File).price
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"--prices {path}: {error_line(error)}; give [[price]] tables with chip, usd_per_hour, "
            "date and source"
        ) from None
    found = {}
    for entry in entries:
        if not 0 <= entry.usd_per_hour < 1e6:
            raise ConfigError(f"--prices {path}: {entry.chip} at {entry.usd_per_hour} $ an hour")
        source = f"{path.name}, {entry.date}: {entry.source}"
        cost, date = entry.usd_per_hour, entry.date.isoformat()
        found[find(entry.chip).name] = Price(cost, cost, source, date)
    return found


def price_of(chip: ChipSpec, given: dict[str, Price]) -> Price | None:
    """None: nobody knows."""
    if chip.name in given:
        return given[chip.name]
    if chip.dollars is None:
        return None
    return Price(*chip.dollars, chip.price_source or "data/chips.csv")
