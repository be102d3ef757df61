"""What the generators of a run amount to, read off the workers in its metrics.

    StepMetrics … ──> WorkerRow (one of the table), increments, rates, mismatch by staleness

Counters (tokens, groups, …) are cumulative while one process coordinates the run, and begin anew
when it is resumed: totals are sums of increments, and a counter that fell began at 0. Draws nothing
and needs no plotly.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from interlock.mismatch import Mismatch
from interlock.records.metrics import WorkerMetrics, WorkerState
from interlock.report.summary import Metrics, total

Told = TypeVar("Told")
Counter = Callable[[WorkerMetrics], float]


class WorkerRow(NamedTuple):
    """One row of the table; None where nothing was logged."""

    name: str
    device: str | None
    engine: str | None
    dtype: str | None
    trust: str | None  # of its certificate; "cpu", which needs none; or "unqualified"
    state: WorkerState  # at the end
    version: int | None  # of its weights, at the end
    rate: float | None  # tokens per second of generation
    k3: float | None  # nats per token, mean over the tokens of the lowest staleness it had
    staleness: int | None  # that lowest staleness
    canary_k3: float | None  # the last
    groups: float
    dropped: float
    redispatched: float
    refused: float
    fetched_bytes: float
    restarts: float


def names(metrics: Metrics) -> list[str]:
    """Every worker of the run, by its first appearance."""
    return list(dict.fromkeys(name for line in metrics for name in line.workers))


def workers(metrics: Metrics) -> list[WorkerRow]:
    return [_worker(metrics, name) for name in names(metrics)]


def increments(metrics: Metrics, name: str, counter: Counter) -> list[float | None]:
    """How much a cumulative counter of a worker grew in each step; None where it has none."""
    grown: list[float | None] = []
    before = 0.0
    for line in metrics:
        if (own := line.workers.get(name)) is None:
            grown.append(None)
            continue
        value = counter(own)
        grown.append(value - before if value >= before else value)
        before = value
    return grown


def rates(metrics: Metrics, name: str) -> list[float | None]:
    """Tokens per second of generation in each step; None where it generated nothing."""
    tokens = increments(metrics, name, lambda own: own.tokens)
    seconds = increments(metrics, name, lambda own: own.seconds_generating)
    return [_ratio(*pair) for pair in zip(tokens, seconds, strict=True)]


def mean_mismatch(metrics: Metrics, name: str) -> dict[int, Mismatch]:
    """Staleness -> mismatch of all tokens of one worker, by rising staleness."""
    found: dict[int, Mismatch] = {}
    for line in metrics:
        if own := line.workers.get(name):
            for staleness, gap in own.mismatch.items():
                found[staleness] = found.get(staleness, Mismatch()) + gap
    return {staleness: found[staleness] for staleness in sorted(found)}


def loading_share(metrics: Metrics) -> list[float | None]:
    """The share of the workers' time in each step that went to fetching, loading and proving."""
    grown = [increments(metrics, name, lambda own: own.seconds_loading) for name in names(metrics)]
    shares: list[float | None] = []
    for index, line in enumerate(metrics):
        loading = [value for own in grown if (value := own[index]) is not None]
        seconds = line.seconds.step
        spent = math.fsum(loading)
        shares.append(_ratio(spent, seconds * len(loading)) if seconds and loading else None)
    return shares


def summary(metrics: Metrics) -> dict[str, str]:
    """The facts above the table of workers."""
    lines = [line for line in metrics if line.workers]
    found = workers(lines)
    waited = _ratio(total(lines, lambda m: m.seconds.wait), total(lines, lambda m: m.seconds.step))
    staleness = [m.rollout.staleness_mean for m in lines if m.rollout.staleness_mean is not None]
    stale = total(lines, lambda m: m.rollout.groups_stale)
    aside = total(lines, lambda m: m.rollout.groups_set_aside)
    unqualified = sum(worker.trust == "unqualified" for worker in found)
    size = total(lines, lambda m: m.published.bytes)
    facts = {
        "workers": f"{len(found):,}",
        "at work at the end": f"{sum(worker.state.at_work for worker in found):,}",
        "without a certificate": f"{unqualified:,}" if unqualified else "",
        "restarts": f"{sum(worker.restarts for worker in found):,.0f}" if found else "",
        "mean staleness": f"{math.fsum(staleness) / len(staleness):.2f}" if staleness else "",
        "groups too stale": "" if stale is None else f"{stale:,.0f}",
        "problems set aside": "" if aside is None else f"{aside:,.0f}",
        "learner waited": "" if waited is None else f"{waited:.0%} of the time",
        "published": "" if size is None else f"{megabytes(size)} MB in {_versions(lines)}",
    }
    return {name: value for name, value in facts.items() if value}


def megabytes(size: float) -> str:
    """Bytes as MB (10^6), with decimals where they matter."""
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def _versions(lines: Metrics) -> str:
    counts = {
        "anchor": sum(line.published.anchors for line in lines),
        "delta": sum(line.published.deltas for line in lines),
    }
    return ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts.items())


def _worker(metrics: Metrics, name: str) -> WorkerRow:
    seen = [own for line in metrics if (own := line.workers.get(name))]
    by_staleness = mean_mismatch(metrics, name)
    lowest = min(by_staleness, default=None)

    def summed(counter: Counter) -> float:
        return math.fsum(grown or 0.0 for grown in increments(metrics, name, counter))

    return WorkerRow(
        name=name,
        device=_last(own.device for own in seen),
        engine=_last(own.engine for own in seen),
        dtype=_last(own.dtype for own in seen),
        trust=_last(own.trust for own in seen),
        state=seen[-1].state,
        version=seen[-1].weight_version,
        rate=_ratio(summed(lambda own: own.tokens), summed(lambda own: own.seconds_generating)),
        k3=None if lowest is None else by_staleness[lowest].k3,
        staleness=lowest,
        canary_k3=_last(own.canary_k3 for own in seen),
        groups=summed(lambda own: own.groups),
        dropped=summed(lambda own: own.dropped),
        redispatched=summed(lambda own: own.redispatched),
        refused=summed(lambda own: own.refused),
        fetched_bytes=summed(lambda own: own.fetched_bytes),
        restarts=summed(lambda own: own.restarts),
    )


def _last(told: Iterable[Told | None]) -> Told | None:
    """The last that was told: a worker that is restarting has not said yet."""
    return next((value for value in reversed(list(told)) if value is not None), None)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
