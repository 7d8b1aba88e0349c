"""What the judge's service counts, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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

from openmimo.judge.judge import JudgeStats
from openmimo.judge.verdict import SolutionVerdict, Status

# From a short test's milliseconds to a long queue's minutes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

disable_created_metrics()  # a time stamp beside every counter


class Metrics:
    """Counters of the service, and the judge's own read at each scrape by `stats`."""

    def __init__(self, stats: Callable[[], JudgeStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_JudgeMetrics(stats))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"openmimo_judge_{name}", text, labels, registry=self._registry)

        text = "Requests that ended: completed, disconnected, or the HTTP status of the fault"
        self._requests = counter("requests", text, "outcome")
        text = "Solutions judged: judge_error, or the status of the first test that is not ok"
        self._solutions = counter("solutions", text, "status")
        self._tests = counter("tests", "Tests judged", "status")
        self._cpu = counter("cpu_seconds", "CPU time of solutions, remembered verdicts included")
        self._latency = Histogram(
            "openmimo_judge_solution_seconds",
            "From a solution's arrival to its verdict",
            buckets=SECONDS,
            registry=self._registry,
        )

    def request(self, outcome: str) -> None:
        """A request has ended."""
        self._requests.labels(outcome).inc()

    def judged(self, verdict: SolutionVerdict, seconds: float) -> None:
        """A solution has its verdict, `seconds` after it came."""
        for test in verdict.tests:
            self._tests.labels(test.status).inc()
        bad = (test.status for test in verdict.tests if test.status is not Status.OK)
        status = Status.JUDGE_ERROR if verdict.judge_failed else next(bad, Status.OK)
        self._solutions.labels(status).inc()
        self._cpu.inc(verdict.cpu_seconds)
        self._latency.observe(seconds)

    def text(self) -> bytes:
        """All of it, for a scrape."""
        return generate_latest(self._registry)


class _JudgeMetrics(Collector):
    def __init__(self, stats: Callable[[], JudgeStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        stats = self._stats()
        gauges = {
            "workers": ("Solutions judged at once", stats.workers),
            "workers_alive": ("Those whose processes run", stats.alive),
            "waiting": ("Solutions that wait for a worker", stats.waiting),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"openmimo_judge_{name}", text, value=value)
        counters = {
            "cached": ("Solutions whose verdict was known, or on the way", stats.cached),
            "worker_restarts": ("Workers that were lost and replaced", stats.restarts),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"openmimo_judge_{name}", text, value=value)
