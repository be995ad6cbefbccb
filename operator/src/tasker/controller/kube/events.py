"""Kubernetes Events: short notes on our resources that `kubectl describe` shows. Reasons are stable; see `Reason`.

Reconcilers call `EventRecorder.record`, which returns at once; a loop writes the Events and drops what the API server
does not take, because an Event is a courtesy. The name of an Event is derived from what it says about which object, so
that saying it twice (after a restart, a retry) writes one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from tasker.controller.kube.client import FIELD_MANAGER, Cluster, ClusterError, Manifest, Resource
from tasker.controller.kube.conditions import shorten, timestamp
from tasker.controller.runtime.metrics import OperatorMetrics

logger = logging.getLogger(__name__)

CORE_EVENT = Resource(group="", version="v1", kind="Event", plural="events")
_BACKLOG = 2000
_MESSAGE_LIMIT = 1024


class Reason(StrEnum):
    """Every reason that an Event of ours can have."""

    TEMPLATE_REGISTERED = "TemplateRegistered"
    TEMPLATE_INVALID = "TemplateInvalid"
    TASK_ACCEPTED = "TaskAccepted"
    TASK_INVALID = "TaskInvalid"
    TASK_DUPLICATE = "TaskDuplicate"
    INVALID_CONTEXT = "InvalidContext"
    STEP_FAILED = "StepFailed"
    TASK_SUCCEEDED = "TaskSucceeded"
    TASK_FAILED = "TaskFailed"
    TASK_CANCELLED = "TaskCancelled"
    TASK_TAKEN_UP = "TaskTakenUp"
    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    HANDLERS_NOT_FOUND = "HandlersNotFound"
    MANAGED_POOL_CREATED = "ManagedPoolCreated"
    MANAGED_POOL_REMOVED = "ManagedPoolRemoved"


_WARNINGS = frozenset(
    {
        Reason.TEMPLATE_INVALID,
        Reason.TASK_INVALID,
        Reason.TASK_DUPLICATE,
        Reason.INVALID_CONTEXT,
        Reason.STEP_FAILED,
        Reason.TASK_FAILED,
        Reason.HANDLERS_NOT_FOUND,
    }
)


class EventRecorder:
    """A bounded backlog of Events and the loop that writes them."""

    def __init__(self, cluster: Cluster, metrics: OperatorMetrics) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._backlog: asyncio.Queue[tuple[Reason, Manifest]] = asyncio.Queue(maxsize=_BACKLOG)

    def record(self, about: Mapping[str, Any], reason: Reason, message: str, *, once_per: str = "") -> None:
        """Notes `reason` about an object. With the same `once_per` it is noted once for the object's life."""
        manifest = render_event(about, reason, message, once_per=once_per, now=datetime.now(UTC))
        try:
            self._backlog.put_nowait((reason, manifest))
        except asyncio.QueueFull:
            self._metrics.kubernetes_events.labels(reason, "dropped").inc()

    async def run(self) -> None:
        """Writes Events until cancelled."""
        while True:
            reason, manifest = await self._backlog.get()
            outcome = "posted"
            try:
                await self._cluster.create(CORE_EVENT, manifest)
            except ClusterError as error:
                outcome = "known" if error.is_conflict else "failed"
                logger.debug("an Event was not taken, it is %s: %s", outcome, error)
            self._metrics.kubernetes_events.labels(reason, outcome).inc()


def render_event(about: Mapping[str, Any], reason: Reason, message: str, *, once_per: str, now: datetime) -> Manifest:
    """The Event as the API takes it."""
    metadata = about["metadata"]
    moment = timestamp(now)
    digest = hashlib.sha256(f"{metadata.get('uid')}|{reason}|{once_per or now.isoformat()}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{digest}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata.get("uid"),
        },
        "reason": str(reason),
        "message": shorten(message, _MESSAGE_LIMIT),
        "type": "Warning" if reason in _WARNINGS else "Normal",
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
    }
