"""What was measured beats what was fitted: profiles, and runs that happened.

    --profile FILE ─┬─ `interlock bench --json`: how fast this machine multiplies
                    └─ a TOML table of constants, or of a chip's peaks
    --like RUN ─────── a run directory: seconds of each part against its own plan ──> Factors

A profile may say less than all; what it does not say stays as it was.
"""

import json
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from interlock.config.reading import parse_recipe
from interlock.config.schema import Recipe
from interlock.errors import ConfigError, RunError
from interlock.plan.chips import ChipSpec, called_by_driver
from interlock.plan.constants import Rates, values
from interlock.plan.estimate import Factors, stage_seconds
from interlock.plan.plan import PlanInputs, settled_for, works_of
from interlock.plan.roles import Roles
from interlock.plan.shapes import model_shape
from interlock.plan.workload import GivenFigures
from interlock.records.metrics import StepMetrics
from interlock.regular import read_regular
from interlock.rundir import RunDir, RunView
from interlock.text import error_line, one_line

_MOST_BYTES = 1 << 22
_LEAST_STEPS = 2
_LEAST_OWN = 0.1  # share of a measurement's time that must have been its own
_LEAST = 1e-12  # of a constant: seconds, and shares
_LEAST_RATE = 1e6  # a second, of FLOP and of bytes: with less than any chip has, plans divide by 0
_SMALLEST, _LARGEST = 1e-2, 1e4  # of a factor: beyond it another machine is meant


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TOML profile; all of it may be left out.

    `constants` as in data/constants.toml; `flops` and `bandwidth` in FLOP/s and bytes/s of the chip
    called `chip`, as measured.
    """

    chip: str = ""
    flops: float | None = None
    bandwidth: float | None = None
    constants: dict[str, float] = {}
    source: str = ""


def read_profile(path: Path) -> Profile:
    """Either form. Raises ConfigError."""
    try:
        raw = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        if raw.lstrip().startswith("{"):
            found = _of_bench(json.loads(raw))
        else:
            found = msgspec.convert(tomllib.loads(raw), Profile)
        if found.flops is None and found.bandwidth is None and not found.constants:
            raise ValueError("it holds nothing that was measured")
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        told = error_line(error, 200)
    except (LookupError, TypeError, AttributeError) as error:
        told = f"it has no such figures of products ({error_line(error, 100)})"
    else:
        return _checked(found, path)
    raise ConfigError(
        f"--profile {path}: {told}; give what `interlock bench --json` prints, or a TOML file with "
        "[constants], flops or bandwidth"
    )


def _checked(found: Profile, path: Path) -> Profile:
    for name, value in found.constants.items():
        if name not in Rates._fields:
            raise ConfigError(
                f"--profile {path}: no constant {name!r}; there are {', '.join(Rates._fields)}"
            )
        if not _LEAST < value < 1e6:
            raise ConfigError(
                f"--profile {path}: {name} = {value:g}; give a number above {_LEAST:g}, below 1e6"
            )
    for name in ("flops", "bandwidth"):
        rate = getattr(found, name)
        if rate is not None and not _LEAST_RATE <= rate < 1e20:
            raise ConfigError(
                f"--profile {path}: {name} = {rate:g} a second; give one above {_LEAST_RATE:g}, "
                "below 1e20"
            )
    return found


def _of_bench(tree: dict[str, Any]) -> Profile:
    """`interlock bench --json`: GFLOP/s of the products that a run there would take.

    Rates that were reached, so the shares of them are 1; the share of attention and what is moved
    between products stay as they were.
    """
    taken, measured = tree["taken"], tree["measured"]
    rates = {(each["dtype"], each["kernel"]): each for each in measured["speeds"]}
    learning = _number(rates[taken["dtype"], taken["learner"]]["learn"])
    decoding = _number(rates[taken["dtype"], taken["generator"]]["decode"])
    # While others had the processors it measured them, not the chip.
    waited = _number(measured.get("waited", 0.0))
    if not (learning > 0 and decoding > 0 and 0 <= waited <= 1):
        raise ValueError(f"speeds of {learning:g} and {decoding:g}, waited {waited:g}")
    own = max(_LEAST_OWN, 1.0 - waited)
    return Profile(
        chip=msgspec.convert(measured["chip"], str),
        flops=learning * 1e9 / own,
        constants={"learning": 1.0, "products": decoding / learning},
        source=f"interlock bench on {measured['chip']}, {measured['threads']} threads",
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{one_line(repr(value), 40)} is no speed")
    return float(value)


def applied(profile: Profile, chip: ChipSpec) -> tuple[Rates, ChipSpec]:
    """The constants and the chip with what the profile measured in their place."""
    rates = values()._replace(**profile.constants)
    flops = profile.flops or chip.flops
    changed = msgspec.structs.replace(
        chip,
        flops=flops,
        flops_8bit=chip.flops_8bit if profile.flops is None else 0.0,
        bandwidth=profile.bandwidth or chip.bandwidth,
    )
    return rates, changed


class Happened(NamedTuple):
    """One part of a run: seconds a step, as planned on its chips and as they were."""

    part: str
    planned: float
    measured: float

    @property
    def factor(self) -> float:
        return self.measured / self.planned


class Likeness(NamedTuple):
    """What a run shows: factors of parts, and lengths of its answers."""

    run: Path
    parts: list[Happened]
    factors: Factors
    mean_tokens: float | None
    prompt_tokens: float | None
    steps: int


def like(run: Path, roles: Roles, given: PlanInputs) -> Likeness:
    """A run's seconds against its own plan on `roles`, the chips that it ran on.

    Raises RunError where it has no steps to compare, ConfigError where those are other chips.
    """
    view = RunDir.read(run)
    try:
        lines = [each for each in view.metrics() if each.step > 0]
        recipe = parse_recipe(view.config, str(run / "config.json"))
        _check_vendor(run, view, recipe.learner.device, roles.learner.chip)
    finally:
        view.close()
    if len(lines) < _LEAST_STEPS:
        raise RunError(f"{run} has {len(lines)} steps; a run is compared from {_LEAST_STEPS} on")
    stage = max({each.stage for each in lines}, key=lambda i: sum(x.stage == i for x in lines))
    lines = [each for each in lines if each.stage == stage]
    usual = lines[1:] if len(lines) > _LEAST_STEPS else lines  # the first step warms up
    mean = _median([each.rollout.length for each in usual])
    prompt = _prompt_tokens(recipe, stage, usual, mean)
    own = msgspec.structs.replace(
        given,
        recipe=recipe,
        shape=_shape_of(recipe, given),
        given=GivenFigures(mean_tokens=mean, prompt_tokens=prompt),
        factors=Factors(),
    )
    parts = _compared(own, roles, stage, usual)
    return Likeness(run, parts, _factors(parts), mean, prompt, len(lines))


def _check_vendor(run: Path, view: RunView, device: str, chip: ChipSpec) -> None:
    """Raise ConfigError where the run counted other chips than it is compared with a plan of."""
    held = {use.chip for use in view.cost().rows() if use.role == "learner" and use.chip}
    for name in held:
        known = called_by_driver(name)
        vendor = "CPU" if device == "cpu" else known.vendor if known is not None else chip.vendor
        if vendor != chip.vendor:
            raise ConfigError(
                f"--like {run} learned on {one_line(name, 60)}, and would be compared with a plan "
                f"of {chip.name}; give the chips that it ran on in --ran-on"
            )


def _shape_of(recipe: Recipe, given: PlanInputs) -> Any:
    same = recipe.model.path == given.recipe.model.path
    return given.shape if same else model_shape(recipe.model.path)


def _median(values_: Sequence[float | int | None]) -> float | None:
    known = [float(each) for each in values_ if each is not None]
    return statistics.median(known) if known else None


def _prompt_tokens(
    recipe: Recipe, stage: int, lines: Sequence[StepMetrics], mean: float | None
) -> float | None:
    """What the learner computed beyond the answers, per problem; None: it did not say."""
    trained = _median([each.update.tokens for each in lines])
    groups = _median([each.rollout.groups for each in lines])
    completions = _median([each.rollout.completions for each in lines])
    if trained is None or mean is None or not groups or not completions:
        return None
    left = (trained - completions * mean) / groups
    return left if left > 1 else None


def _compared(
    own: PlanInputs, roles: Roles, stage: int, lines: Sequence[StepMetrics]
) -> list[Happened]:
    rates = own.rates or values()
    work = next(each for each in works_of(own, roles) if each.place == stage)
    settled = settled_for(own, roles, work, rates)
    if settled.unfit:
        raise ConfigError(f"--like: {settled.unfit[0]}; give the chips that it ran on in --ran-on")
    planned = stage_seconds(work, settled, rates, own.link)
    learned = planned.scoring + planned.update
    pairs = (
        ("generation", planned.generation, [each.seconds.generate for each in lines]),
        ("verification", planned.verification, [each.seconds.verify for each in lines]),
        ("update", learned, [each.seconds.update for each in lines]),
        ("publication", planned.publication, [each.seconds.publish for each in lines]),
        (
            "step",
            planned.synchronous if work.staleness == 0 else planned.asynchronous,
            [each.seconds.step for each in lines],
        ),
    )
    found = []
    for name, seconds, happened in pairs:
        measured = _median(happened)
        if measured and seconds > 0:
            found.append(Happened(name, seconds, measured))
    return found


def _factors(parts: Sequence[Happened]) -> Factors:
    by = {each.part: min(_LARGEST, max(_SMALLEST, each.factor)) for each in parts}
    update = by.get("update", 1.0)
    return Factors(
        generation=by.get("generation", 1.0),
        verification=by.get("verification", 1.0),
        scoring=update,
        update=update,
        publication=by.get("publication", 1.0),
    )
