"""What the generators of a run amount to, read off the "workers" of its metrics lines.

    {"step": …, "workers": {name: {"state", "tokens", "mismatch", …}}} ──> Worker, increments, k3

Counters ("tokens", "groups", …) are cumulative while one process coordinates the run, and begin
anew when it is resumed: totals are sums of increments, and a counter that fell began at 0. Whatever
is missing or malformed in a line reads as unknown. Draws nothing and needs no plotly.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from interlock.report.summary import Metrics, number

AT_WORK = frozenset({"ready", "loading", "generating"})
_COUNTERS = (
    "tokens", "seconds_generating", "groups", "dropped", "redispatched", "refused",
    "fetched_bytes", "restarts",
)  # fmt: skip
Facts = dict[str, Any]  # of one worker in one line


class Worker(NamedTuple):
    """One row of the table; None where nothing was logged."""

    name: str
    device: str | None
    engine: str | None
    dtype: str | None
    trust: str | None  # of its certificate; "cpu", which needs none; or "unqualified"
    state: str | None  # at the end
    version: float | None  # of its weights, at the end
    rate: float | None  # tokens per second of generation
    k3: float | None  # nats per token, mean over the tokens of the lowest staleness it had
    staleness: int | None  # that lowest staleness
    canary_k3: float | None  # the last
    groups: float | None
    dropped: float | None
    redispatched: float | None
    refused: float | None
    fetched_bytes: float | None
    restarts: float | None


def facts_of(line: dict[str, Any], name: str) -> Facts | None:
    """What a line says of a worker; None when it does not mention it."""
    found = _workers(line).get(name)
    return found if isinstance(found, dict) else None


def names(metrics: Metrics) -> list[str]:
    """Every worker of the run, by its first appearance."""
    return list(dict.fromkeys(name for line in metrics for name in _workers(line)))


def workers(metrics: Metrics) -> list[Worker]:
    return [_worker(metrics, name) for name in names(metrics)]


def increments(metrics: Metrics, name: str, key: str) -> list[float | None]:
    """How much a cumulative counter of a worker grew in each line; None where it has none."""
    grown: list[float | None] = []
    before = 0.0
    for line in metrics:
        value = number(facts_of(line, name) or {}, key)
        if value is None:
            grown.append(None)
            continue
        grown.append(value - before if value >= before else value)
        before = value
    return grown


def rates(metrics: Metrics, name: str) -> list[float | None]:
    """Tokens per second of generation in each line; None where it generated nothing."""
    tokens = increments(metrics, name, "tokens")
    seconds = increments(metrics, name, "seconds_generating")
    return [_ratio(*pair) for pair in zip(tokens, seconds, strict=True)]


def mismatch(facts: Facts) -> dict[int, tuple[float, float]]:
    """Staleness -> (tokens, k3) of one worker in one line, by rising staleness."""
    found = facts.get("mismatch")
    buckets: dict[int, tuple[float, float]] = {}
    for key, bucket in found.items() if isinstance(found, dict) else ():
        if isinstance(bucket, dict) and re.fullmatch(r"[0-9]{1,9}", key):
            tokens, k3 = number(bucket, "tokens"), number(bucket, "k3")
            if tokens and k3 is not None:
                buckets[int(key)] = (tokens, k3)
    return dict(sorted(buckets.items()))


def mean_mismatch(metrics: Metrics, name: str) -> dict[int, float]:
    """Staleness -> k3 of one worker, the mean over all its tokens, by rising staleness."""
    tokens: dict[int, float] = {}
    nats: dict[int, float] = {}
    for line in metrics:
        for staleness, (count, k3) in mismatch(facts_of(line, name) or {}).items():
            tokens[staleness] = tokens.get(staleness, 0.0) + count
            nats[staleness] = nats.get(staleness, 0.0) + count * k3
    return {staleness: nats[staleness] / tokens[staleness] for staleness in sorted(tokens)}


def loading_share(metrics: Metrics) -> list[float | None]:
    """The share of the workers' time in each step that went to fetching, loading and proving."""
    grown = [increments(metrics, name, "seconds_loading") for name in names(metrics)]
    shares: list[float | None] = []
    for index, line in enumerate(metrics):
        loading = [own[index] for own in grown if own[index] is not None]
        seconds = number(line, "seconds_step")
        spent = math.fsum(value for value in loading if value is not None)
        shares.append(_ratio(spent, seconds * len(loading)) if seconds and loading else None)
    return shares


