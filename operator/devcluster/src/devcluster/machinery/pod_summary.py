"""One Pod in the words of `kubectl get pods`: ready containers, the most telling state, restarts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from devcluster.machinery.durations import age, parse_time


def _statuses(pod: dict[str, Any], field: str = "containerStatuses") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (pod.get("status") or {}).get(field) or []
    return found


def _is_running(status: dict[str, Any]) -> bool:
    return "running" in (status.get("state") or {})


def pod_readiness(pod: dict[str, Any]) -> str:
    """``1/2``: containers ready, of all."""
    ready = sum(bool(item.get("ready")) and _is_running(item) for item in _statuses(pod))
    return f"{ready}/{len((pod.get('spec') or {}).get('containers') or [])}"


def pod_restarts(pod: dict[str, Any], now: datetime) -> str:
    """``3 (10s ago)``, or ``0``."""
    statuses = _statuses(pod)
    count = sum(item.get("restartCount", 0) for item in statuses)
    ends = [(item.get("lastState") or {}).get("terminated", {}).get("finishedAt") for item in statuses]
    last = max((moment for moment in map(parse_time, ends) if moment is not None), default=None)
    return f"{count} ({age(last.isoformat(), now)} ago)" if count and last is not None else str(count)


def pod_status(pod: dict[str, Any]) -> str:
    """Running, Completed, CrashLoopBackOff, Init:0/1, Terminating and the like."""
    status = pod.get("status") or {}
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    initialising = _initialising(pod)
    if initialising is not None:
        return initialising
    reason: str = status.get("reason") or status.get("phase") or ""
    any_running = False
    for container in reversed(_statuses(pod)):
        own = _reason(container)
        if own is not None:
            reason = own
        elif container.get("ready") and _is_running(container):
            any_running = True
    if reason == "Completed" and any_running:
        return "Running" if _is_ready(status.get("conditions") or ()) else "NotReady"
    return reason


def _initialising(pod: dict[str, Any]) -> str | None:
    statuses = _statuses(pod, "initContainerStatuses")
    for index, container in enumerate(statuses):
        terminated = (container.get("state") or {}).get("terminated")
        if terminated is not None and terminated.get("exitCode") == 0:
            continue
        reason = _reason(container)
        if reason is not None and reason != "PodInitializing":
            return f"Init:{reason}"
        return f"Init:{index}/{len((pod.get('spec') or {}).get('initContainers') or [])}"
    return None


def _reason(container: dict[str, Any]) -> str | None:
    state = container.get("state") or {}
    waiting, terminated = state.get("waiting"), state.get("terminated")
    if waiting and waiting.get("reason"):
        return str(waiting["reason"])
    if terminated is None:
        return None
    if terminated.get("reason"):
        return str(terminated["reason"])
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode', 0)}"


def _is_ready(conditions: Iterable[dict[str, Any]]) -> bool:
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)
