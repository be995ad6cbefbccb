"""The status of a WorkerPool: a pure function of what there is, what is wanted and why. Called by `pools`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tasker.controller.kube.conditions import Condition, render, shorten, timestamp
from tasker.controller.kube.invalid import invalid_status
from tasker.controller.kube.resources.base import Truth
from tasker.controller.kube.resources.deployment import Deployment, DeploymentStatus
from tasker.controller.kube.resources.pod import ContainerStatus, Pod
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.pools.state import PoolState, rounded_age
from tasker.controller.unoffered import unoffered_conditions

LAST_WORDS_LIMIT = 600
"""Characters of a failed worker's output: its end, where the error stands. The reason comes before it."""

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
    pool: WorkerPool,
    state: PoolState,
    deployment: Deployment | None,
    *,
    pods: Iterable[Pod],
    selector: str,
    now: datetime,
) -> dict[str, Any]:
    """The whole status of a pool whose objects have been applied."""
    old, generation, demand = pool.status, pool.metadata.generation, state.demand
    live = deployment.status if deployment is not None else DeploymentStatus()
    asked = (deployment.spec.replicas if deployment is not None else None) or 0
    desired = state.desired if state.desired is not None else asked
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "replicas": live.replicas,
        "readyReplicas": live.ready_replicas,
        "desiredReplicas": desired,
        "queued": demand.queued if demand is not None else old.queued or 0,
        "running": demand.running if demand is not None else old.running or 0,
        "oldestReadySeconds": rounded_age(demand.oldest_ready_seconds) if demand is not None else 0,
        "reason": shorten(state.reason, 256),
        "selector": selector,
    }
    if state.scaled:
        status["lastScaleTime"] = timestamp(now)
    elif old.last_scale_time is not None:
        status["lastScaleTime"] = old.last_scale_time
    conditions = _conditions(desired, live, _creation_failure(live) or _stuck_pod(pods))
    conditions += unoffered_conditions(state.unoffered, previous=old.conditions)
    status["conditions"] = render(conditions, previous=old.conditions, generation=generation, now=now)
    return status


def missing_handlers_status(pool: WorkerPool, config_map: str, *, now: datetime) -> dict[str, Any]:
    """The status of a pool whose handlers' ConfigMap is not there: what was known stays, the conditions say why."""
    message = f"There is no ConfigMap {config_map} in namespace {pool.metadata.namespace}."
    conditions = stalled_conditions(reason="HandlersNotFound", message=message)
    status = invalid_status(pool.manifest, conditions, now=now)
    return {**status, "reason": shorten(f"waiting for ConfigMap {config_map}", 256)}


def stalled_conditions(*, reason: str, message: str) -> list[Condition]:
    """The conditions of a pool that nothing is done for until somebody helps."""
    return [
        Condition(type="Ready", status="False", reason=reason, message=message),
        Condition(type="Progressing", status="False", reason=reason, message=message),
        Condition(type="Stalled", status="True", reason=reason, message=message),
    ]


def _last_words(container: ContainerStatus) -> str:
    """The end of what the container printed before it ended the last time."""
    ended = container.last_state.terminated
    words = ended.message.strip() if ended is not None else ""
    return f". Its last words: {words[-LAST_WORDS_LIMIT:].lstrip()}" if words else ""


def _conditions(desired: int, live: DeploymentStatus, stuck: tuple[str, str] | None) -> list[Condition]:
    ready = live.ready_replicas
    settled = live.replicas == desired and ready >= desired and live.updated_replicas >= desired
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


def _creation_failure(live: DeploymentStatus) -> tuple[str, str] | None:
    """Reason and message when pods cannot even be made: a quota, a missing ServiceAccount, an admission rule."""
    for condition in live.conditions:
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return condition.reason or "ReplicaFailure", f"Pods cannot be created: {condition.message}"
    return None


def _stuck_pod(pods: Iterable[Pod]) -> tuple[str, str] | None:
    """Reason and message of the first pod, by name, that cannot run without help."""
    for pod in pods:
        if pod.is_being_deleted:
            continue
        for container in pod.status.container_statuses:
            waiting = container.state.waiting
            if waiting is not None and waiting.reason in _STUCK_REASONS:
                message = f"Pod {pod.metadata.name}: {waiting.reason}: {waiting.message}".rstrip(": ")
                return waiting.reason, message + _last_words(container)
    return None
