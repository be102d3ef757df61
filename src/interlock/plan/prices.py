"""What an hour of a chip costs: the user's dated file first, then the shipped one.

[[price]]                        A price has a date and a source; one without is refused.
chip = "H800"                    as `--chips` names it, or in the words of its driver
per_hour = 2.0                   or [low, high]
currency = "USD"
date = 2026-11-01
source = "contract 4711"

No currency is changed into another: nobody has told at what rate.
"""

import datetime
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from interlock.errors import ConfigError
from interlock.plan.chips import ChipSpec, called_by_driver, find, plain
from interlock.records.cost import ChipPrice, Currency
from interlock.regular import read_regular
from interlock.text import error_line, one_line

_MOST_BYTES = 1 << 20
_CPU = "cpu"  # the name of a price for whatever CPU there is

Prices = Mapping[str, ChipPrice]  # by the catalogue's name; by `plain` of one that it does not have
_Amount = Annotated[float, Meta(ge=0, lt=1e6)]


class _PriceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chip: Annotated[str, Meta(min_length=1)]
    per_hour: _Amount | Annotated[list[_Amount], Meta(min_length=2, max_length=2)]
    currency: Currency
    date: datetime.date
    source: Annotated[str, Meta(min_length=1)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    price: list[_PriceEntry]


def read_prices(path: Path, named: str = "--prices") -> Prices:
    """A file of prices; `named` is what asked for it. Raises ConfigError."""
    try:
        tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # it is that elsewhere
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        return _prices(text, f"{path.name}, ", tomorrow)
    except (OSError, ValueError, RecursionError) as error:
        shown = f"{named} {one_line(str(path), 200)}"
        raise ConfigError(
            f"{shown}: {error_line(error, 200)}; give [[price]] tables with chip, per_hour, "
            "currency, date and source"
        ) from None


@cache
def shipped_prices() -> Prices:
    """Read once."""
    text = files("interlock.plan").joinpath("data", "prices.toml").read_text(encoding="utf-8")
    return _prices(text, "")


def _prices(text: str, where: str, last: datetime.date = datetime.date.max) -> Prices:
    """`last`: a price that nobody can have been told yet would never be said to be old."""
    found: dict[str, ChipPrice] = {}
    for entry in msgspec.convert(tomllib.loads(text), _File).price:
        given = entry.per_hour
        low, high = given if isinstance(given, list) else (given, given)
        shown, key = one_line(repr(entry.chip), 40), _key(entry.chip)
        if key in found:
            raise ValueError(f"{shown} has a price already, by this or another of its names")
        if low > high:
            raise ValueError(f"per_hour of {shown} is [{low}, {high}], high to low")
        if entry.date > last:
            raise ValueError(
                f"date of {shown} is {entry.date}, which is to come; it is the day on which the "
                "price was asked or agreed"
            )
        source = f"{where}{entry.source}"
        found[key] = ChipPrice(low, high, entry.currency, entry.date, source)
    return found


def _key(name: str) -> str:
    try:
        return find(name).name
    except ConfigError:  # a driver's name, perhaps of a chip that the catalogue does not have
        return plain(name)


def price_of(chip: ChipSpec, given: Prices) -> ChipPrice | None:
    """By the catalogue's name, else by a driver's; None: nobody knows."""
    named = given.get(chip.name) or next(_of_drivers(chip, given), None)
    return named or shipped_prices().get(chip.name)


def _of_drivers(chip: ChipSpec, given: Prices) -> Iterator[ChipPrice]:
    for name, price in given.items():
        known = called_by_driver(name)
        if known is not None and known.name == chip.name:
            yield price


def of_no_chip(given: Prices) -> list[str]:
    """Names in it that mean no chip of the catalogue: a slip, or what only a driver knows."""
    return [name for name in given if called_by_driver(name) is None]


def price_of_device(chip: str, kind: str, given: Prices) -> ChipPrice | None:
    """By the name that its driver gives, of a device of this kind; None: nobody knows."""
    known = called_by_driver(chip)
    names = [plain(chip), known.name if known else "", find(_CPU).name if kind == _CPU else ""]
    for prices in (given, shipped_prices()):
        for name in filter(None, names):
            if (price := prices.get(name)) is not None:
                return price
    return None


def common_currency(prices: Sequence[ChipPrice | None]) -> str:
    """Of all of them; "" where one is not known, or they are in several."""
    currencies = {price.currency if price is not None else "" for price in prices}
    return currencies.pop() if len(currencies) == 1 else ""
