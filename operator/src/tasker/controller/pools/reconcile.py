"""Brings a WorkerPool in line: its Deployment and what that needs, and a status that tells what there is and why.

The reconcile of the work queue "WorkerPool". How many workers there should be is `scaler`'s decision, left in the
pool's state; all writes of a pool's objects happen here, one at a time a pool.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from tasker.controller.kube.cache import is_going
from tasker.controller.kube.client import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    SECRET,
    SERVICE_ACCOUNT,
    WORKER_POOL,
    Manifest,
    Resource,
)
from tasker.controller.kube.events import Reason
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.pools import manifests
from tasker.controller.pools.manifests import PoolIdentity
from tasker.controller.pools.state import PoolBounds, PoolState, PoolStates, handlers_config_map, identity_of
from tasker.controller.pools.status import build_pool_status, missing_handlers_status
from tasker.controller.world import World

STATUS_SECONDS = 1.0
"""A pool's status is written at most this often, in seconds."""


class PoolReconciler:
    """Applies what pools need and shows how they are."""

    def __init__(self, world: World, states: PoolStates, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._states = states
        self._clock = clock
        self._shown: dict[ObjectKey, float] = {}

    async def reconcile(self, key: ObjectKey) -> float | None:
        pool = self._world.pools.get(key)
        if pool is None or is_going(pool) or key.namespace in self._world.going_namespaces:
            self._states.forget(key)
            self._shown.pop(key, None)
            return None
        identity = identity_of(pool)
        deployment = self._deployment(identity)
        state = self._states.of(key, pool, deployment)
        handlers_hash: str | None = None
        config_map = handlers_config_map(pool)
        if config_map is not None:
            found = await self._world.cluster.get(CONFIG_MAP, key.namespace, config_map)
            if found is None:
                await self._show_missing_handlers(pool, config_map)
                return None  # the ConfigMap's event calls again
            handlers_hash = manifests.hash_handlers(found)
        await self._apply_surroundings(pool, identity, state)
        deployment = await self._apply_deployment(pool, identity, state, deployment, handlers_hash)
        return await self._show(key, pool, identity, state, deployment)

    def _deployment(self, identity: PoolIdentity) -> Manifest | None:
        return self._world.deployments.get(ObjectKey(namespace=identity.namespace, name=identity.object_name))

    async def _apply_surroundings(self, pool: Manifest, identity: PoolIdentity, state: PoolState) -> None:
        if not pool["spec"].get("serviceAccountName"):
            await self._apply(state, SERVICE_ACCOUNT, manifests.service_account(identity))
        if not pool["spec"].get("database"):
            owners = {
                identity_of(sibling)
                for sibling in self._world.pools.in_namespace(identity.namespace)
                if not sibling["spec"].get("database") and not is_going(sibling)
            }
            # This pool may have gone since this began; without an owner the Secret would stay for ever.
            owners.add(identity)
            url = self._world.settings.worker_database_url
            await self._apply(state, SECRET, manifests.database_secret(identity.namespace, list(owners), url))
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
        applied = await self._world.cluster.apply(resource, manifest)
        state.applied[resource.kind] = digest
        return applied

    async def _apply_deployment(
        self,
        pool: Manifest,
        identity: PoolIdentity,
        state: PoolState,
        deployment: Manifest | None,
        handlers_hash: str | None,
    ) -> Manifest | None:
        if deployment is None or deployment["metadata"].get("generation") != state.deployment_generation:
            # It is gone, or somebody changed it: what we own is put back.
            state.applied.pop(DEPLOYMENT.kind, None)
        settings, replicas, version = self._world.settings, state.desired, None
        if replicas is None:
            replicas, version = await self._replicas_to_leave(pool, identity)
        manifest = manifests.deployment(
            identity,
            pool["spec"],
            defaults=manifests.ImageDefaults(
                image=settings.worker_image,
                pull_policy=settings.worker_image_pull_policy,
                pull_secrets=settings.worker_image_pull_secrets,
            ),
            replicas=replicas,
            handlers_hash=handlers_hash,
        )
        applied = await self._apply(state, DEPLOYMENT, manifest, version=version)
        if applied is None:
            return deployment
        state.deployment_generation = applied["metadata"].get("generation")
        self._world.deployments.put(applied)
        return applied

    async def _replicas_to_leave(self, pool: Manifest, identity: PoolIdentity) -> tuple[int | None, str | None]:
        """What to apply as replicas when the number is an autoscaler's, and the version that this is true of.

        Giving the field up would set it to 1 as long as nobody else owns it; so the live number stays ours until an
        autoscaler has written one, and is applied to the version it was read from only.
        """
        live = await self._world.cluster.get(DEPLOYMENT, identity.namespace, identity.object_name)
        if live is None:
            return PoolBounds.of(pool).min_replicas, None
        if manifests.others_own_replicas(live):
            return None, None
        return int(live["spec"].get("replicas", 1)), live["metadata"]["resourceVersion"]

    async def _show_missing_handlers(self, pool: Manifest, config_map: str) -> None:
        status = missing_handlers_status(pool, config_map, now=self._world.now())
        if await self._world.write_status(WORKER_POOL, pool, status):
            message = f"There is no ConfigMap {config_map} in namespace {pool['metadata']['namespace']}."
            self._world.events.record(pool, Reason.HANDLERS_NOT_FOUND, message, once_per=f"missing {config_map}")

    async def _show(
        self, key: ObjectKey, pool: Manifest, identity: PoolIdentity, state: PoolState, deployment: Manifest | None
    ) -> float | None:
        status = build_pool_status(
            pool,
            state,
            deployment,
            pods=[
                pod
                for pod in self._world.pods.in_namespace(key.namespace)
                if (pod["metadata"].get("labels") or {}).get(manifests.POOL_LABEL) == key.name
            ],
            selector=identity.selector_text,
            now=self._world.now(),
        )
        left = self._shown.get(key, float("-inf")) + STATUS_SECONDS - self._clock()
        if left > 0 and status != (pool.get("status") or {}):
            return left
        if await self._world.write_status(WORKER_POOL, pool, status):
            self._shown[key] = self._clock()
        state.scaled = False
        return None


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
