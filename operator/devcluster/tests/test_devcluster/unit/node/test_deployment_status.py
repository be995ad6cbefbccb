"""The status of a Deployment tells `kubectl rollout status` the truth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from devcluster.node.deployment_status import build_status

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def deployment(replicas: int = 2, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A Deployment in its third generation."""
    return {"metadata": {"name": "d", "generation": 3}, "spec": {"replicas": replicas, **spec}, "status": status or {}}


def replica_set(name: str, replicas: int, ready: int) -> dict[str, Any]:
    """A ReplicaSet's report."""
    counts = {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready}
    return {"metadata": {"name": name}, "spec": {"replicas": replicas}, "status": counts}


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    """Status and reason."""
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"]


def test_counts_are_summed_and_the_generation_is_told() -> None:
    new, old = replica_set("new", 1, 0), replica_set("old", 2, 2)
    status = build_status(deployment(), new, [old, new], made=False, now=NOW)
    counts = [status[f"{name}Replicas"] for name in ("updated", "ready", "available", "unavailable")]
    assert (status["observedGeneration"], status["replicas"], counts) == (3, 3, [1, 2, 2, 1])


def test_complete_rollout_is_new_replica_set_available() -> None:
    new = replica_set("new", 2, 2)
    status = build_status(deployment(), new, [new], made=False, now=NOW)
    assert condition(status, "Available") == ("True", "MinimumReplicasAvailable")
    assert condition(status, "Progressing") == ("True", "NewReplicaSetAvailable")


def test_times_change_only_when_what_they_are_about_does() -> None:
    new = replica_set("new", 2, 2)
    first = build_status(deployment(), new, [new], made=False, now=NOW)
    again = build_status(deployment(status=first), new, [new], made=False, now=NOW + timedelta(hours=1))
    assert again == first


def test_standstill_becomes_a_deadline_exceeded_and_progress_ends_it() -> None:
    new = replica_set("new", 2, 0)
    first = build_status(deployment(progressDeadlineSeconds=60), new, [new], made=True, now=NOW)
    assert condition(first, "Progressing") == ("True", "NewReplicaSetCreated")
    waiting = deployment(status=first, progressDeadlineSeconds=60)
    early = build_status(waiting, new, [new], made=False, now=NOW + timedelta(seconds=59))
    assert condition(early, "Progressing") == ("True", "NewReplicaSetCreated")
    late = build_status(waiting, new, [new], made=False, now=NOW + timedelta(seconds=62))
    assert condition(late, "Progressing") == ("False", "ProgressDeadlineExceeded")
    assert condition(late, "Available") == ("False", "MinimumReplicasUnavailable")
    better = replica_set("new", 2, 1)
    stuck = deployment(status=late, progressDeadlineSeconds=60)
    moved = build_status(stuck, better, [better], made=False, now=NOW + timedelta(seconds=63))
    assert condition(moved, "Progressing") == ("True", "ReplicaSetUpdated")


def test_paused_says_so() -> None:
    new = replica_set("new", 2, 2)
    status = build_status(deployment(paused=True), new, [new], made=False, now=NOW)
    assert condition(status, "Progressing") == ("Unknown", "DeploymentPaused")
