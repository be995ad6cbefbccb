"""The Deployment and the pods of a pool, from the caches."""

from __future__ import annotations

from tasker.controller.kube.keys import ObjectKey
from tasker.controller.kube.resources.deployment import Deployment
from tasker.controller.kube.resources.pod import Pod
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.manifests import POOL_LABEL, PoolIdentity


def deployment_of(identity: PoolIdentity, deployments: TypedCache[Deployment]) -> Deployment | None:
    """The pool's Deployment, or None when there is none."""
    return deployments.read_valid(ObjectKey(namespace=identity.namespace, name=identity.object_name))


def pods_of(pool: ObjectKey, pods: TypedCache[Pod]) -> list[Pod]:
    """The pool's pods, in the order of their names."""
    return [pod for pod in pods.read_namespace(pool.namespace) if pod.metadata.labels.get(POOL_LABEL) == pool.name]
