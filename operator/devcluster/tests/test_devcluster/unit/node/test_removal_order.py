"""Which pods a ReplicaSet removes first."""

from __future__ import annotations

from typing import Any

import pytest

from devcluster.node.replica_sets import DELETION_COST, removal_rank


def pod(
    *,
    node: str = "n",
    phase: str = "Running",
    ready_since: str | None = "2026-01-01T10:00:00Z",
    cost: str | None = None,
    restarts: int = 0,
    created: str = "2026-01-01T09:00:00Z",
) -> dict[str, Any]:
    """A pod as the controller sees it."""
    ready = {
        "type": "Ready",
        "status": "True" if ready_since else "False",
        "lastTransitionTime": ready_since or created,
    }
    return {
        "metadata": {"creationTimestamp": created, "annotations": {DELETION_COST: cost} if cost else {}},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": [ready], "containerStatuses": [{"restartCount": restarts}]},
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pod(node=""), pod()),
        (pod(phase="Pending", ready_since=None, cost="100"), pod(cost="-100")),
        (pod(ready_since=None, cost="100"), pod(cost="-100")),
        (pod(cost="-5"), pod()),
        (pod(), pod(cost="5")),
        (pod(cost="not a number"), pod(cost="5")),
        (pod(ready_since="2026-01-01T11:00:00Z"), pod()),
        (pod(restarts=3), pod()),
        (pod(created="2026-01-01T09:30:00Z"), pod()),
        (pod(cost="-1"), pod(ready_since="2026-01-01T11:00:00Z", restarts=9, created="2026-01-01T09:59:00Z")),
    ],
)
def test_first_is_removed_before_second(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert removal_rank(first) < removal_rank(second)
