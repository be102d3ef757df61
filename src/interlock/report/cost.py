"""The section on what a run used: chips, tokens, bytes, energy and money, and a point's price.

    cost.json ── RunCost ──> rows by stage and role, their sum, a point of accuracy, notes

What nobody knows, a price or the energy, is said to be unknown, and never taken for nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from interlock.records.cost import ChipPrice, ChipUse, Money, RunCost
from interlock.report.fleet import megabytes
from interlock.report.summary import BeforeAfter, Metrics, total
from interlock.rundir import RunView

_UNKNOWN = "unknown"


class CostRow(NamedTuple):
    """One line of the table, ready to be shown; "" where there is nothing to say."""

    stage: str
    role: str
    chip: str
    chip_hours: str
    busy: str  # share of the time that it was held
    tokens: str
    megabytes: str  # of weights
    memory: str  # GB that one process had at the most
    kwh: str
    money: str


class CostTable(NamedTuple):
    rows: list[CostRow]
    whole: CostRow
    point: str  # what one percentage point of accuracy took; "" where none was measured
    notes: list[str]


def cost_table(run: RunView, metrics: Metrics, pair: BeforeAfter | None) -> CostTable | None:
    """None for a run without a meter."""
    cost = run.cost()
    if not cost.sessions:
        return None
    names = stage_names(run.config)
    rows = [_row(cost, use, names) for use in cost.rows()]
    whole = CostRow(
        "whole run",
        "",
        "",
        figure(cost.chip_hours),
        "",
        f"{cost.tokens:,.0f}",
        megabytes(sum(use.bytes for use in cost.rows())),
        "",
        _energy(cost.kwh, cost.energy_told),
        told(cost.money(), bool(cost.unpriced())),
    )
    return CostTable(rows, whole, point_told(cost, pair), list(_notes(run, cost, metrics)))


def closing_line(cost: RunCost, pair: BeforeAfter | None) -> str:
    """For the end of a run in a terminal; "" for one without a meter."""
    if not cost.sessions:
        return ""
    parts = [
        f"{figure(cost.hours)} h",
        f"{figure(cost.chip_hours)} chip-hours",
        f"{cost.tokens:,.0f} tokens",
    ]
    if cost.energy_told:
        parts.append(f"{_energy(cost.kwh, cost.energy_told)} kWh")
    money = told(cost.money(), bool(cost.unpriced()))
    parts.append("no price known" if money == _UNKNOWN else money)
    point = point_told(cost, pair)
    return "cost: " + " · ".join(parts) + (f"; {point}" if point else "")


def figure(value: float) -> str:
    """Three digits: 0.0123, 4.56, 789, 12,300; 1e+18."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"


def told(money: Mapping[str, Money], unknown: bool) -> str:
    """ "1.2 USD (0.9 to 1.5)"; several currencies stand beside each other."""
    found = []
    for currency, one in money.items():
        spread = "" if one.low == one.high else f" ({figure(one.low)} to {figure(one.high)})"
        found.append(f"{figure(one.middle)} {currency}{spread}")
    return " + ".join([*found, _UNKNOWN] if unknown or not found else found)


def point_told(cost: RunCost, pair: BeforeAfter | None) -> str:
    """What a point of held-out accuracy took, of all that the run used."""
    if pair is None or pair.after is None:
        return ""
    points = 100 * (pair.after.accuracy - pair.before.accuracy)
    if points <= 0:
        return "no point of accuracy was gained"
    money = {name: Money(one.low / points, one.high / points) for name, one in cost.money().items()}
    price = f", {told(money, bool(cost.unpriced()))}" if money else ""
    return f"a point of accuracy took {figure(cost.chip_hours / points)} chip-hours{price}"


def stage_names(config: Mapping[str, Any]) -> list[str]:
    stages = config.get("stage") or []
    kinds = [each if isinstance(each, dict) else {} for each in stages]
    return [f"{place}: {each.get('name') or each.get('kind')}" for place, each in enumerate(kinds)]


def _row(cost: RunCost, use: ChipUse, names: Sequence[str]) -> CostRow:
    stage = "opening and saving"
    if use.stage is not None:
        stage = names[use.stage] if use.stage < len(names) else str(use.stage)
    held = use.process_s or use.chip_s
    energy = use.told_s / use.chip_s if use.chip_s else 0.0
    money = cost.money_of_row(use)
    return CostRow(
        stage,
        use.role,
        use.chip or _UNKNOWN,
        figure(use.chip_s / 3600),
        f"{min(1.0, use.busy_s / held):.0%}" if held else "",
        f"{use.tokens:,.0f}" if use.tokens else "",
        megabytes(use.bytes) if use.bytes else "",
        _memory(use),
        _energy(use.joules / 3.6e6, energy),
        told(money, use.chip in cost.unpriced()),
    )


def _memory(use: ChipUse) -> str:
    """Of its chip; and of its machine, where that is another memory."""
    own = figure(use.chip_bytes / 1e9) if use.chip_bytes else ""
    if not use.resident_bytes or use.resident_bytes == use.chip_bytes:
        return own
    return f"{own or _UNKNOWN}, host {figure(use.resident_bytes / 1e9)}"


def _energy(kwh: float, share: float) -> str:
    return figure(kwh) if share > 0 else _UNKNOWN


def _notes(run: RunView, cost: RunCost, metrics: Metrics) -> Iterator[str]:
    yield from dict.fromkeys(_priced(cost))
    for chip, hours in cost.unpriced().items():
        yield (
            f"Nobody has said what an hour of {chip or 'an unknown chip'} costs: {figure(hours)} "
            "chip-hours are in no sum; give prices = FILE."
        )
    if cost.energy_told == 0:
        yield "No driver of these chips told of their energy."
    elif not cost.energy_whole:
        yield f"Energy was told for {cost.energy_told:.0%} of the chips' time."
    for session in cost.cut_off(runs=run.status == "running"):
        last = datetime.fromtimestamp(session.began + session.seconds, UTC)
        yield f"A session was killed: counted to its last entry, {last:%Y-%m-%d %H:%M:%S} UTC."
    unmetered = len(run.manifest.sessions) - len(cost.sessions)
    if unmetered > 0:
        yield f"{unmetered} sessions have no entry: run without a meter, or ended at once."
    judged = total(metrics, lambda m: m.rollout.judge.get("money"))
    if judged:
        yield f"Judges took {figure(judged)} more, as their settings price them; in no sum above."


def _priced(cost: RunCost) -> Iterator[str]:
    for session in cost.sessions:
        today = datetime.fromtimestamp(session.began, UTC).date()
        for chip, price in session.prices.items():
            old = f", {(today - price.date).days} days old when it was used: look it up"
            yield f"{chip}: {_hourly(price)}{old if price.stale(today) else ''}."


def _hourly(price: ChipPrice) -> str:
    amount = figure(price.low) if price.low == price.high else f"{price.low:g} to {price.high:g}"
    return f"{amount} {price.currency} an hour ({price.source}, {price.date})"
