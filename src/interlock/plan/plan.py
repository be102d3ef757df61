"""A recipe on a placement of chips: hours, chip-hours, money, energy, memory, each with its range.

    Recipe, Roles ──plan_of──> Plan ─┬─ StagePlan for every stage: Parts, hours, low and high
                                     ├─ money, energy, memory of each role
                                     └─ verdicts (verdicts.py)

The range moves every constant to both ends of what it may be and adds what the formulas themselves
miss, in quadrature: about four of five published rows lie within (docs/planning.md).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from interlock.config.schema import Recipe
from interlock.plan.constants import Rates, values
from interlock.plan.doubt import DOUBT, slower, uncertainty
from interlock.plan.estimate import Factors, Parts, stage_hours, stage_seconds
from interlock.plan.memory import ADAPTER_MICRO_BATCH, MICRO_BATCH, LearnerLoad
from interlock.plan.prices import Prices, common_currency, price_of
from interlock.plan.roles import MemoryDemand, Roles, Settled, settle
from interlock.plan.shapes import ModelShape
from interlock.plan.workload import GivenFigures, StageWork, workloads
from interlock.records.cost import ChipPrice

_LENGTHS_SPREAD = 0.6  # of a mean length that nobody has measured; assumed
_DRAWN_POWER = 0.8  # of the nominal power, on average; assumed


class Span(NamedTuple):
    """A figure and the range in which it is with four chances of five."""

    low: float
    middle: float
    high: float

    def times(self, by: float) -> "Span":
        return Span(self.low * by, self.middle * by, self.high * by)


class StagePlan(NamedTuple):
    work: StageWork
    parts: Parts
    settled: Settled
    synchronous: bool  # as the recipe has it
    step: Span  # seconds
    hours: Span

    @property
    def memory(self) -> dict[str, float]:
        """Bytes that a process has of its chip, by its role."""
        return self.settled.processes


class Plan(NamedTuple):
    """What a recipe takes on a placement."""

    recipe: str
    shape: ModelShape
    roles: Roles
    settled: Settled  # of the stage that takes the most memory
    stages: tuple[StagePlan, ...]
    hours: Span
    chip_hours: Span
    money: Span | None  # None: a chip's price is not known, or they are in several currencies
    currency: str
    kwh: Span
    prices: tuple[tuple[str, ChipPrice | None], ...]
    unfit: tuple[str, ...]
    assumed: tuple[str, ...]


class PlanInputs(msgspec.Struct, frozen=True):
    """All that a plan is made of beside the placement."""

    recipe: Recipe
    shape: ModelShape
    given: GivenFigures = GivenFigures()
    link: float | None = None  # bytes/s; None: the chips' own
    prices: Prices = {}
    factors: Factors = Factors()
    rates: Rates | None = None  # of a profile; None: as shipped
    measured: bool = False  # rates and factors are of this very machine
    weight_bytes: float | None = None  # of generators; None: as the recipe's dtype


def plan_of(given: PlanInputs, roles: Roles) -> Plan:
    """Every stage of the recipe on these chips. Raises ConfigError."""
    rates = given.rates or values()
    works = works_of(given, roles)
    stages = [_stage(given, roles, work, rates) for work in works]
    hours = Span(*(sum(each.hours[i] for each in stages) for i in range(3)))
    kinds = [roles.learner, *(each for each in roles.generators if each is not roles.learner)]
    prices = tuple((each.chip.name, price_of(each.chip, given.prices)) for each in kinds)
    unfit = tuple(dict.fromkeys(why for each in stages for why in each.settled.unfit))
    watts = sum(each.count * each.chip.watts for each in kinds) * _DRAWN_POWER
    largest = max(stages, key=lambda each: sum(each.memory.values()))
    assumed = dict.fromkeys(why for work in works for why in work.assumed)
    return Plan(
        recipe=given.recipe.name,
        shape=given.shape,
        roles=roles,
        settled=largest.settled,
        stages=tuple(stages),
        hours=hours,
        chip_hours=hours.times(sum(each.count for each in kinds)),
        money=_money(hours, [each.count for each in kinds], [price for _, price in prices]),
        currency=common_currency([price for _, price in prices]),
        kwh=hours.times(watts / 1000.0),
        prices=prices,
        unfit=unfit,
        assumed=tuple(assumed),
    )


def works_of(given: PlanInputs, roles: Roles) -> list[StageWork]:
    return workloads(given.recipe, given.shape, not roles.turns, given.given)


def _money(hours: Span, counts: Sequence[int], prices: Sequence[ChipPrice | None]) -> Span | None:
    known = [price for price in prices if price is not None]
    if not common_currency(prices):
        return None
    pairs = list(zip(counts, known, strict=True))
    return Span(
        hours.low * sum(count * price.low for count, price in pairs),
        hours.middle * sum(count * price.middle for count, price in pairs),
        hours.high * sum(count * price.high for count, price in pairs),
    )


def settled_for(given: PlanInputs, roles: Roles, work: StageWork, rates: Rates) -> Settled:
    """Parallelism and memory of a stage, with the model that it has."""
    load, evaluation = work.load(rates), work.evaluation(rates)
    generator = given.recipe.generator[0]
    longest = work.prompt_tokens + work.max_tokens
    made = load.completions * work.drawn if work.samples else 0.0
    demand = MemoryDemand(
        longest,
        evaluation.prompt_tokens + evaluation.lengths.mean,
        max(made, evaluation.completions if work.evaluations else 1.0),
        _learner_load(given, work, longest, load.tokens / roles.learner.count),
        _generating_bytes(given),
        # A recipe written for one small engine has its slots; a plan of many chips has theirs.
        float(generator.slots) if roles.chips == 1 else 4096.0,
        _shares(given),
    )
    return settle(roles, work.shape, demand)


def _learner_load(given: PlanInputs, work: StageWork, longest: float, tokens: float) -> LearnerLoad:
    """`longest`: tokens of a sequence; `tokens`: of a step, that one chip learns from."""
    settings = given.recipe.learner
    bytes_ = _weight_bytes(settings.dtype)
    adapter = work.shape.adapter(settings.lora)
    frozen = (adapter or work.shape.params) if work.reference else 0.0
    frozen += sum(each.shape.params for each in work.teachers if each.held)
    measured = ADAPTER_MICRO_BATCH if settings.lora else MICRO_BATCH
    return LearnerLoad(
        tokens=max(longest, min(tokens, settings.micro_batch_tokens or measured)),
        longest=longest,
        adapter=adapter,
        recompute=work.recompute,
        held=frozen * bytes_,
        weight_bytes=bytes_,
        logits_chunk=float(settings.logits_chunk),
        taught=bool(work.teachers),
    )


def _weight_bytes(dtype: str) -> float:
    return 4.0 if dtype == "float32" else 2.0


def _generating_bytes(given: PlanInputs) -> float:
    """Of a generator's weight."""
    return given.weight_bytes or _weight_bytes(given.recipe.generator[0].dtype)


