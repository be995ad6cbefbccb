"""The ReplicaSet controller: as many pods of one template as asked for. Called by ``node``."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from devcluster.node.client import PODS, REPLICA_SETS, ApiClient, ApiError
from devcluster.node.events import EventRecorder
from devcluster.node.informer import Informer
from devcluster.node.objects import (
    REPLICA_FAILURE,
    Key,
    KubeObject,
    controller_reference,
    find_condition,
    format_time,
    integer,
    is_controlled_by,
    is_deleting,
    is_true,
    key_of,
    matches,
    parse_time,
    uid_of,
)
from devcluster.node.work_queue import RetryLater

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_AT_ONCE = 50  # pods made or removed in one pass
_COMPONENT = "replicaset-controller"


class ReplicaSetController:
    """Makes and removes the pods of a ReplicaSet."""

    def __init__(
        self,
        client: ApiClient,
        replica_sets: Informer,
        pods: Informer,
        events: EventRecorder,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._replica_sets = replica_sets
        self._pods = pods
        self._events = events
        self._now = now

    async def reconcile(self, key: Key) -> None:
        """Bring the number of pods in line and write the status."""
        replica_set = self._replica_sets.get(key)
        if replica_set is None:
            return
        refusal: Exception | None = None
        if not is_deleting(replica_set):
            missing = integer(replica_set["spec"].get("replicas"), 1) - len(self._active(replica_set))
            try:
                if missing > 0:
                    await self._make(replica_set, min(missing, _AT_ONCE))
                elif missing < 0:
                    await self._remove(replica_set, min(-missing, _AT_ONCE))
            except ApiError as error:
                refusal = error
        await self._write_status(replica_set, refusal)
        if refusal is not None:
            raise refusal

    def _active(self, replica_set: KubeObject) -> list[KubeObject]:
        """Its pods that have not ended and are not on their way out."""
        return [
            pod
            for pod in self._pods.select(key_of(replica_set).namespace)
            if is_controlled_by(pod, replica_set)
            and not is_deleting(pod)
            and (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}
        ]

    async def _make(self, replica_set: KubeObject, number: int) -> None:
        results = await asyncio.gather(*(self._make_one(replica_set) for _ in range(number)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                if isinstance(result, ApiError):
                    self._tell(replica_set, "FailedCreate", f"Error creating: {result}", warning=True)
                raise result

    async def _make_one(self, replica_set: KubeObject) -> None:
        namespace = key_of(replica_set).namespace
        template = replica_set["spec"]["template"]
        metadata = copy.deepcopy(template.get("metadata") or {})
        prefix = f"{replica_set['metadata']['name']}-"
        metadata |= {
            # The name is made here, not by the server: a repeated request after a lost answer then makes no second pod.
            "name": prefix + "".join(secrets.choice(_ALPHABET) for _ in range(5)),
            "generateName": prefix,
            "namespace": namespace,
            "ownerReferences": [controller_reference(replica_set, api_version="apps/v1", kind="ReplicaSet")],
        }
        body: KubeObject = {"metadata": metadata, "spec": copy.deepcopy(template["spec"])}
        pod = await self._client.create(PODS, namespace, body)
        self._pods.observe(pod)
        self._tell(replica_set, "SuccessfulCreate", f"Created pod: {metadata['name']}")

    async def _remove(self, replica_set: KubeObject, number: int) -> None:
        for pod in sorted(self._active(replica_set), key=removal_rank)[:number]:
            try:
                answer = await self._client.delete(PODS, key_of(pod), uid=uid_of(pod))
            except ApiError as error:
                if not error.is_not_found and not error.is_conflict:
                    raise
                self._pods.forget(pod)
                continue
            if answer.get("kind") == "Pod":
                self._pods.observe(answer)
            else:
                self._pods.forget(pod)
            self._tell(replica_set, "SuccessfulDelete", f"Deleted pod: {key_of(pod).name}")

    async def _write_status(self, replica_set: KubeObject, refusal: Exception | None) -> None:
        # Anew: what was made or removed above has been taken in.
        pods = self._active(replica_set)
        ready = [pod for pod in pods if is_true(pod, "Ready")]
        least = timedelta(seconds=integer(replica_set["spec"].get("minReadySeconds"), 0))
        waits = [wait for pod in ready if (wait := _until_available(pod, least, self._now())) > timedelta()]
        selector = {"matchLabels": (replica_set["spec"]["template"].get("metadata") or {}).get("labels") or {}}
        wanted: dict[str, Any] = {
            "replicas": len(pods),
            "fullyLabeledReplicas": sum(1 for pod in pods if matches(pod["metadata"].get("labels"), selector)),
            "readyReplicas": len(ready),
            "availableReplicas": len(ready) - len(waits),
            "observedGeneration": replica_set["metadata"].get("generation", 0),
            "conditions": _conditions(replica_set, refusal, self._now()),
        }
        known: Mapping[str, Any] = replica_set.get("status") or {}
        if any((known.get(name) or ([] if name == "conditions" else 0)) != value for name, value in wanted.items()):
            changes = {"metadata": {"uid": uid_of(replica_set)}, "status": wanted}
            try:
                written = await self._client.patch(REPLICA_SETS, key_of(replica_set), changes, subresource="status")
            except ApiError as error:
                if not error.is_not_found:
                    raise
                return
            self._replica_sets.observe(written)
        if waits and refusal is None:
            raise RetryLater(min(waits).total_seconds() + 0.05)

    def _tell(self, replica_set: KubeObject, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.record(replica_set, REPLICA_SETS, reason, message, warning=warning, component=_COMPONENT)


def removal_rank(pod: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pods with a lower rank are removed first, in the order of Kubernetes' own controller.

    Not bound to a node; pending; not ready; of lower pod-deletion-cost; ready for less long; with more restarts; newer.
    """
    status = pod.get("status") or {}
    ready = find_condition(pod, "Ready") or {}
    is_ready = ready.get("status") == "True"
    since = parse_time(ready["lastTransitionTime"]).timestamp() if is_ready and "lastTransitionTime" in ready else 0.0
    restarts = sum(integer(found.get("restartCount"), 0) for found in status.get("containerStatuses") or ())
    created = parse_time(pod["metadata"]["creationTimestamp"]).timestamp()
    return (
        bool(pod["spec"].get("nodeName")),
        {"Pending": 0, "Unknown": 1}.get(status.get("phase", "Pending"), 2),
        is_ready,
        _deletion_cost(pod),
        -since,
        -restarts,
        -created,
    )


def _deletion_cost(pod: Mapping[str, Any]) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    try:
        return int(text)
    except ValueError:
        return 0  # as Kubernetes does: a cost that is no number does not count


def _until_available(pod: KubeObject, least: timedelta, now: datetime) -> timedelta:
    """How long a ready pod must stay so to count as available; nothing left: it does."""
    if not least:
        return timedelta()
    condition = find_condition(pod, "Ready") or {}
    return parse_time(condition.get("lastTransitionTime") or format_time(now)) + least - now


def _conditions(replica_set: KubeObject, refusal: Exception | None, now: datetime) -> list[KubeObject]:
    if refusal is None:
        return []
    known = find_condition(replica_set, REPLICA_FAILURE)
    if known is not None:
        return [dict(known)]  # as Kubernetes does: the first message stays, or each attempt would be a write
    return [
        {
            "type": REPLICA_FAILURE,
            "status": "True",
            "reason": "FailedCreate",
            "message": str(refusal)[:1024],
            "lastTransitionTime": format_time(now),
        }
    ]
