"""The doorways from kopf: what they are, and to whom they hand what they are given."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pytest
from kopf._cogs.clients import watching as kopf_watching
from kopf._core.actions.invocation import invoke

from tasker.controller.event_router import EventRouter
from tasker.controller.handlers import (
    SERVER_TIMEOUT_SECONDS,
    RequestBackoffs,
    WatchRestartCounter,
    make_registry,
    make_settings,
)
from tasker.controller.kube.access import log_in_kopf
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.work_queue import WorkQueue

RESOURCES = {
    "tasktemplates": "template",
    "tasks": "task",
    "workerpools": "pool",
    "deployments": "deployment",
    "pods": "pod",
    "configmaps": "config_map",
    "namespaces": "namespace",
}


class RecordingRouter:
    """Notes which of its methods was called with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda raw, event_type: self.calls.append((name, raw, event_type))


def handlers(router: Any, *, cluster_wide: bool = True) -> dict[str, Any]:
    """The event handlers by the plural that they are for."""
    registry = make_registry(router, cluster_wide=cluster_wide)
    found = registry._watching.get_all_handlers()
    return {str(handler.selector.any_name if handler.selector else None): handler for handler in found}


def test_there_is_a_handler_for_each_kind() -> None:
    assert set(handlers(RecordingRouter())) == set(RESOURCES)
    assert set(handlers(RecordingRouter(), cluster_wide=False)) == set(RESOURCES) - {"namespaces"}


def test_every_handler_is_a_coroutine_function() -> None:
    """kopf runs the others in threads, and nothing that they reach is made for threads."""
    found = handlers(RecordingRouter())
    assert len(found) == 7
    assert [name for name, handler in found.items() if not inspect.iscoroutinefunction(handler.fn)] == []


@pytest.mark.parametrize(("plural", "method"), RESOURCES.items())
async def test_each_passes_object_and_type_to_its_own_method(plural: str, method: str) -> None:
    router = RecordingRouter()
    manifest = {"metadata": {"name": "a"}}
    await handlers(router)[plural].fn(event={"object": manifest, "type": "ADDED"}, more="of kopf's arguments")
    assert router.calls == [(method, manifest, "ADDED")]


@pytest.fixture
def threads_switch_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_switch_all_the_time")
async def test_no_event_is_lost_that_kopf_hands_over_while_the_queue_works() -> None:
    """Through kopf's own way of calling a handler, while the queue takes keys and waits for more all the time."""
    wanted, seen = 20_000, set[str]()
    complete = asyncio.Event()

    async def reconcile(key: ObjectKey) -> float | None:
        seen.add(key.name)
        if len(seen) == wanted:
            complete.set()
        return None

    queue = WorkQueue("Task", reconcile, concurrency=4, metrics=OperatorMetrics())

    class QueueingIntake(RecordingRouter):
        def task(self, raw: Mapping[str, Any], event_type: str | None) -> None:
            queue.add(ObjectKey(namespace="default", name=raw["metadata"]["name"]))

    handler = handlers(QueueingIntake())["tasks"]
    running = asyncio.create_task(queue.run())

    async def hand_over(first: int) -> None:
        for number in range(first, wanted, 5):
            event = {"object": {"metadata": {"name": f"t{number}"}}, "type": "ADDED"}
            await invoke(handler.fn, kwargs={"event": event})

    try:
        await asyncio.gather(*(hand_over(first) for first in range(5)))
        async with asyncio.timeout(60):
            await complete.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_kopf_only_watches() -> None:
    settings = make_settings(75.0, cluster_wide=True)
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert not settings.scanning.disabled
    assert make_settings(75.0, cluster_wide=False).scanning.disabled
    assert settings.watching.inactivity_timeout == 75.0
    assert settings.watching.server_timeout == SERVER_TIMEOUT_SECONDS == 300
    assert settings.watching.chunk_size == 500
    assert settings.networking.request_timeout == 60.0
    assert settings.queueing.idle_timeout == 1.0, "what it keeps for an object that is silent"


def test_of_what_others_may_have_too_only_ours_is_watched() -> None:
    """Pods and Deployments there are many of; those of our pools carry a label."""
    selectors: Any = make_settings(75.0, cluster_wide=True).watching.label_selectors
    found = {(kind.group, kind.version, kind.any_name): selector for kind, selector in selectors.items()}
    assert found == {("apps", "v1", "deployments"): OWNED_SELECTOR, ("", "v1", "pods"): OWNED_SELECTOR}


def test_kopf_logs_in_as_we_do() -> None:
    registry = make_registry(RecordingRouter(), cluster_wide=True)  # type: ignore[arg-type]
    assert [handler.fn for handler in registry._activities.get_all_handlers()] == [log_in_kopf]


def test_requests_are_tried_again_without_end() -> None:
    first = list(islice(RequestBackoffs(), 200))
    assert first[:6] == [1, 1, 2, 3, 5, 8]
    assert all(8 <= pause <= 16 for pause in first[6:])
    assert min(first[6:]) < 9
    assert max(first[6:]) > 15


def test_restarts_of_silent_watches_are_counted_from_kopfs_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    metrics = OperatorMetrics()
    counter = WatchRestartCounter(metrics)
    watching = logging.getLogger(WatchRestartCounter.LOGGER)
    level = watching.level
    counter.install()
    try:
        watching.debug("Watch-stream for %s is inactive, reconnecting", "tasks.v1alpha1.tasker.dev")
        watching.debug("Watch-stream for %s is inactive, reconnecting", "tasks.v1alpha1.tasker.dev")
        watching.debug("Watch-stream for %s has begun", "tasks.v1alpha1.tasker.dev")
    finally:
        watching.removeHandler(counter)
        watching.setLevel(level)
    sample = metrics.registry.get_sample_value
    labels = {"resource": "tasks.v1alpha1.tasker.dev"}
    assert sample("tasker_operator_watch_restarts_total", labels) == 2


def test_kopf_still_logs_so() -> None:
    """What is counted is read from kopf's own words: they are held against its source."""
    assert kopf_watching.logger.name == WatchRestartCounter.LOGGER
    assert "is inactive, reconnecting" in inspect.getsource(kopf_watching)


def test_the_router_has_what_the_handlers_call() -> None:
    assert {method for method in RESOURCES.values() if not hasattr(EventRouter, method)} == set()
