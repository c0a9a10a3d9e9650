"""Prometheus metrics of a server, in a registry of its own; what concerns a model is labelled by its name."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fathom.engine.request import EngineStats

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LOAD_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LABEL = ("model",)
_RATE_WINDOW = 64
MAX_RETRY_SECONDS = 60
COUNTERS: Mapping[str, tuple[str, str]] = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens, cached ones included."),
    "cached_tokens": ("cached_tokens", "Prompt tokens found in the prefix cache."),
    "generated_tokens": ("generated_tokens", "Generated tokens."),
    "preemptions": ("preemptions", "Times a running request was preempted."),
    "draft_tokens": ("drafted", "Draft tokens of speculative decoding."),
    "draft_accepted_tokens": ("accepted", "Draft tokens that were accepted."),
    "engine_steps": ("steps", "Forward passes."),
}
GAUGES: Mapping[str, tuple[str, str]] = {
    "requests_running": ("running", "Requests that hold pages."),
    "requests_waiting": ("waiting", "Requests in the queue."),
    "pages_total": ("pages_total", "Pages of the cache."),
    "pages_used": ("pages_used", "Pages that running requests hold."),
    "pages_cached": ("pages_cached", "Pages kept by the prefix cache, which no request holds."),
}
CLOSE_REASONS = ("evicted", "head_timeout", "body_timeout", "malformed", "refused", "write_timeout")
StatsOfModels = Callable[[], Mapping[str, EngineStats]]


class _EngineCollector(Collector):
    """Collects the engines' counters at each scrape."""

    def __init__(self, stats: StatsOfModels) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, (field, help_text) in COUNTERS.items():
            counter = CounterMetricFamily(f"fathom_{name}", help_text, labels=_LABEL)
            for model, of_model in stats.items():
                counter.add_metric([model], getattr(of_model, field))
            yield counter
        for name, (field, help_text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"fathom_{name}", help_text, labels=_LABEL)
            for model, of_model in stats.items():
                gauge.add_metric([model], getattr(of_model, field))
            yield gauge


class LatencyMetrics:
    """The latencies of one model's answers."""

    def __init__(self, time_to_first_token: Histogram, inter_token_latency: Histogram) -> None:
        self.time_to_first_token, self.inter_token_latency = time_to_first_token, inter_token_latency


class Metrics:
    """Metrics of one server. All methods are called on the event loop.

    ``stats`` returns the engines' counters by the name of their model, ``stalled_seconds`` how long the worst of them
    has made no progress.
    """

    def __init__(self, stats: StatsOfModels, stalled_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.registry = CollectorRegistry()
        stalled = Gauge(
            "fathom_engine_stalled_seconds",
            "Seconds since the latest step of an engine that has requests, the longest; 0 where none has any.",
            registry=self.registry,
        )
        stalled.set_function(stalled_seconds)
        self.registry.register(_EngineCollector(stats))
        self.requests = Counter("fathom_http_requests", "Responses sent.", ("route", "status"), registry=self.registry)
        self._time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to a choice's first token.", _TTFT_BUCKETS
        )
        self._inter_token_latency = self._histogram(
            "time_per_token_seconds",
            "Between two tokens of a choice; the mean over tokens that arrive together.",
            _ITL_BUCKETS,
        )
        self.load_seconds = self._histogram("model_load_seconds", "Loading a model.", _LOAD_BUCKETS)
        self.load_failures = Counter("fathom_model_load_failures", "Loads that failed.", _LABEL, registry=self.registry)
        self.evictions = Counter(
            "fathom_model_evictions", "Times a model was unloaded.", _LABEL, registry=self.registry
        )
        self.model_bytes = Gauge(
            "fathom_model_bytes",
            "Weights and cache of a model; 0 while it is not loaded.",
            _LABEL,
            registry=self.registry,
        )
        self.connections_open = Gauge("fathom_connections_open", "Connections that are open.", registry=self.registry)
        self.connections_closed = Counter(
            "fathom_connections_closed",
            "Connections that were closed for a limit or a malformed request.",
            ("reason",),
            registry=self.registry,
        )
        for reason in CLOSE_REASONS:
            self.connections_closed.labels(reason)
        self.key_requests = self._key_counter("requests", "Requests of an API key that were admitted.")
        self.key_prompt_tokens = self._key_counter("prompt_tokens", "Prompt tokens of an API key's requests.")
        self.key_generated_tokens = self._key_counter("generated_tokens", "Tokens generated for an API key.")
        self.key_limited = self._key_counter("limited", "Requests refused for a limit of their key.", "limit")
        self.key_in_progress = Gauge(
            "fathom_key_requests_in_progress", "An API key's requests in progress.", ("key",), registry=self.registry
        )
        self._gauge = Gauge("fathom_http_requests_in_progress", "Requests in progress.", registry=self.registry)
        self.in_progress = 0
        self._ends: deque[float] = deque(maxlen=_RATE_WINDOW)

    def latency(self, model: str) -> LatencyMetrics:
        """Return the latencies of one model's answers."""
        return LatencyMetrics(self._time_to_first_token.labels(model), self._inter_token_latency.labels(model))

    def begin(self) -> None:
        """Count a request that was admitted."""
        self.in_progress += 1
        self._gauge.set(self.in_progress)

    def end(self, *, answered: bool = True) -> None:
        """Count its end; ``answered`` unless it never reached the engine."""
        self.in_progress -= 1
        self._gauge.set(self.in_progress)
        if answered:
            self._ends.append(time.monotonic())

    def retry_after(self, waiting: int) -> int:
        """Estimate the seconds until ``waiting`` requests are done from the latest completions; 1 to 60."""
        if len(self._ends) < 2:
            return 1
        elapsed = time.monotonic() - self._ends[0]
        return max(1, min(math.ceil(waiting * elapsed / len(self._ends)), MAX_RETRY_SECONDS))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _key_counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"fathom_key_{name}", help_text, ("key", *labels), registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fathom_{name}", help_text, _LABEL, buckets=buckets, registry=self.registry)


def sum_stats(past: EngineStats, now: EngineStats) -> EngineStats:
    """Return an engine's numbers now, with the counts of the engines before it added."""
    fields = [field for field, _ in COUNTERS.values()]
    return dataclasses.replace(now, **{name: getattr(past, name) + getattr(now, name) for name in fields})
