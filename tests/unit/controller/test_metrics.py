"""The metrics are those that are documented, with their types and labels."""

from __future__ import annotations

import re

from tasker.controller.runtime import metrics
from tasker.controller.runtime.metrics import OperatorMetrics

ROW = re.compile(r"^\| (tasker_operator_\w+) \| (\w+) \| ([^|]*)\|", re.MULTILINE)


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, from the module's table; values that a label can have are in brackets."""
    assert metrics.__doc__ is not None
    return {
        name: (kind, tuple(filter(None, re.sub(r"\(.*?\)", "", labels).replace(" ", "").split(","))))
        for name, kind, labels in ROW.findall(metrics.__doc__)
    }


def test_the_table_and_the_registry_are_equal() -> None:
    made = OperatorMetrics()
    found = {}
    for collector in list(made.registry._collector_to_names):
        [described] = collector.describe()  # type: ignore[attr-defined]
        name = described.name + ("_total" if described.type == "counter" else "")
        found[name] = (described.type, tuple(collector._labelnames))  # type: ignore[attr-defined]
        assert described.documentation
    assert found == documented()


def test_the_time_of_a_reconcile_is_shown_from_a_millisecond_to_half_a_minute() -> None:
    made = OperatorMetrics()
    made.reconcile_seconds.labels("Task").observe(0)
    [metric] = made.reconcile_seconds.collect()
    bounds = [sample.labels["le"] for sample in metric.samples if sample.name.endswith("_bucket")]
    assert " ".join(bounds) == "0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 30.0 +Inf"
