"""The status of a Deployment, as a pure function of what its ReplicaSets report. Called by ``deployments``.

`kubectl rollout status` and `kubectl wait` read it: the counts, observedGeneration, and the conditions Available,
Progressing and ReplicaFailure with the reasons that Kubernetes uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from devcluster.node.objects import REPLICA_FAILURE, KubeObject, find_condition, format_time, integer, parse_time
from devcluster.node.rollout import read_bounds

PROGRESS_DEADLINE_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pods of a Deployment, summed over its ReplicaSets."""

    replicas: int
    updated: int
    ready: int
    available: int

    @staticmethod
    def of(new: KubeObject | None, all_sets: Sequence[KubeObject]) -> Counts:
        """What the ReplicaSets report."""

        def total(field: str) -> int:
            return sum(integer((found.get("status") or {}).get(field), 0) for found in all_sets)

        updated = integer((new.get("status") or {}).get("replicas"), 0) if new is not None else 0
        return Counts(
            replicas=total("replicas"),
            updated=updated,
            ready=total("readyReplicas"),
            available=total("availableReplicas"),
        )


def build_status(
    deployment: KubeObject, new: KubeObject | None, all_sets: Sequence[KubeObject], *, made: bool, now: datetime
) -> KubeObject:
    """The whole status. `made`: the newest ReplicaSet was made in this pass."""
    spec = deployment["spec"]
    desired = integer(spec.get("replicas"), 1)
    counts = Counts.of(new, all_sets)
    status: KubeObject = {
        "observedGeneration": deployment["metadata"].get("generation", 0),
        "replicas": counts.replicas,
        "updatedReplicas": counts.updated,
        "readyReplicas": counts.ready,
        "availableReplicas": counts.available,
        "unavailableReplicas": max(0, max(counts.replicas, desired) - counts.available),
    }
    status["conditions"] = [
        _available(deployment, counts, desired, now),
        _progressing(deployment, new, counts, desired, made=made, now=now),
        *_replica_failures(deployment, new, all_sets, now),
    ]
    return status


def progress_deadline(deployment: KubeObject) -> timedelta:
    """How long a rollout may stand still."""
    return timedelta(seconds=integer(deployment["spec"].get("progressDeadlineSeconds"), PROGRESS_DEADLINE_SECONDS))


def _available(deployment: KubeObject, counts: Counts, desired: int, now: datetime) -> KubeObject:
    least = desired - read_bounds(deployment["spec"].get("strategy"), desired).unavailable
    if counts.available >= least:
        return _condition(
            deployment, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now
        )
    text = "Deployment does not have minimum availability."
    return _condition(deployment, "Available", "False", "MinimumReplicasUnavailable", text, now)


def _replica_failures(
    deployment: KubeObject, new: KubeObject | None, all_sets: Sequence[KubeObject], now: datetime
) -> list[KubeObject]:
    """What keeps a ReplicaSet from making its pods; the newest template's fault comes before an older one's."""
    for found in filter(None, (new, *all_sets)):
        failure = find_condition(found, REPLICA_FAILURE)
        if failure is not None:
            reason, message = failure["reason"], failure["message"]
            return [_condition(deployment, REPLICA_FAILURE, failure["status"], reason, message, now)]
    return []


def _progressing(
    deployment: KubeObject, new: KubeObject | None, counts: Counts, desired: int, *, made: bool, now: datetime
) -> KubeObject:
    known = find_condition(deployment, "Progressing")
    name = new["metadata"]["name"] if new is not None else ""

    def condition(status: str, reason: str, text: str, *, moved: bool = False) -> KubeObject:
        return _condition(deployment, "Progressing", status, reason, text, now, moved=moved)

    if deployment["spec"].get("paused"):
        return condition("Unknown", "DeploymentPaused", "Deployment is paused")
    complete = counts.updated == counts.replicas == counts.available == desired
    if complete and new is not None:
        return condition("True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
    if made or known is None or known.get("reason") in {"DeploymentPaused", "NewReplicaSetAvailable"}:
        reason, text = ("NewReplicaSetCreated", "Created new") if made else ("FoundNewReplicaSet", "Found new")
        return condition("True", reason, f'{text} replica set "{name}"', moved=True)
    if _moved(deployment, counts):
        return condition("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.', moved=True)
    late = now - parse_time(known.get("lastUpdateTime") or format_time(now)) > progress_deadline(deployment)
    if late or known.get("reason") == "ProgressDeadlineExceeded":
        return condition("False", "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing.')
    return dict(known)


def _moved(deployment: KubeObject, counts: Counts) -> bool:
    """Whether more pods are new, ready or available, or fewer old ones are left, than at the last look."""
    before = deployment.get("status") or {}
    updated = integer(before.get("updatedReplicas"), 0)
    old = integer(before.get("replicas"), 0) - updated
    return (
        counts.updated > updated
        or counts.replicas - counts.updated < old
        or counts.ready > integer(before.get("readyReplicas"), 0)
        or counts.available > integer(before.get("availableReplicas"), 0)
    )


def _condition(
    deployment: KubeObject, kind: str, status: str, reason: str, message: str, now: datetime, *, moved: bool = False
) -> dict[str, Any]:
    """A condition whose times change only when what it says does."""
    known = find_condition(deployment, kind)
    moment = format_time(now)
    changed = known is None or known.get("status") != status
    updated = moved or changed or (known or {}).get("reason") != reason or (known or {}).get("message") != message
    known = known or {}
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment if changed else known.get("lastTransitionTime", moment),
        "lastUpdateTime": moment if updated else known.get("lastUpdateTime", moment),
    }
