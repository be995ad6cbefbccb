"""The Deployment controller: one ReplicaSet a pod template, and rollouts from one to the next. Called by ``node``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from datetime import datetime

from devcluster.node.client import DEPLOYMENTS, REPLICA_SETS, ApiClient, ApiError
from devcluster.node.deployment_status import build_status, progress_deadline
from devcluster.node.events import EventRecorder
from devcluster.node.informer import Informer
from devcluster.node.objects import (
    REPLICA_FAILURE,
    Key,
    KubeObject,
    controller_reference,
    find_condition,
    integer,
    is_controlled_by,
    is_deleting,
    key_of,
    parse_time,
    uid_of,
)
from devcluster.node.rollout import (
    ReplicaSetView,
    plan_paused,
    plan_recreate,
    plan_rolling,
    read_bounds,
    template_hash,
)
from devcluster.node.work_queue import RetryLater

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"

_OWN_ANNOTATIONS = "deployment.kubernetes.io/"
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_HISTORY_LIMIT = 10
_COMPONENT = "deployment-controller"


class DeploymentController:
    """Brings the ReplicaSets of a Deployment in line with it."""

    def __init__(
        self,
        client: ApiClient,
        deployments: Informer,
        replica_sets: Informer,
        pods: Informer,
        events: EventRecorder,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._deployments = deployments
        self._replica_sets = replica_sets
        self._pods = pods
        self._events = events
        self._now = now

    async def reconcile(self, key: Key) -> None:
        """Take the next step for one Deployment and write its status."""
        deployment = self._deployments.get(key)
        if deployment is None or is_deleting(deployment):
            return  # the API server removes what a Deployment owned
        owned = [found for found in self._replica_sets.select(key.namespace) if is_controlled_by(found, deployment)]
        label = template_hash(deployment["spec"]["template"])
        new = next((found for found in owned if found["metadata"].get("labels", {}).get(HASH_LABEL) == label), None)
        old = sorted((found for found in owned if found is not new), key=_revision)
        paused = bool(deployment["spec"].get("paused"))
        made = False
        if not paused:
            revision = max((_revision(found) for found in old), default=0) + 1
            if new is None:
                new = await self._make(deployment, label, revision, old)
                made = True
            else:
                new = await self._keep_annotations(deployment, new, max(revision, _revision(new)))
            await self._write_revision(deployment, _revision(new))
        for name, replicas in self._plan(deployment, new, old, paused=paused).items():
            target = new if new is not None and new["metadata"]["name"] == name else None
            target = target or next(found for found in old if found["metadata"]["name"] == name)
            await self._scale(deployment, target, replicas)
        await self._write_status(key, label, made=made)
        if new is not None and not made:
            await self._forget_history(deployment, old)

    def _plan(
        self, deployment: KubeObject, new: KubeObject | None, old: Sequence[KubeObject], *, paused: bool
    ) -> dict[str, int]:
        spec = deployment["spec"]
        desired = integer(spec.get("replicas"), 1)
        olds = [self._view(found) for found in old]
        if paused or new is None:
            return plan_paused(desired, self._view(new) if new is not None else None, olds)
        if (spec.get("strategy") or {}).get("type") == "Recreate":
            return plan_recreate(desired, self._view(new), olds)
        return plan_rolling(desired, read_bounds(spec.get("strategy"), desired), self._view(new), olds)

    def _view(self, replica_set: KubeObject) -> ReplicaSetView:
        namespace = key_of(replica_set).namespace
        return ReplicaSetView(
            name=replica_set["metadata"]["name"],
            replicas=integer(replica_set["spec"].get("replicas"), 1),
            available=integer((replica_set.get("status") or {}).get("availableReplicas"), 0),
            present=sum(1 for pod in self._pods.select(namespace) if is_controlled_by(pod, replica_set)),
        )

    async def _make(self, deployment: KubeObject, label: str, revision: int, old: Sequence[KubeObject]) -> KubeObject:
        """The ReplicaSet of the template, with as many pods as the first step allows."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        desired = integer(spec.get("replicas"), 1)
        name = f"{metadata['name'][:52]}-{label}"
        template = copy.deepcopy(spec["template"])
        labels = {**(template.setdefault("metadata", {}).get("labels") or {}), HASH_LABEL: label}
        template["metadata"]["labels"] = labels
        selector = copy.deepcopy(spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = label
        replicas = self._plan(deployment, _empty(name, metadata.get("namespace", "")), old, paused=False).get(name, 0)
        body: KubeObject = {
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": {**_passed_on(deployment), **_own(desired, spec), REVISION: str(revision)},
                "ownerReferences": [controller_reference(deployment, api_version="apps/v1", kind="Deployment")],
            },
            "spec": {
                "replicas": replicas,
                "selector": selector,
                "template": template,
                **({"minReadySeconds": spec["minReadySeconds"]} if spec.get("minReadySeconds") else {}),
            },
        }
        try:
            made = await self._client.create(REPLICA_SETS, metadata["namespace"], body)
        except ApiError as error:
            if error.is_conflict:
                # Ours, and the watch is late; or a former Deployment's of this name, on its way out.
                known = await self._client.get(REPLICA_SETS, Key(metadata["namespace"], name))
                if is_controlled_by(known, deployment) and not is_deleting(known):
                    self._replica_sets.observe(known)
                    return known
            self._tell(
                deployment, "ReplicaSetCreateError", f'Failed to create new replica set "{name}": {error}', warning=True
            )
            raise
        self._replica_sets.observe(made)
        if replicas:
            self._tell(deployment, "ScalingReplicaSet", f"Scaled up replica set {name} from 0 to {replicas}")
        return made

    async def _keep_annotations(self, deployment: KubeObject, replica_set: KubeObject, revision: int) -> KubeObject:
        """After a return to an earlier template its ReplicaSet is the newest again."""
        desired = integer(deployment["spec"].get("replicas"), 1)
        wanted = {**_passed_on(deployment), **_own(desired, deployment["spec"]), REVISION: str(revision)}
        known = replica_set["metadata"].get("annotations") or {}
        changed = {name: value for name, value in wanted.items() if known.get(name) != value}
        if not changed:
            return replica_set
        changes = {"metadata": {"uid": uid_of(replica_set), "annotations": changed}}
        written = await self._client.patch(REPLICA_SETS, key_of(replica_set), changes)
        self._replica_sets.observe(written)
        return written

    async def _write_revision(self, deployment: KubeObject, revision: int) -> None:
        if (deployment["metadata"].get("annotations") or {}).get(REVISION) == str(revision):
            return
        changes = {"metadata": {"uid": uid_of(deployment), "annotations": {REVISION: str(revision)}}}
        self._deployments.observe(await self._client.patch(DEPLOYMENTS, key_of(deployment), changes))

    async def _scale(self, deployment: KubeObject, replica_set: KubeObject, replicas: int) -> None:
        before = integer(replica_set["spec"].get("replicas"), 1)
        if before == replicas:
            return
        changes = {"metadata": {"uid": uid_of(replica_set)}, "spec": {"replicas": replicas}}
        self._replica_sets.observe(await self._client.patch(REPLICA_SETS, key_of(replica_set), changes))
        direction = "up" if replicas > before else "down"
        name = replica_set["metadata"]["name"]
        self._tell(
            deployment, "ScalingReplicaSet", f"Scaled {direction} replica set {name} from {before} to {replicas}"
        )

    async def _write_status(self, key: Key, label: str, *, made: bool) -> None:
        deployment = self._deployments.get(key)
        if deployment is None:
            return
        owned = [found for found in self._replica_sets.select(key.namespace) if is_controlled_by(found, deployment)]
        new = next((found for found in owned if found["metadata"].get("labels", {}).get(HASH_LABEL) == label), None)
        status = build_status(deployment, new, owned, made=made, now=self._now())
        known = deployment.get("status") or {}
        # Other controllers' conditions stay.
        kinds = {REPLICA_FAILURE, *(condition["type"] for condition in status["conditions"])}
        status["conditions"] += [found for found in known.get("conditions") or () if found["type"] not in kinds]
        if any(known.get(name) != value for name, value in status.items()):
            changes = {"metadata": {"uid": uid_of(deployment)}, "status": status}
            deployment = await self._client.patch(DEPLOYMENTS, key, changes, subresource="status")
            self._deployments.observe(deployment)
        progressing = find_condition(deployment, "Progressing")
        if progressing is not None and progressing.get("reason") in {
            "NewReplicaSetCreated",
            "FoundNewReplicaSet",
            "ReplicaSetUpdated",
        }:
            since = self._now() - parse_time(progressing["lastUpdateTime"])
            raise RetryLater((progress_deadline(deployment) - since).total_seconds() + 1.0)

    async def _forget_history(self, deployment: KubeObject, old: Sequence[KubeObject]) -> None:
        limit = integer(deployment["spec"].get("revisionHistoryLimit"), _HISTORY_LIMIT)
        idle = [
            found
            for found in old
            if not integer(found["spec"].get("replicas"), 1)
            and not integer((found.get("status") or {}).get("replicas"), 0)
            and not is_deleting(found)
        ]
        for found in idle[: max(0, len(idle) - limit)]:
            await self._client.delete(REPLICA_SETS, key_of(found), uid=uid_of(found))
            self._replica_sets.forget(found)

    def _tell(self, deployment: KubeObject, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.record(deployment, DEPLOYMENTS, reason, message, warning=warning, component=_COMPONENT)


def _empty(name: str, namespace: str) -> KubeObject:
    return {"metadata": {"name": name, "namespace": namespace, "uid": ""}, "spec": {"replicas": 0}}


def _revision(replica_set: KubeObject) -> int:
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _passed_on(deployment: KubeObject) -> dict[str, str]:
    """The Deployment's annotations that its ReplicaSets carry too, the cause of a change among them."""
    annotations: dict[str, str] = deployment["metadata"].get("annotations") or {}
    return {
        name: value for name, value in annotations.items() if name != _APPLIED and not name.startswith(_OWN_ANNOTATIONS)
    }


def _own(desired: int, spec: KubeObject) -> dict[str, str]:
    most = desired + read_bounds(spec.get("strategy"), desired).surge
    return {f"{_OWN_ANNOTATIONS}desired-replicas": str(desired), f"{_OWN_ANNOTATIONS}max-replicas": str(most)}
