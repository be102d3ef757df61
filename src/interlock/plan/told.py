"""Plans as lines of text and as plain trees: what the command line prints.

Plan ──lines_of──> text          Plan ──tree_of──> JSON
"""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from interlock.plan.chips import ChipSpec, Stock
from interlock.plan.constants import Rates, constants
from interlock.plan.memory import MemoryUse
from interlock.plan.plan import Plan, PlanInputs, Span, StagePlan
from interlock.plan.profile import Likeness
from interlock.plan.search import Found, Option
from interlock.plan.verdicts import verdicts

_SHOWN_OPTIONS = 20


def figure(value: float) -> str:
    """Three digits: 0.0123, 4.56, 789, 12,300."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) >= 1000:
        digits = 2 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def spanned(span: Span, unit: str, before: str = "") -> str:
    low, middle, high = (before + figure(each) for each in span)
    return f"{middle} {unit}".strip() + f" ({low} to {high})"


def lines_of(plan: Plan, given: PlanInputs) -> Iterator[str]:
    """The whole plan, for a reader."""
    shape = plan.shape
    kind = f"{shape.experts} experts, {shape.per_token} a token" if shape.experts else "dense"
    yield (
        f"{plan.recipe}: {shape.name}, {figure(shape.params / 1e9)} B weights, "
        f"{figure(shape.active / 1e9)} B a token, {kind} ({shape.source})"
    )
    yield f"on {plan.roles.told}"
    for each in _notes(plan, given.measured):
        yield f"  {each}"
    yield ""
    yield "memory, GB a chip"
    yield from _memory(plan)
    yield from _smaller(plan)
    if not plan.unfit:
        for stage in plan.stages:
            yield ""
            yield from _stage(stage)
        yield ""
        yield f"time       {spanned(plan.hours, 'h')}"
        yield f"chips      {spanned(plan.chip_hours, 'chip-hours')}"
        yield f"money      {_money(plan)}"
        yield f"energy     {spanned(plan.kwh, 'kWh')}"
        yield "           each range holds about four of five published runs"
    yield ""
    for each in verdicts(plan):
        yield f"* {each}"
    yield ""
    yield from _sources(plan, given)


def _unproven(chip: ChipSpec) -> str:
    return (
        f"{chip.name}: no run on it was fitted; on such chips half of what was published took 1.6 "
        "to 4 times as long as planned"
    )


def _notes(plan: Plan, measured: bool) -> Iterator[str]:
    for stock in _stocks(plan):
        if stock.note:
            yield stock.note
        if stock.chip.confidence != "seen":
            yield f"{stock.chip.name}: its figures are from memory, no page was found"
        if not (measured or stock.chip.proven):
            yield f"{_unproven(stock.chip)}, so the range goes further up"
        if stock.chip.assumed:
            yield f"{stock.chip.name}: assumed are its {', '.join(stock.chip.assumed)}"


def _memory(plan: Plan) -> Iterator[str]:
    settled = plan.settled
    learn = settled.learners
    shared = [f"data {learn.chips // (learn.tensor * learn.stages * learn.context) or 1}"]
    for name in ("tensor", "context", "expert", "stages"):
        if (degree := getattr(learn, name)) > 1:
            shared.append(f"{name} {degree}")
    yield _memory_line(
        "learner", settled.learner_memory, f"{learn.chips} chips: {', '.join(shared)}"
    )
    for group in settled.groups:
        yield _memory_line(
            "generator",
            group.memory,
            f"{group.replicas} replicas of {group.replica.chips} {group.stock.chip.name}, "
            f"room for {figure(math.floor(group.replica.slots))} answers each",
        )
    if settled.one_process:
        both = figure(settled.processes["learner"] / 1e9)
        yield f"  one process has both in turns: {both} at the most"


def _smaller(plan: Plan) -> Iterator[str]:
    """Stages that learn another model than most."""
    for stage in plan.stages:
        shape = stage.work.shape
        if shape.layers != plan.shape.layers:
            found = ", ".join(f"{role} {figure(s / 1e9)}" for role, s in stage.memory.items())
            yield (
                f"  {stage.work.name}: {shape.layers} layers, {figure(shape.params / 1e9)} B "
                f"weights: {found}"
            )


def _memory_line(role: str, use: MemoryUse, told: str) -> str:
    parts = (
        ("weights", use.weights + use.copies),
        ("gradients", use.gradients),
        ("optimizer", use.optimizer),
        ("reference and teachers", use.held),
        ("cache", use.cache),
        ("activations", use.activations),
        ("program", use.process + use.pieces),
    )
    what = " + ".join(f"{name} {figure(size / 1e9)}" for name, size in parts if size)
    return f"  {role:10s}{what} = {figure(use.total / 1e9)} of {figure(use.usable / 1e9)}; {told}"


def _stage(stage: StagePlan) -> Iterator[str]:
    work, parts = stage.work, stage.parts
    mode = "in step" if stage.synchronous else "generators run ahead"
    yield f"{work.name}: {work.steps:,} steps, {spanned(stage.step, 's')} each, {mode}"
    if work.samples:
        yield (
            f"  generation {figure(parts.generation)} s to the last token, "
            f"{figure(parts.refilled)} s with slots refilled"
        )
        yield f"  verification {figure(parts.verification)} s that nothing hides"
    if parts.scoring:
        yield f"  log-probabilities {figure(parts.scoring)} s"
    if work.learns:
        yield f"  update {figure(parts.update)} s"
    if parts.publication:
        yield (
            f"  publication {figure(parts.publication)} s for {figure(parts.bytes / 1e9)} GB "
            f"(whole versions: {figure(parts.whole)} s)"
        )
    if parts.handover:
        yield f"  chips from role to role {figure(parts.handover)} s"
    if work.samples and math.isfinite(parts.asynchronous):
        yield (
            f"  in step {figure(parts.synchronous)} s; running ahead "
            f"{figure(parts.asynchronous)} s at a staleness of {parts.staleness:.1f} "
            f"(at most {work.staleness})"
        )
    if work.evaluations:
        yield f"  {work.evaluations:g} evaluations of {figure(parts.evaluation)} s"


def _money(plan: Plan) -> str:
    if plan.money is not None:
        return spanned(plan.money, plan.currency)
    unknown = [name for name, price in plan.prices if price is None]
    if not unknown:
        return "in several currencies, see the prices; give all in one, with --prices FILE"
    return f"no price of {', '.join(unknown)}; give --prices FILE"


def _sources(plan: Plan, given: PlanInputs) -> Iterator[str]:
    today = datetime.now(UTC).date()
    for name, price in plan.prices:
        if price is not None:
            old = f", {(today - price.date).days} days ago: look it up"
            yield (
                f"price of {name}: {figure(price.low)} to {figure(price.high)} {price.currency} an "
                f"hour, {price.date}{old if price.stale(today) else ''}; {price.source}"
            )
    for each in plan.assumed:
        yield f"assumed: {each}"
    kinds: dict[str, list[str]] = {}
    table = constants()
    for name in Rates._fields:
        changed = given.rates is not None and getattr(given.rates, name) != table[name].value
        kind: str = "measured, by the profile" if changed else table[name].kind
        value = getattr(given.rates, name) if given.rates is not None else table[name].value
        kinds.setdefault(kind, []).append(f"{name} {value:.3g}")
    for kind, names in kinds.items():
        yield f"constants {kind}: {', '.join(names)}"
    yield "vendor: peaks, bandwidths, memory, links and power of chips (plan/data/chips.csv)"


def lines_of_search(found: Found) -> Iterator[str]:
    yield (
        f"{found.tried:,} placements tried, {found.fitting:,} ways to run that fit; no other one "
        "beats these in time and cost:"
    )
    money = found.currency or "money"
    yield f"{'hours':>8s} {'chip-h':>9s} {money:>9s}  {'staleness':9s}  placement"
    for option in found.front[:_SHOWN_OPTIONS]:
        yield (
            f"{figure(option.hours):>8s} {figure(option.chip_hours):>9s} "
            f"{figure(option.money):>9s}  {_mode(option):9s}  {option.roles.told}"
        )
    if len(found.front) > _SHOWN_OPTIONS:
        yield f"and {len(found.front) - _SHOWN_OPTIONS} more; --json has them all"
    shown = [
        stock.chip
        for option in found.front[:_SHOWN_OPTIONS]
        for stock in (option.roles.learner, *option.roles.generators)
    ]
    for chip in {chip.name: chip for chip in shown}.values():
        if not (found.measured or chip.proven):
            yield f"{_unproven(chip)}, so it may not be among the best"


def _mode(option: Option) -> str:
    return "in step" if option.synchronous else f"{option.staleness:.1f}"


def lines_of_likeness(likeness: Likeness) -> Iterator[str]:
    """Planned against happened."""
    yield f"{likeness.run}: {likeness.steps} steps, seconds of one as planned and as they were"
    for each in likeness.parts:
        yield (
            f"  {each.part:13s} planned {figure(each.planned):>7s}   happened "
            f"{figure(each.measured):>7s}   x {each.factor:.2f}"
        )


def tree_of(plan: Plan, given: PlanInputs) -> dict[str, Any]:
    """As JSON; what is unknown is null."""
    table = constants()
    used = given.rates._asdict() if given.rates else {k: table[k].value for k in Rates._fields}
    tree = {
        "recipe": plan.recipe,
        "model": msgspec.to_builtins(plan.shape),
        "placement": plan.roles.told,
        "chips": [_stock_tree(each) for each in _stocks(plan)],
        "profiled": given.measured,
        "fits": not plan.unfit,
        "memory_bytes": {
            "learner": plan.settled.learner_memory._asdict(),
            "generators": [group.memory._asdict() for group in plan.settled.groups],
            "processes": plan.settled.processes,
        },
        "parallelism": {
            "learner": {
                name: getattr(plan.settled.learners, name)
                for name in ("chips", "tensor", "context", "expert", "stages")
            },
            "generators": [
                {
                    "chip": group.stock.chip.name,
                    "replicas": group.replicas,
                    "chips_each": group.replica.chips,
                }
                for group in plan.settled.groups
            ],
        },
        "stages": [
            {
                "name": stage.work.name,
                "steps": stage.work.steps,
                "synchronous": stage.synchronous,
                "step_s": stage.step._asdict(),
                "seconds": stage.parts._asdict(),
                "layers": stage.work.shape.layers,
                "weights": stage.work.shape.params,
                "memory_bytes": stage.memory,
            }
            for stage in plan.stages
        ],
        "hours": plan.hours._asdict(),
        "chip_hours": plan.chip_hours._asdict(),
        "money": plan.money._asdict() if plan.money else None,
        "currency": plan.currency or None,
        "kwh": plan.kwh._asdict(),
        "prices": {name: msgspec.to_builtins(price) for name, price in plan.prices},
        "verdicts": verdicts(plan),
        "assumed": list(plan.assumed),
        "constants": {
            name: {"value": used[name], "kind": _kind(given, name), "unit": table[name].unit}
            for name in Rates._fields
        },
    }
    return _finite(tree)


def _stocks(plan: Plan) -> list[Stock]:
    return list(dict.fromkeys([plan.roles.learner, *plan.roles.generators]))


def _stock_tree(stock: Stock) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(stock.chip)
    known = {"proven": stock.chip.proven, "note": stock.note}
    return tree | {"count": stock.count, "duty": stock.duty} | known


def _kind(given: PlanInputs, name: str) -> str:
    table = constants()
    if given.rates is not None and getattr(given.rates, name) != table[name].value:
        return "measured"
    return table[name].kind


def tree_of_search(found: Found) -> dict[str, Any]:
    front = [
        {
            "placement": option.roles.told,
            "hours": option.hours,
            "chip_hours": option.chip_hours,
            "money": option.money,
            "synchronous": option.synchronous,
            "staleness": option.staleness,
        }
        for option in found.front
    ]
    return _finite(
        {
            "tried": found.tried,
            "fitting": found.fitting,
            "currency": found.currency or None,
            "front": front,
        }
    )


def tree_of_likeness(likeness: Likeness) -> dict[str, Any]:
    parts = {
        each.part: {"planned_s": each.planned, "happened_s": each.measured}
        for each in likeness.parts
    }
    return _finite({"run": str(likeness.run), "steps": likeness.steps, "parts": parts})


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _finite(each) for name, each in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_finite(each) for each in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
