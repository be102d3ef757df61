"""What is measured, under the names of vLLM, so that dashboards made for it show it.

handlers ──begun, first, more, ended──> Measured ──/metrics──> Prometheus text
Replicas.facts, waiting ────────────────^ (read when asked)
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from interlock.workers.replicas.base import Replicas

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)
_LONG = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 600.0)


class Measured:
    """A registry of its own: what another library counts in this process is not told."""

    def __init__(self, model: str, replicas: Callable[[], Replicas | None]) -> None:
        self._registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, what, ["model_name"], registry=self._registry, buckets=buckets)
            return made.labels(model)

        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, ["model_name"], registry=self._registry).labels(model)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens that were drawn")
        self.first = histogram("vllm:time_to_first_token_seconds", "To the first token", _SECONDS)
        self.between = histogram("vllm:inter_token_latency_seconds", "Between tokens", _SECONDS)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "Whole answers", _LONG)
        self._ended = Counter(
            "vllm:request_success",
            "Choices by how they ended",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._model = model
        self._registry.register(_OfReplicas(model, replicas))

    def finished(self, reason: str) -> None:
        """A choice ended: "stop", "length", "abort" or "error"."""
        self._ended.labels(self._model, reason).inc()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class Timing:
    """The times of one request."""

    def __init__(self, measured: Measured) -> None:
        self._measured, self.began = measured, time.monotonic()
        self._last: dict[tuple[int, int], float] = {}

    def drew(self, choice: tuple[int, int], tokens: int) -> None:
        """Some tokens of a choice came."""
        now = time.monotonic()
        if (last := self._last.get(choice)) is not None:
            self._measured.between.observe(now - last)
        elif not self._last:
            self._measured.first.observe(now - self.began)
        self._last[choice] = now
        self._measured.generation_tokens.inc(tokens)

    def ended(self) -> float:
        """-> seconds since it began"""
        seconds = time.monotonic() - self.began
        self._measured.whole.observe(seconds)
        return seconds


class _OfReplicas(Collector):
    """Read off the replicas at the moment of asking."""

    def __init__(self, model: str, replicas: Callable[[], Replicas | None]) -> None:
        self._model, self._replicas = model, replicas

    def collect(self) -> Iterator[Metric]:
        replicas = self._replicas()
        facts = [] if replicas is None else replicas.facts()
        waiting = 0 if replicas is None else replicas.waiting
        running = sum(each.running for each in facts)
        slots = sum(each.slots for each in facts if each.state.serves)
        yield self._gauge("num_requests_running", "Sequences in the engines", running)
        yield self._gauge("num_requests_waiting", "Sequences that no engine was given", waiting)
        share = running / slots if slots else 0.0
        yield self._gauge("kv_cache_usage_perc", "Share of the slots that are taken", share)
        labels = ["model_name", "replica"]
        for name, what in _COUNTED.items():
            family = CounterMetricFamily(f"interlock:{name}", what, labels=labels)
            for each in facts:
                family.add_metric([self._model, each.name], getattr(each, name))
            yield family
        told = "1: it serves, or ends what it has"
        up = GaugeMetricFamily("interlock:replica_up", told, labels=labels)
        for each in facts:
            up.add_metric([self._model, each.name], float(each.state.serves))
        yield up

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", what, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


_COUNTED = {
    "restarts": "Times that a replica was started again",
    "served": "Generations that it ended",
    "cached_tokens": "Tokens of prompts found in its prefix cache",
}
