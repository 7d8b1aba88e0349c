"""What the server counts, in Prometheus' text form."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from openmimo.serving.service import EngineService

# From a nano model's milliseconds to a long answer's minutes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


disable_created_metrics()  # a time stamp beside every counter


class Metrics:
    """Counters of the HTTP side, and the engine's read at each scrape."""

    def __init__(self, service: EngineService) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineMetrics(service))
        self._requests = Counter(
            "openmimo_requests",
            "API requests that ended, by endpoint and outcome: completed, disconnected, or the "
            "HTTP status of the fault",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "openmimo_time_to_first_token_seconds",
            "From the arrival of a streamed request to its first text",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._latency = Histogram(
            "openmimo_request_seconds",
            "From the arrival of a request to the end of its reply, if it was completed",
            buckets=SECONDS,
            registry=self._registry,
        )

    def start(self, endpoint: str) -> Clock:
        """The clock of a request that arrives now."""
        return Clock(self, endpoint)

    def text(self) -> bytes:
        """All of it, for a scrape."""
        return generate_latest(self._registry)


class Clock:
    """Times one request; its outcome is counted once."""

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self._metrics, self._endpoint = metrics, endpoint
        self._began = time.monotonic()
        self._waiting = True

    def first_token(self) -> None:
        """The first text goes out now; later calls change nothing."""
        if self._waiting:
            self._metrics._first_token.observe(time.monotonic() - self._began)
        self._waiting = False

    def end(self, outcome: str) -> None:
        """The request has ended."""
        self._metrics._requests.labels(self._endpoint, outcome).inc()
        if outcome == "completed":
            self._metrics._latency.observe(time.monotonic() - self._began)


class _EngineMetrics(Collector):
    def __init__(self, service: EngineService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        service, stats = self._service, self._service.stats
        gauges = {
            "slots": ("Requests that run at once", stats.slots),
            "active": ("Requests that run", stats.active),
            "waiting": ("Requests that wait for a slot", service.in_flight - stats.active),
            "cache_bytes": ("Memory of the caches when every slot is full", stats.cache_bytes),
            "tokens_per_second": (
                "Tokens that all requests together gained, over the last seconds",
                service.tokens_per_second,
            ),
            "tokens_per_forward": (
                "Tokens that a request gains by one forward pass of the trunk, over all so far",
                stats.tokens_per_forward,
            ),
            "drafting": ("MTP drafts of the latest step", stats.drafting),
            "saved_seconds": ("Time that drafts have saved, estimated", stats.saved_seconds),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"openmimo_{name}", text, value=max(value, 0))
        counters = {
            "generated_tokens": ("Tokens generated", stats.generated_tokens),
            "prefilled_tokens": ("Prompt tokens computed", stats.prefilled_tokens),
            "shared_tokens": ("Prompt tokens taken from another request", stats.shared_tokens),
            "decode_steps": ("Forward passes over all running requests", stats.steps),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"openmimo_{name}", text, value=value)
        drafts = {
            "offered": ("MTP drafts inside answers, by layer", stats.drafts_offered),
            "accepted": ("Those that were accepted", stats.drafts_accepted),
        }
        for name, (text, values) in drafts.items():
            family = CounterMetricFamily(f"openmimo_mtp_drafts_{name}", text, labels=["layer"])
            for layer, value in enumerate(values):
                family.add_metric([str(layer)], value)
            yield family
        rates = GaugeMetricFamily(
            "openmimo_mtp_acceptance", "Share of the drafts accepted, by layer", labels=["layer"]
        )
        for layer, share in enumerate(stats.acceptance):
            rates.add_metric([str(layer)], share)
        yield rates