def summary(metrics: Metrics) -> dict[str, str]:
    """The facts above the table of workers."""
    lines = [line for line in metrics if _workers(line)]
    found = workers(lines)
    waited = _ratio(_sum(lines, "seconds_wait"), _sum(lines, "seconds_step"))
    sent = [line for line in lines if number(line, "published_bytes") is not None]
    staleness = [value for line in lines if (value := number(line, "staleness_mean")) is not None]
    stale, aside = _sum(lines, "groups_stale"), _sum(lines, "groups_set_aside")
    unqualified = sum(worker.trust == "unqualified" for worker in found)
    restarts = [worker.restarts for worker in found if worker.restarts is not None]
    size = _sum(sent, "published_bytes")
    facts = {
        "workers": f"{len(found):,}",
        "at work at the end": f"{sum(worker.state in AT_WORK for worker in found):,}",
        "without a certificate": f"{unqualified:,}" if unqualified else "",
        "restarts": f"{sum(restarts):,.0f}" if restarts else "",
        "mean staleness": f"{math.fsum(staleness) / len(staleness):.2f}" if staleness else "",
        "groups too stale": "" if stale is None else f"{stale:,.0f}",
        "problems set aside": "" if aside is None else f"{aside:,.0f}",
        "learner waited": "" if waited is None else f"{waited:.0%} of the time",
        "published": "" if size is None else f"{megabytes(size)} MB in {_versions(sent)}",
    }
    return {name: value for name, value in facts.items() if value}


def megabytes(size: float) -> str:
    """Bytes as MB (10^6), with decimals where they matter."""
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def published(line: dict[str, Any], kind: str) -> int:
    """How many versions of this kind, "anchor" or "delta", a step published."""
    counts = line.get("published")
    return int(number(counts, kind) or 0) if isinstance(counts, dict) else 0


def _versions(lines: Metrics) -> str:
    counts = [(kind, sum(published(line, kind) for line in lines)) for kind in ("anchor", "delta")]
    return ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts)


def _workers(line: dict[str, Any]) -> dict[str, Any]:
    found = line.get("workers")
    return found if isinstance(found, dict) else {}


def _worker(metrics: Metrics, name: str) -> Worker:
    seen = [facts for line in metrics if (facts := facts_of(line, name)) is not None]
    last = seen[-1] if seen else {}
    by_staleness = mean_mismatch(metrics, name)
    lowest = min(by_staleness, default=None)
    canaries = [value for facts in seen if (value := number(facts, "canary_k3")) is not None]
    tokens, seconds, groups, dropped, redispatched, refused, fetched, restarts = (
        _total(increments(metrics, name, key)) for key in _COUNTERS
    )
    return Worker(
        name=name,
        device=_text(seen, "device"),
        engine=_text(seen, "engine"),
        dtype=_text(seen, "dtype"),
        trust=_text(seen, "trust"),
        state=_text(seen[-1:], "state"),
        version=number(last, "weight_version"),
        rate=_ratio(tokens, seconds),
        k3=None if lowest is None else by_staleness[lowest],
        staleness=lowest,
        canary_k3=canaries[-1] if canaries else None,
        groups=groups,
        dropped=dropped,
        redispatched=redispatched,
        refused=refused,
        fetched_bytes=fetched,
        restarts=restarts,
    )


def _text(seen: Sequence[Facts], key: str) -> str | None:
    """The last that was told: a worker that is restarting has not said yet."""
    told = [facts[key] for facts in seen if facts.get(key) is not None]
    return str(told[-1]) if told else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _sum(metrics: Metrics, key: str) -> float | None:
    return _total([number(line, key) for line in metrics])


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
