"""The status of a WorkerPool: a pure function of what there is, what is wanted and why. Called by `pools`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.conditions import Condition, Truth, render, shorten, timestamp
from tasker.controller.pools.state import PoolState, rounded_age

# Why a container that does not run will not run without somebody's help.
_STUCK_REASONS = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


def build_pool_status(
    pool: Mapping[str, Any],
    state: PoolState,
    deployment: Mapping[str, Any] | None,
    *,
    pods: Iterable[Manifest],
    selector: str,
    now: datetime,
) -> dict[str, Any]:
    """The whole status of a pool whose objects have been applied."""
    old = pool.get("status") or {}
    live = (deployment or {}).get("status") or {}
    asked = ((deployment or {}).get("spec") or {}).get("replicas", 0)
    desired = state.desired if state.desired is not None else asked
    replicas, ready = live.get("replicas", 0), live.get("readyReplicas", 0)
    status: dict[str, Any] = {
        "observedGeneration": pool["metadata"]["generation"],
        "replicas": replicas,
        "readyReplicas": ready,
        "desiredReplicas": desired,
        "queued": state.demand.queued if state.demand is not None else old.get("queued", 0),
        "running": state.demand.running if state.demand is not None else old.get("running", 0),
        "oldestReadySeconds": rounded_age(state.demand.oldest_ready_seconds if state.demand is not None else 0),
        "reason": shorten(state.reason, 256),
        "selector": selector,
    }
    if state.scaled:
        status["lastScaleTime"] = timestamp(now)
    elif "lastScaleTime" in old:
        status["lastScaleTime"] = old["lastScaleTime"]
    status["conditions"] = render(
        _conditions(desired, replicas, ready, live, _stuck_pod(pods)),
        previous=old.get("conditions") or (),
        generation=pool["metadata"]["generation"],
        now=now,
    )
    return status


def missing_handlers_status(pool: Mapping[str, Any], config_map: str, *, now: datetime) -> dict[str, Any]:
    """The status of a pool whose handlers' ConfigMap is not there: what was known stays, the conditions say why."""
    old = pool.get("status") or {}
    message = f"There is no ConfigMap {config_map} in namespace {pool['metadata']['namespace']}."
    conditions = [
        Condition(type="Ready", status="False", reason="HandlersNotFound", message=message),
        Condition(type="Progressing", status="False", reason="HandlersNotFound", message=message),
        Condition(type="Stalled", status="True", reason="HandlersNotFound", message=message),
    ]
    return {
        **old,
        "observedGeneration": pool["metadata"]["generation"],
        "reason": shorten(f"waiting for ConfigMap {config_map}", 256),
        "conditions": render(
            conditions, previous=old.get("conditions") or (), generation=pool["metadata"]["generation"], now=now
        ),
    }


def _conditions(
    desired: int, replicas: int, ready: int, live: Mapping[str, Any], stuck: tuple[str, str] | None
) -> list[Condition]:
    updated = live.get("updatedReplicas", 0)
    settled = replicas == desired and ready >= desired and updated >= desired
    message = f"{ready} of {desired} workers are ready."
    if settled:
        reason = "WorkersReady" if desired else "ScaledToZero"
        message = message if desired else "No worker is needed now."
    else:
        reason = "WorkersStarting" if ready < desired else "WorkersLeaving"
    ready_truth: Truth = "True" if ready >= desired else "False"
    if stuck is not None:
        return [
            Condition(type="Ready", status=ready_truth, reason=reason, message=message),
            Condition(type="Progressing", status="False", reason=stuck[0], message=stuck[1]),
            Condition(type="Stalled", status="True", reason=stuck[0], message=stuck[1]),
        ]
    return [
        Condition(type="Ready", status=ready_truth, reason=reason, message=message),
        Condition(type="Progressing", status="False" if settled else "True", reason=reason, message=message),
        Condition(type="Stalled", status="False", reason=reason, message=message),
    ]


def _stuck_pod(pods: Iterable[Manifest]) -> tuple[str, str] | None:
    """Reason and message of the first pod, by name, that cannot run without help."""
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _STUCK_REASONS:
                message = f"Pod {pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}"
                return str(waiting["reason"]), message.rstrip(": ")
    return None
