"""Limits against what is used: when one warns, when it stops, and when it cannot be kept."""

import datetime

import pytest

from interlock.config.schema import BudgetSettings
from interlock.errors import ConfigError
from interlock.recipes.budget import Budget
from interlock.records.cost import ChipPrice, ChipUse, RunCost, SessionCost

PRICE = ChipPrice(1.0, 2.0, "USD", datetime.date(2026, 11, 1), "offer")


def used(hours: float, tokens: float = 0.0, told_s: float = 0.0, **prices: ChipPrice) -> RunCost:
    """Four chips for so long, in a session before and one now."""
    whole = 4 * 3600 * hours
    part = ChipUse(0, "learner", "A", whole / 2, tokens=tokens / 2, joules=3.6e6, told_s=told_s)
    return RunCost([SessionCost(1.0, 1800 * hours, True, [part], dict(prices))] * 2)


@pytest.mark.parametrize(
    ("limit", "reached", "short"),
    [
        (BudgetSettings(hours=2.0), used(2.0), used(1.99)),
        (BudgetSettings(chip_hours=8.0), used(2.0), used(1.99)),
        (BudgetSettings(tokens=100), used(1.0, tokens=100), used(1.0, tokens=99)),
        (BudgetSettings(money=16.0), used(2.0, A=PRICE), used(1.99, A=PRICE)),
        (BudgetSettings(kwh=2.0), used(1.0, told_s=7200), used(1.0, told_s=0.0)),
    ],
)
def test_a_limit_is_reached_at_its_figure(
    limit: BudgetSettings, reached: RunCost, short: RunCost
) -> None:
    """Money at the high end of its price."""
    (name,) = limit.limits
    why = Budget(limit, lambda _: None).look(reached)
    assert why is not None and why.startswith(f"budget.{name} = {limit.limits[name]:g}: ")
    if name != "kwh":
        assert Budget(limit, lambda _: None).look(short) is None
    else:
        with pytest.raises(ConfigError, match=r"nothing tells of the energy of A \(docs"):
            Budget(limit, lambda _: None).look(short)


@pytest.mark.parametrize(
    ("hours", "shares", "known"),
    [
        (0.25, (1.0, 0.0), False),  # of the generators, which are elsewhere, nothing is told
        (0.25, (0.9, 0.1), True),  # they begin
        (2.0, (0.9, 0.4), False),  # only some of them are here
        (2.0, (0.9, 0.6), True),
        (0.01, (0.0, 0.0), True),  # 36 s: nobody can have told yet
    ],
)
def test_energy_of_chips_elsewhere_is_not_taken_for_none(
    hours: float, shares: tuple[float, float], known: bool
) -> None:
    """All are of one kind."""
    held = 3600 * hours
    uses = [
        ChipUse(0, role, "A", held, joules=1.0, told_s=share * held)
        for role, share in zip(("learner", "generator"), shares, strict=True)
    ]
    cost = RunCost([SessionCost(1.0, held, True, uses)])
    assert cost.silent() == ([] if known else ["A"])


def test_each_limit_warns_once() -> None:
    warned: list[str] = []
    budget = Budget(BudgetSettings(hours=10.0, chip_hours=100.0, warn_at=0.5), warned.append)
    for hours in (4.9, 5.0, 5.5, 9.9):
        assert budget.look(used(hours)) is None
    assert warned == ["50% of budget.hours = 10: 5 h are used"]
    assert budget.look(used(10.0)) == "budget.hours = 10: 10 h are used"


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        (used(1.0), "no price of A is known"),
        (
            used(1.0, A=ChipPrice(1.0, 1.0, "CNY", PRICE.date, "x")),
            "prices of its chips are in CNY",
        ),
    ],
)
def test_money_that_nobody_can_count_is_no_limit(cost: RunCost, told: str) -> None:
    with pytest.raises(ConfigError, match=f"budget.money = 5 USD cannot be kept: {told}; give"):
        Budget(BudgetSettings(money=5.0), lambda _: None).look(cost)
