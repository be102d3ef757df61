"""Measures each generator against the learner, and takes out the one whose numbers are off.

Mismatch at staleness 0 is numerics alone; at staleness n the learner has moved n versions on, which
adds the same drift for every worker. So a worker is judged on its fresh tokens, and on stale ones
only by what it has more than the best of the others there. (The canary of every weight version,
rollout/judge.py, sees numerics without drift, at other tokens.)
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from statistics import fmean
from typing import Any

from msgspec import to_builtins

from interlock.config import Grpo
from interlock.errors import TrainingError
from interlock.learner.learner import Mismatch, StepResult
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Stage
from interlock.records import ScoredGroup
from interlock.rollout.generators import Published

_TOKENS = 128  # fewer say nothing

Buckets = dict[str, dict[int, Mismatch]]  # worker -> staleness -> mismatch


def label(worker: str, staleness: int) -> str:
    """Under which a group's mismatch is summed up."""
    return f"{worker}/{staleness}"


def buckets(updates: Sequence[StepResult]) -> Buckets:
    """The mismatch of a step by worker and staleness."""
    found: dict[str, dict[int, list[Mismatch]]] = {}
    for update in updates:
        for name, mismatch in update.mismatch.items():
            worker, _, staleness = name.rpartition("/")
            found.setdefault(worker, {}).setdefault(int(staleness), []).append(mismatch)
    return {
        worker: {staleness: reduce(add, parts) for staleness, parts in sorted(by.items())}
        for worker, by in found.items()
    }


def numerics(measured: Mapping[str, Mapping[int, Mismatch]], worker: str) -> float | None:
    """The k3 of a worker that its own numerics explain; None when the step cannot tell."""
    for staleness, own in sorted(measured[worker].items()):
        if own.tokens < _TOKENS:
            continue
        if staleness == 0:
            return own.k3
        others = [
            by[staleness].k3
            for name, by in measured.items()
            if name != worker and staleness in by and by[staleness].tokens >= _TOKENS
        ]
        if others:
            return max(0.0, own.k3 - min(others))
    return None


def fleet_metrics(
    stage: Stage[Grpo],
    step: int,
    rollouts: Rollouts,
    scored: Sequence[ScoredGroup],
    updates: Sequence[StepResult],
    published: Published,
) -> dict[str, Any]:
    """What is logged of the generators; puts those that are out of the guard's band in quarantine.

    Raises TrainingError when that leaves an inline run without its generator.
    """
    assert stage.generators is not None
    measured = buckets(updates)
    _judge(stage, step, measured)
    workers = {name: to_builtins(facts) for name, facts in stage.generators.facts().items()}
    for name, facts in workers.items():
        by = measured.get(name, {})
        facts["mismatch"] = {str(staleness): to_builtins(found) for staleness, found in by.items()}
    behind = [rollouts.staleness(group.group) for group in scored]
    return {
        "workers": workers,
        "staleness_mean": fmean(behind),
        "staleness_max": max(behind),
        "groups_stale": rollouts.stale,
        "groups_set_aside": rollouts.set_aside,
        "published_bytes": published.bytes,
        "published_kind": published.kind,
    }


def _judge(stage: Stage[Grpo], step: int, measured: Buckets) -> None:
    assert stage.generators is not None
    sampling = stage.settings.sampling
    if sampling.top_k or sampling.top_p < 1:
        return  # the sampler's distribution is another one on purpose: only the canary tells
    guard, known = stage.recipe.guard, stage.generators.facts()
    for worker in measured.keys() & known.keys() - stage.generators.quarantined():
        k3 = numerics(measured, worker)
        if k3 is None or k3 <= guard.warn:
            continue
        limits = f"k3 {k3:.2g} against the learner at step {step}, more than"
        if k3 <= guard.quarantine:
            message = f"{worker}: {limits} {guard.warn:g}"
            stage.event("worker_mismatch", message, worker=worker)
            continue
        if stage.recipe.fleet.kind == "inline":
            raise TrainingError(
                f"{worker}: {limits} {guard.quarantine:g}; its numbers are off, and there is no "
                "other: give it a wider dtype, or raise guard.quarantine"
            )
        stage.generators.quarantine(worker, f"{limits} {guard.quarantine:g}")
