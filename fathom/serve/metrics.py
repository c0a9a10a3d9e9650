"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fathom.engine.request import EngineStats

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_RATE_WINDOW = 64
MAX_RETRY_SECONDS = 60


class _EngineCollector(Collector):
    """Collects the engine's counters at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, help_text, value in (
            ("prompt_tokens", "Prompt tokens, cached ones included.", stats.prompt_tokens),
            ("cached_tokens", "Prompt tokens found in the prefix cache.", stats.cached_tokens),
            ("generated_tokens", "Generated tokens.", stats.generated_tokens),
            ("preemptions", "Times a running request was preempted.", stats.preemptions),
            ("draft_tokens", "Draft tokens of speculative decoding.", stats.drafted),
            ("draft_accepted_tokens", "Draft tokens that were accepted.", stats.accepted),
            ("engine_steps", "Forward passes.", stats.steps),
        ):
            yield CounterMetricFamily(f"fathom_{name}", help_text, value=value)
        for name, help_text, value in (
            ("requests_running", "Requests that hold pages.", stats.running),
            ("requests_waiting", "Requests in the queue.", stats.waiting),
            ("pages_total", "Pages of the cache.", stats.pages_total),
            ("pages_used", "Pages that running requests hold.", stats.pages_used),
            ("pages_cached", "Pages kept by the prefix cache, which no request holds.", stats.pages_cached),
        ):
            yield GaugeMetricFamily(f"fathom_{name}", help_text, value=value)


class Metrics:
    """Metrics of one server. All methods are called on the event loop."""

    def __init__(self, stats: Callable[[], EngineStats], stalled_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.registry = CollectorRegistry()
        stalled = Gauge(
            "fathom_engine_stalled_seconds",
            "Seconds since the engine's latest step while it has requests; 0 when it has none.",
            registry=self.registry,
        )
        stalled.set_function(stalled_seconds)
        self.registry.register(_EngineCollector(stats))
        self.requests = Counter("fathom_http_requests", "Responses sent.", ("route", "status"), registry=self.registry)
        self.time_to_first_token = Histogram(
            "fathom_time_to_first_token_seconds",
            "From a request's arrival to a choice's first token.",
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self.inter_token_latency = Histogram(
            "fathom_time_per_token_seconds",
            "Between two tokens of a choice; the mean over tokens that arrive together.",
            buckets=_ITL_BUCKETS,
            registry=self.registry,
        )
        self._gauge = Gauge("fathom_http_requests_in_progress", "Requests in progress.", registry=self.registry)
        self.in_progress = 0
        self._ends: deque[float] = deque(maxlen=_RATE_WINDOW)

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
