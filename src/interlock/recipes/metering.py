"""The meter and the budget of a recipe's run, set up: prices, chips, and what was used before."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from interlock.chips import device, vendors
from interlock.chips.memory import MemoryWatch
from interlock.config.schema import Recipe
from interlock.errors import ConfigError
from interlock.plan.prices import Prices, price_of_device, read_prices
from interlock.recipes.budget import Budget, check_resumed
from interlock.recipes.gate import Use
from interlock.recipes.held_chips import of_workers
from interlock.recipes.meter import CostMeter
from interlock.recipes.sinks import Sink
from interlock.records.coding import from_json
from interlock.records.cost import ChipPrice, HeldChip, RunCost
from interlock.records.planned import planned_run
from interlock.records.trust import Role
from interlock.regular import read_regular
from interlock.rundir import RunDir
from interlock.text import error_line, one_line

_MOST_BYTES = 1 << 24  # of a plan


def of_recipe(recipe: Recipe, resumed: Path | None, learners: Sequence[HeldChip]) -> CostMeter:
    """Counts from now on, on top of what a resumed run has used.

    Raises ConfigError when prices cannot be read, or a limit is reached or cannot be kept; RunError
    when there is no run to be resumed.
    """
    prices = prices_of(recipe)

    def price(chip: HeldChip) -> ChipPrice | None:
        return price_of_device(chip.chip, vendors.kind_of(chip.device), prices)

    earlier = RunCost()
    if resumed is not None:
        with closing(RunDir.read(resumed)) as run:
            check_resumed(recipe, run)
            earlier = run.cost()
    watch = MemoryWatch(device.claim(learners[0].device))
    meter = CostMeter(earlier, learners, price, of_workers(recipe), memory=watch.look)
    Budget(recipe.budget, lambda _: None).look(meter.entered())
    return meter


def prices_of(recipe: Recipe) -> Prices:
    """Those of a file, which go before those that are shipped. Raises ConfigError."""
    if recipe.prices is None:
        return {}
    return read_prices(Path(recipe.prices).expanduser(), "prices")


def plan_of(recipe: Recipe) -> dict[str, Any] | None:
    """What it was planned to take, as it was written. Raises ConfigError."""
    if recipe.plan is None:
        return None
    try:
        tree = from_json(read_regular(Path(recipe.plan).expanduser(), _MOST_BYTES), dict[str, Any])
        planned_run(tree)
    except (OSError, ValueError) as error:
        shown = one_line(recipe.plan, 300)
        raise ConfigError(
            f"plan {shown}: {error_line(error)}; give what `interlock plan RECIPE.toml --chips … "
            "--json` prints"
        ) from None
    return tree


def budget_of(recipe: Recipe, run: RunDir, sinks: Sink) -> Budget:
    return Budget(recipe.budget, lambda why: sinks.event(run.event("budget_low", why)))


def inline_chip(uses: Sequence[Use]) -> HeldChip | None:
    """Of the generator that runs in this process, where one does."""
    return next((use.chips[0] for use in uses if use.role is Role.GENERATE), None)
