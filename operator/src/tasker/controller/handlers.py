"""The handlers of kopf's events: each passes its event on to the router. Nothing else happens here.

Only event handlers are used, so kopf writes no annotation, no finalizer and no Event of its own. It lists, watches,
restarts watches that end or fall silent, and passes on every object it gets. Every handler is a coroutine: plain
functions kopf runs in threads, and nothing that they reach is made for threads.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import kopf

from tasker.controller.event_router import EventRouter
from tasker.controller.kube.access import log_in_kopf
from tasker.controller.kube.client import CONFIG_MAP, DEPLOYMENT, NAMESPACE, POD, TASK, TASK_TEMPLATE, WORKER_POOL
from tasker.controller.pools.manifests import OWNED_SELECTOR
from tasker.controller.runtime.metrics import OperatorMetrics

SERVER_TIMEOUT_SECONDS = 300
"""Watches end and begin again this often even when all is well: a second guard against silent ones."""


def make_settings(watch_silence_seconds: float, *, cluster_wide: bool) -> kopf.OperatorSettings:
    """kopf's settings for an operator that only watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Serving some namespaces only, it may not be allowed to watch namespaces and CRDs themselves.
    settings.scanning.disabled = not cluster_wide
    settings.watching.inactivity_timeout = watch_silence_seconds
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["apps", "v1", "deployments"] = OWNED_SELECTOR
    settings.watching.label_selectors["", "v1", "pods"] = OWNED_SELECTOR
    settings.queueing.idle_timeout = 1.0
    settings.networking.request_timeout = 60.0
    settings.networking.error_backoffs = RequestBackoffs()
    return settings


class RequestBackoffs:
    """Seconds between kopf's tries of a request, without end: the operator outlives its API server's absence.

    With kopf's own, whose number is limited, a watcher gives up after a minute and the process ends.
    """

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3, 5, 8)
        while True:
            yield random.uniform(8, 16)  # noqa: S311 - only so that many operators do not come back at once


def make_registry(router: EventRouter, *, cluster_wide: bool) -> kopf.OperatorRegistry:
    """The handlers, on a registry of their own."""
    registry = kopf.OperatorRegistry()

    kopf.on.login(registry=registry)(log_in_kopf)

    @kopf.on.event(TASK_TEMPLATE.group, TASK_TEMPLATE.version, TASK_TEMPLATE.plural, registry=registry)
    async def template_event(event: Mapping[str, Any], **_: Any) -> None:
        router.template(event["object"], event["type"])

    @kopf.on.event(TASK.group, TASK.version, TASK.plural, registry=registry)
    async def task_event(event: Mapping[str, Any], **_: Any) -> None:
        router.task(event["object"], event["type"])

    @kopf.on.event(WORKER_POOL.group, WORKER_POOL.version, WORKER_POOL.plural, registry=registry)
    async def pool_event(event: Mapping[str, Any], **_: Any) -> None:
        router.pool(event["object"], event["type"])

    @kopf.on.event(DEPLOYMENT.group, DEPLOYMENT.version, DEPLOYMENT.plural, registry=registry)
    async def deployment_event(event: Mapping[str, Any], **_: Any) -> None:
        router.deployment(event["object"], event["type"])

    @kopf.on.event(POD.version, POD.plural, registry=registry)
    async def pod_event(event: Mapping[str, Any], **_: Any) -> None:
        router.pod(event["object"], event["type"])

    @kopf.on.event(CONFIG_MAP.version, CONFIG_MAP.plural, registry=registry)
    async def config_map_event(event: Mapping[str, Any], **_: Any) -> None:
        router.config_map(event["object"], event["type"])

    if cluster_wide:

        @kopf.on.event(NAMESPACE.version, NAMESPACE.plural, registry=registry)
        async def namespace_event(event: Mapping[str, Any], **_: Any) -> None:
            router.namespace(event["object"], event["type"])

    return registry


class WatchRestartCounter(logging.Handler):
    """Counts kopf's restarts of silent watches. kopf reports them in its debug log only, so they are read there."""

    LOGGER = "kopf._cogs.clients.watching"

    def __init__(self, metrics: OperatorMetrics) -> None:
        super().__init__()
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "is inactive, reconnecting" in message:
            resource = message.removeprefix("Watch-stream for ").partition(" ")[0]
            self._metrics.watch_restarts.labels(resource).inc()

    def install(self) -> None:
        """Reads the debug records of that one logger without letting them into the process's log."""
        watching = logging.getLogger(self.LOGGER)
        watching.setLevel(logging.DEBUG)
        watching.addHandler(self)
