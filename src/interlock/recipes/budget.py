"""What a run may use, held against what it has used: `[budget]` of a recipe.

RunCost ──look, after every step──> 80 % of a limit: an event ──> at the limit: BudgetSpent
"""

from collections.abc import Callable, Iterator

from interlock.config.reading import parse_recipe
from interlock.config.schema import BudgetSettings, Recipe
from interlock.errors import ConfigError
from interlock.records.cost import RunCost
from interlock.rundir import RunView
from interlock.text import one_line

Warn = Callable[[str], None]

_UNITS = {"hours": "h", "chip_hours": "chip-hours", "tokens": "tokens", "kwh": "kWh"}


class Budget:
    """Warns once of each limit in a session."""

    def __init__(self, settings: BudgetSettings, warn: Warn) -> None:
        self._settings, self._warn = settings, warn
        self._warned: set[str] = set()

    def look(self, cost: RunCost) -> str | None:
        """The first limit that is reached, in words; None: the run may go on.

        Raises ConfigError where nobody knows what a limit is of.
        """
        for name, limit in self._settings.limits.items():
            used = spent(cost, name, self._settings)
            share = used / limit
            if share >= 1:
                return told(name, used, self._settings)
            if share >= self._settings.warn_at and name not in self._warned:
                self._warned.add(name)
                self._warn(f"{share:.0%} of {told(name, used, self._settings)}")
        return None


def spent(cost: RunCost, name: str, settings: BudgetSettings) -> float:
    """How much of a limit is used. Raises ConfigError where that is not known."""
    match name:
        case "hours":
            return cost.hours
        case "chip_hours":
            return cost.chip_hours
        case "tokens":
            return cost.tokens
        case "kwh":
            for chip in cost.silent():
                raise ConfigError(
                    f"budget.kwh = {settings.kwh:g} cannot be kept: nothing tells of the energy of "
                    f"{_chip(chip)} (docs/cost.md); set budget.chip_hours"
                )
            return cost.kwh
        case _:
            for why in unpriced(cost, settings.currency):
                raise ConfigError(
                    f"budget.money = {settings.money:g} {settings.currency} cannot be kept: {why}; "
                    "give prices = FILE (docs/cost.md), or set budget.chip_hours"
                )
            money = cost.money().get(settings.currency)
            return money.high if money else 0.0


def unpriced(cost: RunCost, currency: str) -> Iterator[str]:
    """Chips that have no price in it."""
    for chip in cost.unpriced():
        yield f"no price of {_chip(chip)} is known"
    for other in cost.money():
        if other != currency:
            yield f"prices of its chips are in {other}"


def _chip(name: str) -> str:
    return one_line(name, 80) or "an unknown chip"


def told(name: str, used: float, settings: BudgetSettings) -> str:
    """ "budget.hours = 2: 1.7 h are used" """
    unit = _UNITS.get(name, settings.currency)
    return f"budget.{name} = {settings.limits[name]:g}: {used:.4g} {unit} are used"


def check_resumed(recipe: Recipe, view: RunView) -> None:
    """Raise ConfigError when a run that has more to do has no budget left to do it."""
    newest, lengths = view.latest_checkpoint(), [stage.length for stage in recipe.stage]
    reached = (newest.stage, newest.step) if newest else (0, 0)
    if reached >= (len(lengths) - 1, lengths[-1]):
        return
    if view.status == "finished":  # before its steps were all done, perhaps: nothing was left
        known = parse_recipe(view.config, source=f"{view.path}/config.json")
        if [stage.length for stage in known.stage] == lengths:
            return
    if (why := Budget(recipe.budget, lambda _: None).look(view.cost())) is not None:
        raise ConfigError(f"{why} by {view.path}; raise it to go on, or remove it")