def _shares(given: PlanInputs) -> bool:
    """As recipes/fleet.py has it, of a generator in the learner's process."""
    generator, learner = given.recipe.generator[0], given.recipe.learner
    same = generator.engine == "torch" and generator.dtype == learner.dtype
    return same and (learner.dtype == "float32" or learner.lora is not None)


def _stage(given: PlanInputs, roles: Roles, work: StageWork, rates: Rates) -> StagePlan:
    settled = settled_for(given, roles, work, rates)
    synchronous = work.staleness == 0 or roles.turns or not work.samples
    if settled.unfit:
        nothing = Span(math.nan, math.nan, math.nan)
        empty = Parts(*[math.nan] * len(Parts._fields))
        return StagePlan(work, empty, settled, synchronous, nothing, nothing)

    def hours(with_rates: Rates, doing: StageWork) -> float:
        parts = stage_seconds(doing, settled, with_rates, given.link, given.factors)
        return stage_hours(doing, parts, synchronous)

    parts = stage_seconds(work, settled, rates, given.link, given.factors)
    middle = stage_hours(work, parts, synchronous)
    doubt = _doubt(hours, work, rates, middle, given.measured)
    proven = all(each.chip.proven for each in (roles.learner, *roles.generators))
    step = parts.synchronous if synchronous else parts.asynchronous
    longer = slower(doubt, given.measured or proven)
    span = Span(math.exp(-doubt), 1.0, math.exp(longer))
    return StagePlan(work, parts, settled, synchronous, span.times(step), span.times(middle))


def _doubt(
    hours: Callable[[Rates, StageWork], float],
    work: StageWork,
    rates: Rates,
    middle: float,
    measured: bool,
) -> float:
    """Half of the range, as a logarithm."""
    total = uncertainty(lambda moved: hours(moved, work), rates, middle, measured)
    if work.mean_tokens is None and work.samples:
        mean = work.lengths(rates).mean
        longer = min(mean * (1 + _LENGTHS_SPREAD), 0.98 * work.max_tokens)
        longer = max(longer, mean * 1.0001)
        other = msgspec.structs.replace(work, mean_tokens=min(longer, work.max_tokens))
        usual = msgspec.structs.replace(work, mean_tokens=mean)
        apart = math.log(hours(rates, other) / hours(rates, usual))
        total = math.hypot(total, DOUBT * apart)
    return total
