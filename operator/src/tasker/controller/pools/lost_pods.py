"""Workers whose pods vanished: their steps go elsewhere at once, not when their leases run out.

`intake` notes a pod whose worker cannot be running and why; the reconcile of the work queue "Pod" tells the engine. A
worker that ended in order has left the database by itself, so nothing is found for it. A container that is started anew
at once is not noted: its new process gives up by itself what the one before has left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tasker.controller.kube.keys import ObjectKey
from tasker.controller.world import ACTOR, World

logger = logging.getLogger(__name__)


class LostPodReconciler:
    """Expires the workers of vanished pods."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def reconcile(self, key: ObjectKey) -> float | None:
        reason = self._world.lost_pod_reasons.get(key)
        if reason is None:
            return None
        steps = await self._world.engine.workers.expire(key.namespace, [key.name], actor=ACTOR, reason=reason)
        self._world.lost_pod_reasons.pop(key, None)
        if steps:
            self._world.metrics.workers_expired.inc()
            logger.warning("worker %s is lost (%s); its %d steps go elsewhere", key, reason, steps)
        return None


def loss_of(pod: Mapping[str, Any], *, deleted: bool) -> str | None:
    """Why the pod's process cannot be running any more, or None when it may be."""
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        return ": ".join(["pod failed", *(str(status[name]) for name in ("reason", "message") if status.get(name))])
    containers = status.get("containerStatuses") or ()
    if not deleted:
        return next(filter(None, map(_waiting_loss, containers)), None)
    for container in containers:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("reason") not in (None, "Completed"):
            return f"pod was deleted: {ended['reason']}"
    return "pod was deleted"


def _waiting_loss(container: Mapping[str, Any]) -> str | None:
    """Why a container ended that is not started again for a while: ten seconds or more, by the kubelet's defaults."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if waiting.get("reason") != "CrashLoopBackOff" or not ended:
        return None
    return f"its container ended: {ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}"
