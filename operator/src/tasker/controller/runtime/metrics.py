"""The operator's own metrics, on a registry of their own; `health` serves them as /metrics.

| name | type | labels | what it counts |
| --- | --- | --- | --- |
| tasker_operator_reconciles_total | counter | kind, outcome (success, error) | reconciles that ended |
| tasker_operator_reconcile_errors_total | counter | kind, cause | failures (api_409, database, a Python error) |
| tasker_operator_reconcile_seconds | histogram | kind | how long one reconcile took |
| tasker_operator_queue_depth | gauge | kind | keys that wait for a reconcile, now or later |
| tasker_operator_events_total | counter | kind, type | watch events received |
| tasker_operator_watch_restarts_total | counter | resource | watches restarted because they had been silent |
| tasker_operator_status_writes_total | counter | kind, outcome (written, conflict) | writes of a status subresource |
| tasker_operator_scale_decisions_total | counter | direction (up, down), mode | changes of a pool's replicas |
| tasker_operator_orphans_cancelled_total | counter | | runs cancelled because their Task resource was gone |
| tasker_operator_workers_expired_total | counter | | workers whose pods vanished |
| tasker_operator_sweep_repairs_total | counter | repair | rows that the operator's sweep repaired |
| tasker_operator_change_lag_seconds | gauge | | age of the last successful read of changed rows |
| tasker_operator_invalid_objects | gauge | kind | objects that this release cannot read and leaves as they are |
| tasker_operator_loop_failures_total | counter | loop | rounds of a loop that failed |
| tasker_operator_loop_lag_seconds | gauge | loop | age of a loop's last round that succeeded |
| tasker_operator_breakdowns_total | counter | part | parts that ended or stalled: the process ends after it |
| tasker_operator_kubernetes_events_total | counter | reason, outcome (posted, known, failed, dropped) | Events |
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class OperatorMetrics:
    """Every metric of the operator process. Made once by `app`; the names are documented above."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = self._counter("reconciles", "Reconciles that ended", "kind", "outcome")
        self.reconcile_errors = self._counter("reconcile_errors", "Failed reconciles by cause", "kind", "cause")
        self.reconcile_seconds = Histogram(
            "tasker_operator_reconcile_seconds",
            "How long one reconcile took",
            ["kind"],
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.queue_depth = self._gauge("queue_depth", "Keys that wait for a reconcile, now or later", "kind")
        self.events = self._counter("events", "Watch events received", "kind", "type")
        self.watch_restarts = self._counter("watch_restarts", "Watches restarted after silence", "resource")
        self.status_writes = self._counter("status_writes", "Writes of a status subresource", "kind", "outcome")
        self.scale_decisions = self._counter("scale_decisions", "Changes of a pool's replicas", "direction", "mode")
        self.orphans_cancelled = self._counter("orphans_cancelled", "Runs cancelled since their Task was gone")
        self.workers_expired = self._counter("workers_expired", "Workers whose pods vanished")
        self.sweep_repairs = self._counter("sweep_repairs", "Rows that the operator's sweep repaired", "repair")
        self.change_lag = self._gauge("change_lag_seconds", "Age of the last successful read of changed rows")
        self.invalid_objects = self._gauge("invalid_objects", "Objects that this release cannot read", "kind")
        self.loop_failures = self._counter("loop_failures", "Rounds of a loop that failed", "loop")
        self.loop_lag = self._gauge("loop_lag_seconds", "Age of a loop's last round that succeeded", "loop")
        self.breakdowns = self._counter("breakdowns", "Parts that ended or stalled", "part")
        self.kubernetes_events = self._counter("kubernetes_events", "Kubernetes Events written", "reason", "outcome")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tasker_operator_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tasker_operator_{name}", text, labels, registry=self.registry)
