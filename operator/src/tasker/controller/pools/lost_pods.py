"""Workers whose pods vanished: their steps go elsewhere at once, not when their leases run out.

`event_router` notes a pod whose worker cannot be running and why; the reconcile of the work queue "Pod" reports it to
the engine. A worker that ended in order has left the database by itself, so nothing is found for it. A container that
is started anew at once is not noted: its new process gives up by itself what the one before has left.
"""

from __future__ import annotations

import logging

from tasker.controller.actor import ACTOR
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.pod import ContainerStatus, Pod
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.engine.workers import Workers

logger = logging.getLogger(__name__)


DELETED = "pod was deleted"
"""The loss of a pod that somebody deleted while its worker ran well."""
POD_DELETED = "pod_deleted"
WORKER_CRASH_LOOP = "worker_crash_loop"
"""What the failed attempts are called: by whether the worker did anything wrong."""


class LostPods:
    """Pods whose workers cannot be running, and why, until the engine knows."""

    def __init__(self) -> None:
        self._reasons: dict[ObjectKey, str] = {}

    def add(self, key: ObjectKey, reason: str) -> None:
        """The pod's worker cannot be running."""
        self._reasons[key] = reason

    def discard(self, key: ObjectKey) -> None:
        """The pod's worker may be running, or the engine knows that it is not."""
        self._reasons.pop(key, None)

    def reason(self, key: ObjectKey) -> str | None:
        """Why the pod is lost; None when it is not."""
        return self._reasons.get(key)


class LostPodReconciler:
    """Expires the workers of vanished pods."""

    def __init__(self, *, lost_pods: LostPods, engine_workers: Workers, metrics: OperatorMetrics) -> None:
        self._lost_pods = lost_pods
        self._engine_workers = engine_workers
        self._metrics = metrics

    async def reconcile(self, key: ObjectKey) -> float | None:
        reason = self._lost_pods.reason(key)
        if reason is None:
            return None
        error_type = POD_DELETED if reason == DELETED else WORKER_CRASH_LOOP
        steps = await self._engine_workers.expire(
            key.namespace, [key.name], actor=ACTOR, reason=reason, error_type=error_type
        )
        self._lost_pods.discard(key)
        if steps:
            self._metrics.workers_expired.inc()
            logger.warning("worker %s is lost (%s); its %d steps go elsewhere", key, reason, steps)
        return None


def loss_of(pod: Pod, *, deleted: bool) -> str | None:
    """Why the pod's process cannot be running any more, or None when it may be."""
    status = pod.status
    if status.phase == "Failed":
        return ": ".join(["pod failed", *(text for text in (status.reason, status.message) if text)])
    if not deleted:
        return next(filter(None, map(_waiting_loss, status.container_statuses)), None)
    for container in status.container_statuses:
        ended = container.state.terminated
        if ended is not None and ended.reason not in ("", "Completed"):
            return f"{DELETED}: {ended.reason}"
    return DELETED


def _waiting_loss(container: ContainerStatus) -> str | None:
    """Why a container ended that is not started again for a while: ten seconds or more, by the kubelet's defaults."""
    waiting, ended = container.state.waiting, container.last_state.terminated
    if waiting is None or waiting.reason != "CrashLoopBackOff" or ended is None:
        return None
    return f"its container ended: {ended.reason or 'Error'}, exit code {ended.exit_code}"
