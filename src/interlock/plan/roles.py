"""Who does what: chips that learn, chips that generate, or the same chips in turns; and memory.

[Stock] ──roles_of──> Roles ──settle──> replicas, layout, memory per chip of each role
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from interlock.errors import ConfigError
from interlock.plan.chips import ChipSpec, Stock
from interlock.plan.memory import (
    LearnerLoad,
    MemoryUse,
    generator_chips,
    generator_memory,
    in_turns,
    learner_memory,
    room_for,
)
from interlock.plan.seconds import MOST_SPLIT, GeneratorReplica, Learners
from interlock.plan.shapes import ModelShape
from interlock.plan.sharding import learner_layout, least_learners, must_recompute

NONE_LEARN = "--chips: no chips learn; give one entry :learner or :both"
_ROUNDING = 1.0 + 1e-9
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

    @property
    def one_process(self) -> bool:
        """The generator is part of the learner's process, on its chip."""
        return self.roles.turns and self.roles.chips == 1 and bool(self.groups)

    @property
    def processes(self) -> dict[str, float]:
        """Bytes that a process has of its chip, by its role; of unlike generators the most."""
        if self.one_process:
            return {"learner": in_turns(self.learner_memory, self.groups[0].memory)}
        found = {"learner": self.learner_memory.total}
        if self.groups:
            found["generator"] = max(group.memory.total for group in self.groups)
        return found


def roles_of(stocks: Sequence[Stock], generates: bool) -> Roles:
    """What --chips says. Raises ConfigError where no chips, or several kinds, would learn."""
    learners = [each for each in stocks if each.duty in ("learner", "both")]
    makers = [each for each in stocks if each.duty == "generator"]
    if not learners:
        raise ConfigError(NONE_LEARN)
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


class MemoryDemand(NamedTuple):
    """What a stage asks of memory. Tokens of a sequence count its prompt."""

    longest: float  # tokens of a sequence
    mean: float
    completions: float  # that are generated for a step
    learner: LearnerLoad  # before a sequence is cut
    generating: float = 2.0  # bytes of a weight
    slots: float = 4096.0
    shares: bool = False  # in one process the generator multiplies by the learner's weights


def settle(roles: Roles, shape: ModelShape, demand: MemoryDemand) -> Settled:
    """Parallelism and memory of each role."""
    learners, memory, unfit = _learners(roles.learner, shape, demand)
    groups = []
    for stock in roles.generators:
        chips = generator_chips(shape, stock.chip, demand.generating)
        if chips > stock.count:
            unfit.append(
                f"{stock.count} x {stock.chip.name} do not hold one generator of {shape.name}; "
                f"{chips} are the fewest that do"
            )
            continue
        in_learner = roles.turns and roles.chips == 1
        groups.append(_group(stock, shape, chips, demand, memory if in_learner else None))
    settled = Settled(roles, learners, memory, tuple(groups), tuple(unfit))
    if settled.one_process and not unfit:
        both = settled.processes["learner"]
        if both > memory.usable * _ROUNDING:  # the cache is as large as is left
            why = (
                f"one {roles.learner.chip.name} does not hold learner and generator of "
                f"{shape.name} ({both / 1e9:.0f} of {memory.usable / 1e9:.0f} GB); give each "
                "a chip of its own"
            )
            settled = settled._replace(unfit=(why,))
    return settled


def _learners(
    stock: Stock, shape: ModelShape, demand: MemoryDemand
) -> tuple[Learners, MemoryUse, list[str]]:
    """How they are cut, what each holds, and why that cannot be."""
    unfit: list[str] = []
    chip, count, load = stock.chip, stock.count, demand.learner
    if load.adapter and count > 1:
        unfit.append(
            f"{count} x {chip.name} would learn, and an adapter (learner.lora) learns on "
            "one chip; give 1 :learner and the others :generator"
        )
    tensor, context, expert, stages = learner_layout(shape, chip, count)
    split = tensor * context * stages
    again = load.recompute or must_recompute(
        shape, chip, count, demand.longest, split, load.adapter
    )
    load = load._replace(recompute=again or not _fits(shape, chip, count, load))
    # A sequence is split over as many chips as it must be to fit (context parallelism).
    parts = 1
    while parts * 2 <= min(count, MOST_SPLIT) and not _fits(shape, chip, count, _cut(load, parts)):
        parts *= 2
    memory = learner_memory(shape, chip, count, _cut(load, parts))
    if not memory.fits:
        least = None if load.adapter else least_learners(shape, chip, _cut(load, MOST_SPLIT))
        unfit.append(
            f"{count} x {chip.name} do not hold the learner of {shape.name} "
            f"({memory.total / 1e9:.0f} of {memory.usable / 1e9:.0f} GB a chip); "
            + (f"{least} are the fewest that do" if least else "no number of them does")
        )
    learners = Learners(
        shape,
        chip,
        count,
        tensor,
        stages,
        expert,
        max(context, parts // split or 1),
        load.weight_bytes,
        load.recompute,
        load.adapter,
    )
    return learners, memory, unfit


def _fits(shape: ModelShape, chip: ChipSpec, chips: int, load: LearnerLoad) -> bool:
    return learner_memory(shape, chip, chips, load).fits


def _cut(load: LearnerLoad, parts: int) -> LearnerLoad:
    return load._replace(tokens=load.tokens / parts)


def _group(
    stock: Stock, shape: ModelShape, chips: int, demand: MemoryDemand, beside: MemoryUse | None
) -> GeneratorGroup:
    """`beside`: of the learner in whose process it is; None: in none."""
    bytes_, mean, completions = demand.generating, demand.mean, demand.completions
    most = max(chips, min(stock.count, stock.chip.domain))
    while chips * 2 <= most and _crowded(
        room_for(shape, stock.chip, chips, bytes_, mean), completions * chips / stock.count
    ):
        chips *= 2  # so few answers at a time that weights are read for next to nothing
    replicas = stock.count // chips
    taken = 0.0 if beside is None else beside.total
    room = min(demand.slots, room_for(shape, stock.chip, chips, bytes_, mean, taken))
    rows = max(1.0, min(room, completions / replicas))
    shared = beside is not None and demand.shares
    memory = generator_memory(shape, stock.chip, chips, bytes_, rows, mean, shared)
    replica = GeneratorReplica(shape, stock.chip, chips, room, bytes_)
    return GeneratorGroup(replica, replicas, memory, stock)


def _crowded(room: float, completions: float) -> bool:
    """Whether a replica holds fewer answers at a time than it should and than there are for it."""
    return room < min(_ROOMY, completions)
