"""`--find`: every sensible placement of a stock of chips, and those that no other one beats.

    [Stock] ──placements──> Roles … ──hours and money of each──> Pareto front of both

A placement gives learners some chips of one kind, and generators some of each; all of one kind in
turns is one, too. Counts are powers of two, what they leave of the stock, and finer steps, as fine
as a limit on the number of placements lets them be.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from interlock.errors import ConfigError
from interlock.plan.chips import Stock
from interlock.plan.constants import Rates, values
from interlock.plan.estimate import stage_hours, stage_seconds
from interlock.plan.plan import PlanInputs, settled_for, works_of
from interlock.plan.prices import common_currency, price_of
from interlock.plan.roles import NONE_LEARN, Roles
from interlock.plan.workload import StageWork

MOST = 10_000


class Option(NamedTuple):
    """One placement. `money` is nan where a price is unknown."""

    roles: Roles
    hours: float
    chip_hours: float
    money: float
    synchronous: bool
    staleness: float


class Found(NamedTuple):
    front: list[Option]  # from the fastest to the cheapest
    tried: int  # placements
    fitting: int  # of these, in step and running ahead
    currency: str = ""  # of all money; "": prices are in several, or one is not known
    measured: bool = False  # by rates or factors of this very machine


def find_placements(given: PlanInputs, stocks: Sequence[Stock], most: int = MOST) -> Found:
    """The Pareto front of time and money (or chip-hours, where a price is unknown).

    Raises ConfigError when none of the placements fits.
    """
    if all(stock.duty == "generator" for stock in stocks):
        raise ConfigError(NONE_LEARN)
    rates = given.rates or values()
    options: list[Option] = []
    why = ""
    candidates = placements(stocks, most)
    prices = [price_of(stock.chip, given.prices) for stock in stocks]
    currency = common_currency([price for price in prices if price is not None])
    works: dict[bool, list[StageWork]] = {}
    for roles in candidates:
        if roles.turns not in works:
            works[roles.turns] = works_of(given, roles)
        found, reason = _tried(given, roles, works[roles.turns], rates, currency)
        options += found
        why = why or reason
    if not options:
        raise ConfigError(f"no placement of these chips fits: {why or 'none was tried'}")
    return Found(front(options), len(candidates), len(options), currency, given.measured)


def _tried(
    given: PlanInputs, roles: Roles, works: Sequence[StageWork], rates: Rates, currency: str
) -> tuple[list[Option], str]:
    """In step, and running ahead as the recipe's staleness lets it; or why it does not fit."""
    hours = {True: 0.0, False: 0.0}
    staleness = 0.0
    for work in works:
        settled = settled_for(given, roles, work, rates)
        if settled.unfit:
            return [], settled.unfit[0]
        parts = stage_seconds(work, settled, rates, given.link, given.factors)
        ahead = not roles.turns and work.samples and work.staleness > 0
        hours[True] += stage_hours(work, parts, True)
        hours[False] += stage_hours(work, parts, not ahead)
        staleness = max(staleness, parts.staleness if ahead else 0.0)
    modes = [True, False] if staleness else [True]
    return [_option(given, roles, hours[mode], mode, staleness, currency) for mode in modes], ""


def _option(
    given: PlanInputs,
    roles: Roles,
    hours: float,
    synchronous: bool,
    staleness: float,
    currency: str,
) -> Option:
    kinds = [roles.learner, *(each for each in roles.generators if each is not roles.learner)]
    money = 0.0
    for each in kinds:
        price = price_of(each.chip, given.prices)
        counts = price is not None and price.currency == currency
        money += hours * each.count * (price.middle if price and counts else math.nan)
    chips = sum(each.count for each in kinds)
    return Option(
        roles, hours, hours * chips, money, synchronous, 0.0 if synchronous else staleness
    )


def front(options: Sequence[Option]) -> list[Option]:
    """Those that no other one beats in time and money at once, the fastest first."""
    unpriced = any(each.money != each.money for each in options)

    def cost(each: Option) -> float:
        return each.chip_hours if unpriced else each.money

    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.hours, cost(each))):
        if not kept or cost(option) < cost(kept[-1]):
            kept.append(option)
    return kept


def placements(stocks: Sequence[Stock], most: int = MOST) -> list[Roles]:
    """Every way to share the chips out, in the finest steps of which there are no more than `most`.

    Raises ConfigError where even halves are more.
    """
    for fineness in (4, 3, 2, 1, 0):
        found = list(itertools.islice(_all(stocks, fineness), most + 1))
        if len(found) <= most:
            return found
    raise ConfigError(f"--chips: more than {most:,} placements; name fewer kinds of chips")


def _all(stocks: Sequence[Stock], fineness: int) -> Iterator[Roles]:
    alone = all(each.duty == "learner" for each in stocks)  # then they generate, too
    for place, stock in enumerate(stocks):
        if stock.duty == "generator":
            continue
        for count in _counts(stock.count, fineness):
            if stock.duty == "both" or alone:
                both = msgspec.structs.replace(stock, count=count, duty="both")
                yield Roles(both, (both,), True)
            learner = msgspec.structs.replace(stock, count=count, duty="learner")
            yield from _with_generators(learner, stocks, place, fineness)


def _with_generators(
    learner: Stock, stocks: Sequence[Stock], place: int, fineness: int
) -> Iterator[Roles]:
    choices = []
    for other, stock in enumerate(stocks):
        left = stock.count - (learner.count if other == place else 0)
        kept = stock.duty == "learner" or left <= 0
        choices.append([0] if kept else [*_counts(left, fineness), 0])
    for counts in itertools.product(*choices):
        makers = tuple(
            msgspec.structs.replace(stock, count=count, duty="generator")
            for stock, count in zip(stocks, counts, strict=True)
            if count
        )
        if makers:
            yield Roles(learner, makers, False)


# Eighths of the whole, from coarse to fine.
_EIGHTHS = ((4, 8), (2, 4, 8), (1, 2, 4, 6, 8))


def _counts(whole: int, fineness: int) -> list[int]:
    """Shares of the whole: some eighths of it; or finer, powers of two; or these, what they leave
    of the whole, and one and a half times each.
    """
    if fineness < len(_EIGHTHS):
        found = {whole * part // 8 for part in _EIGHTHS[fineness]} - {0}
        return sorted(found, reverse=True)
    found = {2**i for i in range(whole.bit_length()) if 2**i <= whole} | {whole}
    if fineness > len(_EIGHTHS):
        found |= {3 * each // 2 for each in found if each > 1 and 3 * each // 2 <= whole}
        found |= {whole - each for each in found if whole > each}
    return sorted(found, reverse=True)
