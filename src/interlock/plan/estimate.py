"""How long a stage takes on a placement, part by part, in step or with generators running ahead.

StageWork, Settled, Rates ──stage_seconds──> Parts ─┬─ synchronous:  generation + … + publication
                                               └─ asynchronous: the longer of the two roles
"""

import math
from typing import NamedTuple

from interlock.plan.constants import Rates
from interlock.plan.lengths import second_moment
from interlock.plan.roles import GeneratorGroup, Settled
from interlock.plan.seconds import (
    StepLoad,
    decode_s,
    forward_s,
    generation_s,
    publication_s,
    refilled_s,
    update_s,
)
from interlock.plan.workload import StageWork

_ENCODED = 0.73e9  # bytes/s of the model that one thread makes a delta of; measured (bench/RESULTS)
_APPLIED = 1.0e9  # bytes/s of the model, per node, that are put in place; measured there
_THREADS = 8.0  # that encode or apply at a time on a node; assumed
# Of what a delta is of; measured (bench/RESULTS.md, Weight versions and Adapters).
_INDEXED = 1.1  # bytes per byte that changed: its place, and how far it went
_ADAPTER_DELTA = 0.45  # bytes per byte of an adapter, all of which changes
_STORED = 2e9  # bytes/s to a checkpoint's disk; assumed
_KEPT_BYTES = 12.0  # of a weight in a checkpoint
_LATENCY_S = 0.2  # before a version is noticed; assumed


class Parts(NamedTuple):
    """Seconds of one step, and what they come to."""

    generation: float  # by itself, all completions of a step
    refilled: float  # the same with slots refilled: no tail
    verification: float  # that nothing else hides
    scoring: float  # log-probabilities
    update: float
    publication: float
    handover: float  # chips given from role to role
    whole: float  # publication, were every version sent whole
    coding: float  # of publication: deltas made and put in place
    bytes: float  # published, on average
    synchronous: float
    asynchronous: float  # infinite where the roles share their chips
    staleness: float  # at which the asynchronous one settles, in versions
    learning: float  # of the asynchronous one: the learner's side
    evaluation: float  # seconds of one evaluation
    checkpoint: float


class Factors(NamedTuple):
    """Happened over planned, by part, as a run has shown (`--like`)."""

    generation: float = 1.0
    verification: float = 1.0
    scoring: float = 1.0
    update: float = 1.0
    publication: float = 1.0


def stage_seconds(
    work: StageWork, at: Settled, rates: Rates, link: float | None, factors: Factors | None = None
) -> Parts:
    """Seconds per step of each part; `link` in bytes/s into each generator's node."""
    by = factors or Factors()
    load = work.load(rates)
    scoring = update = 0.0
    if work.learns:
        scoring = _scoring(work, at, load, rates) * by.scoring
        update = update_s(at.learners, load, work.updates, rates) * by.update
    if not work.samples:
        done = scoring + update
        nothing = (0.0, 0.0, 0.0, scoring, update, 0.0, 0.0, 0.0, 0.0, 0.0)
        return Parts(*nothing, done, done, 0.0, done, *_beside(work, at, rates))
    drawn = load._replace(
        prompts=load.prompts * work.drawn, completions=load.completions * work.drawn
    )
    shares = _shares(at.groups, drawn, rates)
    generation = by.generation * max(
        generation_s(each.replica, each.replicas, _part(drawn, share), rates)
        for each, share in zip(at.groups, shares, strict=True)
    )
    refilled = by.generation * _ahead_s(work, at.groups, shares, drawn, rates)
    judging = drawn.completions * work.verify_s / work.verifiers
    # Answers are judged as they come: what is left are the last of them, or all that is too much.
    verification = by.verification * max(work.verify_s, judging - generation)
    sent, over, whole, coding = _publication(work, at, link)
    published = (over + coding) * by.publication
    handover = _handover(work, at, rates)
    learned = scoring + update
    synchronous = generation + verification + learned + published + handover
    learning = learned + published
    asynchronous = max(refilled, learning, judging) if not at.roles.turns else float("inf")
    staleness = _staleness(work, at, drawn, rates, max(refilled, judging), learning)
    return Parts(
        generation,
        refilled,
        verification,
        scoring,
        update,
        published,
        handover,
        whole,
        coding,
        sent,
        synchronous,
        asynchronous,
        staleness,
        learning,
        *_beside(work, at, rates),
    )


def _scoring(work: StageWork, at: Settled, load: StepLoad, rates: Rates) -> float:
    """Log-probabilities of its own weights, and of its teachers, on the learner's chips."""
    seconds = work.scored * forward_s(at.learners, load, rates)
    for teacher in work.teachers:
        reading = at.learners._replace(shape=teacher.shape, adapter=0.0)
        seconds += teacher.share * forward_s(reading, load, rates)
    return seconds


def _part(load: StepLoad, share: float) -> StepLoad:
    return load._replace(prompts=load.prompts * share, completions=load.completions * share)


