"""The status of a pod, as a pure function of what runs. Called by ``kubelet``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from devcluster.node.environment import HOST_ADDRESS
from devcluster.node.objects import KubeObject, find_condition, format_time
from devcluster.node.pod_runtime import ContainerRuntime, Exit, PodRuntime


def build_pod_status(pod: KubeObject, runtime: PodRuntime, now: datetime) -> KubeObject:
    """The whole status but for conditions of others' making."""
    containers = [runtime.containers[container["name"]] for container in pod["spec"]["containers"]]
    images = {container["name"]: container["image"] for container in pod["spec"]["containers"]}
    phase = _phase(pod, containers)
    unready = [container.name for container in containers if not container.ready]
    status: KubeObject = {
        "phase": phase,
        "hostIP": HOST_ADDRESS,
        "podIP": HOST_ADDRESS,
        "podIPs": [{"ip": HOST_ADDRESS}],
        "startTime": format_time(runtime.started_at),
        "qosClass": _quality(pod),
        "containerStatuses": [_container_status(found, images[found.name]) for found in containers],
    }
    if phase == "Succeeded":
        reason, message = "PodCompleted", ""
    else:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    is_ready = not unready and phase == "Running" and not runtime.ending
    held = ("PodScheduled", True), ("Initialized", True), ("ContainersReady", is_ready), ("Ready", is_ready)
    status["conditions"] = [
        _condition(pod, kind, good, *(("", "") if good else (reason, message)), now=now) for kind, good in held
    ]
    return status


def build_unscheduled_status(pod: KubeObject, message: str, now: datetime) -> KubeObject:
    """The status of a pod that fits on no node."""
    condition = _condition(pod, "PodScheduled", False, "Unschedulable", message, now=now)
    return {"phase": "Pending", "conditions": [condition]}


def _phase(pod: KubeObject, containers: list[ContainerRuntime]) -> str:
    if containers and all(container.finished for container in containers):
        failed = any(container.last_exit is not None and container.last_exit.code for container in containers)
        return "Failed" if failed else "Succeeded"
    return "Running" if all(container.starts for container in containers) else "Pending"


def _quality(pod: KubeObject) -> str:
    asked = any((container.get("resources") or {}) for container in pod["spec"]["containers"])
    return "Burstable" if asked else "BestEffort"


def _container_status(container: ContainerRuntime, image: str) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": container.name,
        "image": image,
        "imageID": "",
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": _state(container),
        "lastState": {},
    }
    if container.process is not None:
        status["containerID"] = f"process://{container.process.pid}"
    if container.last_exit is not None and not container.finished:
        status["lastState"] = {"terminated": _terminated(container.last_exit)}
    return status


def _state(container: ContainerRuntime) -> dict[str, Any]:
    if container.process is not None and container.started_at is not None:
        return {"running": {"startedAt": format_time(container.started_at)}}
    if container.finished and container.last_exit is not None:
        return {"terminated": _terminated(container.last_exit)}
    waiting = container.waiting
    if waiting is None:
        return {"waiting": {"reason": "ContainerCreating"}}
    return {"waiting": {"reason": waiting.reason, **({"message": waiting.message} if waiting.message else {})}}


def _terminated(ended: Exit) -> dict[str, Any]:
    state: dict[str, Any] = {
        "exitCode": ended.status,
        "reason": ended.reason,
        "startedAt": format_time(ended.started_at),
        "finishedAt": format_time(ended.finished_at),
    }
    if ended.code < 0:
        state["signal"] = -ended.code
    if ended.message:
        state["message"] = ended.message
    return state


def _condition(pod: KubeObject, kind: str, good: bool, reason: str, message: str, *, now: datetime) -> dict[str, Any]:
    known = find_condition(pod, kind) or {}
    status = "True" if good else "False"
    same = known.get("status") == status
    condition: dict[str, Any] = {
        "type": kind,
        "status": status,
        "lastTransitionTime": known["lastTransitionTime"]
        if same and known.get("lastTransitionTime")
        else format_time(now),
    }
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition
