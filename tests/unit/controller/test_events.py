"""Kubernetes Events: what they look like, how they are named, and what becomes of those that are not taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.fake_cluster import FakeCluster, Fault
from support.virtual_time import settle
from tasker.controller.kube.events import EventRecorder, Reason, render_event
from tasker.controller.runtime.metrics import OperatorMetrics

NOW = datetime(2031, 5, 6, 7, 8, 9, 500_000, tzinfo=UTC)
ABOUT: dict[str, Any] = {
    "apiVersion": "tasker.dev/v1alpha1",
    "kind": "Task",
    "metadata": {"name": "t", "namespace": "default", "uid": "u"},
}
WARNINGS = {
    "TemplateInvalid",
    "TaskInvalid",
    "TaskDuplicate",
    "InvalidContext",
    "StepFailed",
    "TaskFailed",
    "HandlersNotFound",
}


def event(
    *, reason: Reason = Reason.TASK_ACCEPTED, once_per: str = "", now: datetime = NOW, **metadata: str
) -> dict[str, Any]:
    about = {**ABOUT, "metadata": ABOUT["metadata"] | metadata}
    return render_event(about, reason, "something", once_per=once_per, now=now)


def test_an_event_in_full() -> None:
    rendered = event()
    prefix, _, digest = rendered["metadata"].pop("name").partition(".")
    assert (prefix, len(digest)) == ("t", 16)
    assert rendered == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "default"},
        "involvedObject": {
            "apiVersion": "tasker.dev/v1alpha1",
            "kind": "Task",
            "namespace": "default",
            "name": "t",
            "uid": "u",
        },
        "reason": "TaskAccepted",
        "message": "something",
        "type": "Normal",
        "source": {"component": "tasker-operator"},
        "firstTimestamp": "2031-05-06T07:08:09Z",
        "lastTimestamp": "2031-05-06T07:08:09Z",
        "count": 1,
        "reportingComponent": "tasker-operator",
        "reportingInstance": "tasker-operator",
    }


@pytest.mark.parametrize("reason", Reason)
def test_what_somebody_should_look_at_is_a_warning(reason: Reason) -> None:
    assert event(reason=reason)["type"] == ("Warning" if reason in WARNINGS else "Normal")


def test_names_and_messages_fit_whatever_they_are_about() -> None:
    rendered = render_event(
        {**ABOUT, "metadata": ABOUT["metadata"] | {"name": "n" * 253}},
        Reason.TASK_FAILED,
        "m" * 2000,
        once_per="",
        now=NOW,
    )
    assert rendered["metadata"]["name"].startswith("n" * 200 + ".")
    assert len(rendered["metadata"]["name"]) == 217
    assert rendered["message"] == "m" * 1023 + "…"


def test_what_is_said_once_has_one_name_and_all_else_a_name_of_its_own() -> None:
    def name(**changes: Any) -> str:
        return str(event(**changes)["metadata"]["name"])

    later = NOW + timedelta(microseconds=1)
    assert name(once_per="end") == name(once_per="end", now=later)
    assert name() != name(now=later)
    different = {
        name(once_per="end"),
        name(once_per="start"),
        name(once_per="end", uid="another"),
        name(once_per="end", reason=Reason.TASK_FAILED),
    }
    assert len(different) == 4


@asynccontextmanager
async def writing(recorder: EventRecorder) -> AsyncIterator[None]:
    """The loop that writes has written all there is at the end."""
    running = asyncio.create_task(recorder.run())
    yield
    await settle(100)
    assert recorder._backlog.empty()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_fate_of_each_event_is_counted_and_no_refusal_ends_the_loop() -> None:
    cluster, metrics = FakeCluster(), OperatorMetrics()
    recorder = EventRecorder(cluster, metrics)
    cluster.faults.append(Fault(verb="create", kind="Event", code=403, reason="Forbidden"))
    async with writing(recorder):
        recorder.record(ABOUT, Reason.TASK_FAILED, "refused")
        recorder.record(ABOUT, Reason.TASK_ACCEPTED, "taken", once_per="accepted")
        recorder.record(ABOUT, Reason.TASK_ACCEPTED, "known by then", once_per="accepted")
    written = [found["message"] for (kind, _, _), found in cluster.objects.items() if kind == "Event"]
    assert written == ["taken"]
    counted = {
        (sample.labels["reason"], sample.labels["outcome"]): sample.value
        for metric in metrics.kubernetes_events.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert counted == {("TaskFailed", "failed"): 1, ("TaskAccepted", "posted"): 1, ("TaskAccepted", "known"): 1}


async def test_a_backlog_without_end_is_dropped_rather_than_kept() -> None:
    metrics = OperatorMetrics()
    recorder = EventRecorder(FakeCluster(), metrics)
    for _ in range(2003):
        recorder.record(ABOUT, Reason.TASK_ACCEPTED, "something", once_per="accepted")
    sample = metrics.registry.get_sample_value
    labels = {"reason": "TaskAccepted", "outcome": "dropped"}
    assert sample("tasker_operator_kubernetes_events_total", labels) == 3