def _shares(groups: tuple[GeneratorGroup, ...], load: StepLoad, rates: Rates) -> list[float]:
    """Of the completions, what each kind of generators takes: as fast as it is."""
    if len(groups) == 1:
        return [1.0]
    speeds = [1.0 / refilled_s(each.replica, each.replicas, load, rates) for each in groups]
    return [each / sum(speeds) for each in speeds]


def _ahead_s(
    work: StageWork,
    groups: tuple[GeneratorGroup, ...],
    shares: list[float],
    load: StepLoad,
    rates: Rates,
) -> float:
    """Seconds for a step's completions where generators run ahead and slots are refilled.

    As many steps' completions are under way as staleness lets: rows that a slow chip has share out
    what reading the weights takes. Each kind of generators gives what it finishes a second.
    """
    ahead = max(1, work.staleness)
    finished = 0.0  # steps a second
    for each, share in zip(groups, shares, strict=True):
        seconds = refilled_s(each.replica, each.replicas, _part(load, share * ahead), rates)
        finished += share * ahead / seconds
    return 1.0 / finished


def _publication(
    work: StageWork, at: Settled, link: float | None
) -> tuple[float, float, float, float]:
    """-> bytes sent per step, seconds on the link, all seconds if every version were whole, and
    seconds to make and apply one.
    """
    adapter = at.learners.adapter
    size = (adapter or at.learners.shape.params) * 2.0
    if at.roles.turns or not work.learns:
        return 0.0, 0.0, 0.0, 0.0
    delta = size * (_ADAPTER_DELTA if adapter else work.changed * _INDEXED)
    deltas = work.whole_every - 1
    if deltas * delta > size:  # they end once they have come to a whole one
        deltas = math.ceil(size / delta)
    sent = (delta * deltas + size) / (deltas + 1)
    slowest = min([at.learners.chip.scale_out, *(each.stock.chip.scale_out for each in at.groups)])
    over = link or slowest
    nodes = max(1.0, at.learners.chips / at.learners.chip.domain)
    coding = size / (_ENCODED * _THREADS * nodes) + size / (_APPLIED * _THREADS * _sides(at))
    seconds = publication_s(sent, over, _LATENCY_S)
    return sent, seconds, publication_s(size, over, _LATENCY_S) + coding, coding


def _sides(at: Settled) -> float:
    """Nodes that put one copy of the weights in place together."""
    return min(max(1.0, each.replica.chips / each.stock.chip.domain) for each in at.groups)


def _handover(work: StageWork, at: Settled, rates: Rates) -> float:
    """Where one set of chips has both roles: engine out, learner in, weights across.

    On one chip it is the same process and the same memory, and there is nothing to hand over.
    """
    if not at.roles.turns or not work.learns or at.learners.chips == 1:
        return 0.0
    return rates.step_s + rates.step_s_per_gb * at.learners.shape.params * 2.0 / 1e9


def _staleness(
    work: StageWork, at: Settled, load: StepLoad, rates: Rates, generating: float, learning: float
) -> float:
    """Versions that groups are behind when they are used, on average (Little's law).

    What is under way and what waits, over what a step uses. Where generators are slower nothing
    waits; where the learner is, they fill what the cap on staleness lets them.
    """
    if at.roles.turns or work.staleness == 0:
        return 0.0
    step = max(generating, learning)
    lengths = load.lengths
    context = load.prompt_tokens + second_moment(lengths) / (2 * lengths.mean)
    latency = 0.0
    for each in at.groups:
        rows = min(each.replica.slots, load.completions * work.staleness / each.replicas)
        token = decode_s(each.replica, max(1.0, rows), context, rates)
        # A group is used when its longest completion is there.
        latency = max(latency, min(lengths.longest, 2 * lengths.mean) * token)
    flying = (latency + work.verify_s) / step
    if generating >= learning:
        return min(float(work.staleness), flying + 0.5)
    return float(work.staleness)


def _beside(work: StageWork, at: Settled, rates: Rates) -> tuple[float, float]:
    """Seconds of one evaluation, and of one checkpoint."""
    written = (at.learners.adapter or at.learners.shape.params) * _KEPT_BYTES / _STORED
    if not work.evaluations or not at.groups:
        return 0.0, written
    asked = work.evaluation(rates)
    shares = _shares(at.groups, asked, rates)
    seconds = max(
        generation_s(each.replica, each.replicas, _part(asked, share), rates)
        for each, share in zip(at.groups, shares, strict=True)
    )
    return seconds + work.verify_s * work.evaluated / work.verifiers, written


def stage_hours(work: StageWork, parts: Parts, synchronous: bool) -> float:
    step = parts.synchronous if synchronous else parts.asynchronous
    beside = work.evaluations * parts.evaluation + work.checkpoints * parts.checkpoint
    return (work.steps * step + beside) / 3600.0
