"""What a worker counts, and how Prometheus reads it.

Counting is a plain addition on the hot path; the exposition objects are made when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)


class Histogram:
    """Seconds, by bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        bounds = (*map(str, _BUCKETS), "+Inf")
        buckets = [(bounds[place], count) for place, count in enumerate(accumulate(self.counts))]
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class WorkerMetrics:
    """Counters of one worker. Written by its loop, its lease thread and its sweep thread, each its own fields."""

    def __init__(self) -> None:
        self.claimed = 0
        self.claims_late = 0  # given back unrun, also counted as claimed
        self.succeeded = 0
        self.failed = 0
        self.timed_out = 0  # also counted as failed
        self.released = 0
        self.skipped = 0  # their `when` was false
        self.run_seconds = Histogram()
        self.calls = 0
        self.call_failures = 0
        self.lock_timeouts = 0
        self.results_discarded = 0  # the fence was stale: somebody else has the step
        self.results_refused = 0  # by the database, and failed for that
        self.outcomes_unsure = 0  # stale after a call whose effect was unknown: recorded then, or lost
        self.leases_lost = 0
        self.renewals = 0
        self.renewal_failures = 0
        self.sweeps = 0
        self.repairs: dict[str, int] = {}
        self.threads_given_up = 0
        self.tasks_given_up = 0
        self.loop_blocked = 0
        self.steps_starved = 0
        self.hints_received = 0
        self.hints_sent = 0


class _Families(Collector):
    def __init__(self, metrics: WorkerMetrics, gauges: Callable[[], dict[str, float]], labels: dict[str, str]) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        counted = self._metrics
        info = GaugeMetricFamily("tasker_worker_info", "1, with what this worker is.", labels=list(self._labels))
        info.add_metric(list(self._labels.values()), 1)
        yield info
        steps = CounterMetricFamily(
            "tasker_worker_steps", "Attempts that ended in this worker, by outcome.", labels=["outcome"]
        )
        for outcome, count in (
            ("success", counted.succeeded),
            ("error", counted.failed),
            ("release", counted.released),
            ("skip", counted.skipped),
        ):
            steps.add_metric([outcome], count)
        yield steps
        for name, text, count in (
            ("steps_claimed", "Steps claimed.", counted.claimed),
            ("claims_late", "Claims given back unrun, because their answer came too late.", counted.claims_late),
            ("step_timeouts", "Attempts that exceeded their timeout.", counted.timed_out),
            ("calls", "Calls of the engine's claim and settle functions.", counted.calls),
            ("call_failures", "Such calls that failed and were repeated.", counted.call_failures),
            (
                "lock_timeouts",
                "Settlements that met a task which another session held, and wait for it.",
                counted.lock_timeouts,
            ),
            ("results_discarded", "Results dropped because the lease was lost.", counted.results_discarded),
            ("results_refused", "Results that the database refused.", counted.results_refused),
            (
                "outcomes_unsure",
                "Outcomes found recorded, or lost, after a call of unknown effect.",
                counted.outcomes_unsure,
            ),
            ("leases_lost", "Leases lost while their handler ran.", counted.leases_lost),
            ("renewals", "Lease renewals.", counted.renewals),
            ("renewal_failures", "Lease renewals that failed.", counted.renewal_failures),
            ("sweeps", "Sweeps asked for.", counted.sweeps),
            (
                "threads_given_up",
                "Threads replaced because their handler outlived its timeout.",
                counted.threads_given_up,
            ),
            ("tasks_given_up", "Async handlers that did not end when cancelled.", counted.tasks_given_up),
            ("loop_blocked", "Times that a handler blocked the event loop for over a second.", counted.loop_blocked),
            (
                "steps_starved",
                "Claimed steps whose handler was not called for over ten seconds.",
                counted.steps_starved,
            ),
            ("hints_received", "Hints that steps are ready.", counted.hints_received),
            ("hints_sent", "Hints sent to others.", counted.hints_sent),
        ):
            yield CounterMetricFamily(f"tasker_worker_{name}", text, value=count)
        repairs = CounterMetricFamily(
            "tasker_worker_repairs", "Repairs that this worker's sweeps made.", labels=["repair"]
        )
        for repair, count in list(counted.repairs.items()):
            repairs.add_metric([repair], count)
        yield repairs
        yield counted.run_seconds.family("tasker_worker_step_seconds", "How long handlers ran.")
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"tasker_worker_{name}", _GAUGES[name], value=value)


_GAUGES = {
    "slots": "Steps that this worker runs at once.",
    "steps_running": "Handlers running now.",
    "outcomes_waiting": "Outcomes not settled yet.",
    "threads_stuck": "Given-up threads whose handler still runs.",
    "loop_lag_seconds": "How long the event loop took to answer, last time it was asked.",
    "lease_seconds_left": "Time until the leases run out unless renewed.",
    "ready": "1 while the worker is registered and reaches its database.",
    "draining": "1 while the worker takes no new work.",
}


def exposition(metrics: WorkerMetrics, gauges: Callable[[], dict[str, float]], labels: dict[str, str]) -> bytes:
    """The metrics in Prometheus' text format; `gauges` gives the values of `_GAUGES`."""
    registry = CollectorRegistry()
    registry.register(_Families(metrics, gauges, labels))
    return generate_latest(registry)
