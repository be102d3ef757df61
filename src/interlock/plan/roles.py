"""Who does what: chips that learn, chips that generate, or the same chips in turns; and memory.

[Stock] ──roles_of──> Roles ──fitted_roles──> replicas, layout, memory per chip of each role
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from interlock.errors import ConfigError
from interlock.plan.chips import ChipSpec, Stock
from interlock.plan.seconds import GeneratorReplica, Learners
from interlock.plan.shapes import ModelShape
from interlock.plan.sharding import (
    MemoryUse,
    generator_chips,
    generator_memory,
    learner_layout,
    learner_memory,
    least_learners,
    must_recompute,
    room_for,
)

_ROOMY = 64.0  # answers that a replica should hold at a time; assumed


class Roles(msgspec.Struct, frozen=True):
    """A placement. `turns`: the learner's chips generate, too, and do one after the other."""

    learner: Stock
    generators: tuple[Stock, ...]
    turns: bool

    @property
    def chips(self) -> int:
        return self.learner.count + sum(
            each.count for each in self.generators if not (self.turns and each is self.learner)
        )

    @property
    def told(self) -> str:
        """In the words of --chips."""
        if self.turns and self.generators == (self.learner,):
            return f"{self.learner.count}x{self.learner.chip.name}:both"
        parts = [f"{self.learner.count}x{self.learner.chip.name}:learner"]
        return ",".join(
            parts + [f"{each.count}x{each.chip.name}:generator" for each in self.generators]
        )


class GeneratorGroup(NamedTuple):
    """Generators of one kind of chip."""

    replica: GeneratorReplica
    replicas: int
    memory: MemoryUse
    stock: Stock


class Settled(NamedTuple):
    """Roles with what memory implies."""

    roles: Roles
    learners: Learners
    learner_memory: MemoryUse
    groups: tuple[GeneratorGroup, ...]
    unfit: tuple[str, ...]  # why it cannot be, with the least that can


def roles_of(stocks: Sequence[Stock], generates: bool) -> Roles:
    """What --chips says. Raises ConfigError where no chips, or several kinds, would learn."""
    learners = [each for each in stocks if each.duty in ("learner", "both")]
    makers = [each for each in stocks if each.duty == "generator"]
    if not learners:
        raise ConfigError("--chips: no chips learn; give one entry :learner or :both")
    explicit = [each for each in learners if each.duty == "learner"]
    if len(explicit) > 1 or (len(learners) > 1 and not explicit):
        kinds = ", ".join(each.chip.name for each in learners)
        raise ConfigError(
            f"--chips: several kinds of chips would learn ({kinds}), and a learner spans no two; "
            "give one entry :learner and the others :generator, or search with --find"
        )
    learner = (explicit or learners)[0]
    if explicit:
        makers += [each for each in learners if each is not learner]
    if not generates or makers:
        return Roles(learner, tuple(makers) if generates else (), False)
    return Roles(learner, (learner,), True)


class Precision(NamedTuple):
    """Bytes of a weight."""

    generating: float = 2.0
    learning: float = 2.0


def settle(
    roles: Roles,
    shape: ModelShape,
    precision: Precision,
    longest: float,
    mean: float,
    completions: float,
    recompute: bool,
    slots: float = 4096.0,
    adapter: float = 0.0,
) -> Settled:
    """Parallelism and memory of each role; `longest` and `mean` count the prompt's tokens.

    `adapter`: weights of one, which alone learn, on one chip; 0: all do.
    """
    unfit: list[str] = []
    learner, chip = roles.learner, roles.learner.chip
    if adapter and learner.count > 1:
        unfit.append(
            f"{learner.count} x {chip.name} would learn, and an adapter (learner.lora) learns on "
            "one chip; give 1 :learner and the others :generator"
        )
    tensor, context, expert, stages = learner_layout(shape, chip, learner.count)
    split = tensor * context * stages
    if not recompute:
        recompute = must_recompute(shape, chip, learner.count, longest, split, adapter)
    # A sequence is split over as many chips as it must be to fit (context parallelism).
    parts = _parts(shape, chip, learner.count, longest, adapter)
    memory = learner_memory(shape, chip, learner.count, longest / parts, adapter)
    if not memory.fits:
        least = None if adapter else least_learners(shape, chip, longest / 16)
        unfit.append(
            f"{learner.count} x {chip.name} do not hold the learner of {shape.name} "
            f"({memory.total / 1e9:.0f} of {memory.usable / 1e9:.0f} GB a chip); "
            + (f"{least} are the fewest that do" if least else "no number of them does")
        )
    learners = Learners(
        shape,
        chip,
        learner.count,
        tensor,
        stages,
        expert,
        max(context, parts // split or 1),
        precision.learning,
        recompute,
        adapter,
    )
    groups = []
    for stock in roles.generators:
        chips = generator_chips(shape, stock.chip, precision.generating)
        if chips > stock.count:
            unfit.append(
                f"{stock.count} x {stock.chip.name} do not hold one generator of {shape.name}; "
                f"{chips} are the fewest that do"
            )
            continue
        groups.append(_group(stock, shape, chips, precision, mean, completions, slots))
    return Settled(roles, learners, memory, tuple(groups), tuple(unfit))


def _parts(shape: ModelShape, chip: ChipSpec, chips: int, longest: float, adapter: float) -> int:
    parts = 1
    while (
        parts * 2 <= min(chips, 16)
        and not learner_memory(shape, chip, chips, longest / parts, adapter).fits
    ):
        parts *= 2
    return parts


def _group(
    stock: Stock,
    shape: ModelShape,
    chips: int,
    precision: Precision,
    mean: float,
    completions: float,
    slots: float,
) -> GeneratorGroup:
    most = max(chips, min(stock.count, stock.chip.domain))
    while chips * 2 <= most and _crowded(
        room_for(shape, stock.chip, chips, precision.generating, mean),
        completions * chips / stock.count,
    ):
        chips *= 2  # so few answers at a time that weights are read for next to nothing
    replicas = stock.count // chips
    room = min(slots, room_for(shape, stock.chip, chips, precision.generating, mean))
    rows = max(1.0, min(room, completions / replicas))
    memory = generator_memory(shape, stock.chip, chips, precision.generating, rows, mean)
    replica = GeneratorReplica(shape, stock.chip, chips, room, precision.generating)
    return GeneratorGroup(replica, replicas, memory, stock)


def _crowded(room: float, completions: float) -> bool:
    """Whether a replica holds fewer answers at a time than it should and than there are for it."""
    return room < min(_ROOMY, completions)
