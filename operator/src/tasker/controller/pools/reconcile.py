"""Brings a WorkerPool in line: its Deployment and what that needs, and a status that says what there is and why.

The reconcile of the work queue "WorkerPool". How many workers there should be is `scaler`'s decision, left in the
pool's state; all writes of a pool's objects happen here, one at a time a pool.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Set
from datetime import datetime
from typing import Any

from tasker.controller.kube.client import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    SECRET,
    SERVICE_ACCOUNT,
    WORKER_POOL,
    Cluster,
    Manifest,
    Resource,
)
from tasker.controller.kube.conditions import utc_now
from tasker.controller.kube.events import EventRecorder, Reason
from tasker.controller.kube.invalid import invalid_status
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.resources.worker_pool import WorkerPool
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools import manifests
from tasker.controller.pools.handlers import HandlersHashes
from tasker.controller.pools.manifests import ImageDefaults, PoolIdentity
from tasker.controller.pools.members import deployment_of, pods_of
from tasker.controller.pools.state import PoolState, PoolStates
from tasker.controller.pools.status import build_pool_status, missing_handlers_status, stalled_conditions
from tasker.errors import InvalidResource

STATUS_SECONDS = 1.0
"""A pool's status is written at most this often, in seconds."""


class PoolReconciler:
    """Applies what pools need and writes their statuses."""

    def __init__(
        self,
        *,
        pools: TypedCache[WorkerPool],
        deployments: TypedCache[Deployment],
        pods: TypedCache[Pod],
        terminating_namespaces: Set[str],
        states: PoolStates,
        handlers_hashes: HandlersHashes,
        cluster: Cluster,
        statuses: StatusWriter,
        events: EventRecorder,
        image_defaults: ImageDefaults,
        environment: str,
        worker_database_url: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pools = pools
        self._deployments = deployments
        self._pods = pods
        self._terminating_namespaces = terminating_namespaces
        self._states = states
        self._handlers_hashes = handlers_hashes
        self._cluster = cluster
        self._statuses = statuses
        self._events = events
        self._image_defaults = image_defaults
        self._environment = environment
        self._worker_database_url = worker_database_url
        self._clock = clock
        self._now = now
        self._status_written_at: dict[ObjectKey, float] = {}

    async def reconcile(self, key: ObjectKey) -> float | None:
        try:
            pool = self._pools.read(key)
        except InvalidResource as error:
            await self._refuse_unreadable(key, error)
            return None
        if pool is None or pool.is_being_deleted or key.namespace in self._terminating_namespaces:
            self._states.forget(key)
            self._status_written_at.pop(key, None)
            return None
        identity = PoolIdentity.of(pool)
        deployment = deployment_of(identity, self._deployments)
        state = self._states.of(key, pool, deployment)
        handlers_hash: str | None = None
        config_map = pool.spec.handlers_config_map
        if config_map is not None:
            handlers_hash = await self._handlers_hashes.read(ObjectKey(namespace=key.namespace, name=config_map))
            if handlers_hash is None:
                await self._write_missing_handlers(pool, config_map)
                return None  # the ConfigMap's event queues it again
        await self._apply_surroundings(pool, identity, state)
        deployment = await self._apply_deployment(pool, identity, state, deployment, handlers_hash)
        return await self._write_status(key, pool, identity, state, deployment)

    async def _apply_surroundings(self, pool: WorkerPool, identity: PoolIdentity, state: PoolState) -> None:
        if pool.spec.service_account_name is None:
            await self._apply(state, SERVICE_ACCOUNT, manifests.service_account(identity))
        if pool.spec.database is None:
            owners = {
                PoolIdentity.of(sibling)
                for sibling in self._pools.read_namespace(identity.namespace)
                if sibling.spec.database is None and not sibling.is_being_deleted
            }
            # This pool may have been deleted since this began; without an owner the Secret would stay for ever.
            owners.add(identity)
            secret = manifests.database_secret(identity.namespace, list(owners), self._worker_database_url)
            await self._apply(state, SECRET, secret)
        await self._apply(state, DISRUPTION_BUDGET, manifests.disruption_budget(identity))
        await self._apply(state, NETWORK_POLICY, manifests.network_policy(identity))

    async def _apply(
        self, state: PoolState, resource: Resource, manifest: Manifest, *, version: str | None = None
    ) -> Manifest | None:
        """Applies what has not been applied yet; the object as the API server answered, or None when nothing was.

        With a `version` the apply is refused as a conflict once the object has another one.
        """
        digest = _digest(manifest)
        if state.applied.get(resource.kind) == digest:
            return None
        if version is not None:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
        applied = await self._cluster.apply(resource, manifest)
        state.applied[resource.kind] = digest
        return applied

    async def _apply_deployment(
        self,
        pool: WorkerPool,
        identity: PoolIdentity,
        state: PoolState,
        deployment: Deployment | None,
        handlers_hash: str | None,
    ) -> Deployment | None:
        if deployment is None or deployment.metadata.generation != state.deployment_generation:
            # It was deleted, or somebody changed it: what we own is put back.
            state.applied.pop(DEPLOYMENT.kind, None)
        replicas, version = state.desired, None
        if replicas is None:
            replicas, version = await self._replicas_to_leave(pool, identity)
        manifest = manifests.deployment(
            identity,
            pool.spec,
            defaults=self._image_defaults,
            environment=self._environment,
            replicas=replicas,
            handlers_hash=handlers_hash,
        )
        state.template_hash = manifests.template_hash(manifest)
        applied = await self._apply(state, DEPLOYMENT, manifest, version=version)
        if applied is None:
            return deployment
        self._deployments.put(applied)
        answered = Deployment.parse(applied)
        state.deployment_generation = answered.metadata.generation
        return answered

    async def _replicas_to_leave(self, pool: WorkerPool, identity: PoolIdentity) -> tuple[int | None, str | None]:
        """What to apply as replicas when the number is an autoscaler's, and the version that this is true of.

        Giving the field up would set it to 1 as long as nobody else owns it; so the live number stays ours until an
        autoscaler has written one, and is applied to the version it was read from only.
        """
        manifest = await self._cluster.get(DEPLOYMENT, identity.namespace, identity.object_name)
        if manifest is None:
            return pool.spec.min_replicas, None
        if manifests.others_own_replicas(manifest):
            return None, None
        live = Deployment.parse(manifest)
        return 1 if live.spec.replicas is None else live.spec.replicas, live.metadata.resource_version

    async def _write_missing_handlers(self, pool: WorkerPool, config_map: str) -> None:
        status = missing_handlers_status(pool, config_map, now=self._now())
        if await self._statuses.write(WORKER_POOL, pool.manifest, status):
            message = f"There is no ConfigMap {config_map} in namespace {pool.metadata.namespace}."
            self._events.record(pool.manifest, Reason.HANDLERS_NOT_FOUND, message, once_per=f"missing {config_map}")

    async def _refuse_unreadable(self, key: ObjectKey, error: InvalidResource) -> None:
        """Shows what is wrong with a pool that cannot be read. Its workers are left as they are."""
        manifest = self._pools.get(key)
        if manifest is not None:
            conditions = stalled_conditions(reason="InvalidSpec", message=str(error))
            await self._statuses.write(WORKER_POOL, manifest, invalid_status(manifest, conditions, now=self._now()))

    async def _write_status(
        self,
        key: ObjectKey,
        pool: WorkerPool,
        identity: PoolIdentity,
        state: PoolState,
        deployment: Deployment | None,
    ) -> float | None:
        status = build_pool_status(
            pool,
            state,
            deployment,
            pods=pods_of(key, self._pods),
            selector=identity.selector_text,
            now=self._now(),
        )
        left = self._status_written_at.get(key, float("-inf")) + STATUS_SECONDS - self._clock()
        if left > 0 and status != pool.manifest.get("status"):
            return left
        if await self._statuses.write(WORKER_POOL, pool.manifest, status):
            self._status_written_at[key] = self._clock()
        state.scaled = False
        return None


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
