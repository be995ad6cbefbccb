"""What a WorkerPool becomes in the cluster: pure functions from the pool's spec to manifests.

Called by `pools`, which applies them server-side. Pods run under the restricted pod security standard; a worker has no
Kubernetes token. The tests hold the output against golden files and the published schemas.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasker.controller.kube.client import FIELD_MANAGER, WORKER_POOL, Manifest
from tasker.controller.kube.resources.worker_pool import WorkerPool, WorkerPoolSpec

NAME_LABEL = "app.kubernetes.io/name"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
POOL_LABEL = "tasker.dev/pool"
HANDLERS_HASH_ANNOTATION = "tasker.dev/handlers-hash"
DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

WORKER_NAME = "tasker-worker"
OPERATOR_NAME = "tasker"
OWNED_SELECTOR = f"{MANAGED_BY_LABEL}={OPERATOR_NAME},{NAME_LABEL}={WORKER_NAME}"
"""What we make for pools carries both labels; watches and lists of built-in kinds are narrowed to it."""

DATABASE_SECRET = "tasker-database"  # noqa: S105 - the Secret's name, not what is in it
DATABASE_KEY = "DATABASE_URL"
"""The key of that Secret; of a pool's own Secret the CRD has the default."""
HEALTH_PORT = 8081
TEMPLATE_HASH_VARIABLE = "TASKER_POD_TEMPLATE_HASH"
HANDLERS_PATH = "/etc/tasker/handlers"
HANDLERS_VOLUME = "tasker-handlers"
# Handlers get the grace period less this, so that the worker can release what is left before it is killed.
GRACE_MARGIN_SECONDS = 5
# A worker answers once its handlers are imported, which may pull in large libraries. The liveness probe waits for that.
START_SECONDS = 300
# Any uid but root's will do: the workers' image needs no particular user.
WORKER_UID = 65532


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolIdentity:
    """A WorkerPool as its owner references name it."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, pool: WorkerPool) -> PoolIdentity:
        """The identity of this pool."""
        metadata = pool.metadata
        return cls(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid)

    @property
    def object_name(self) -> str:
        """The name of everything made for the pool."""
        return f"{WORKER_NAME}-{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        return {NAME_LABEL: WORKER_NAME, MANAGED_BY_LABEL: OPERATOR_NAME, POOL_LABEL: self.name}

    @property
    def selector(self) -> dict[str, str]:
        """What picks the pool's pods. A Deployment's selector can never change, so neither may this."""
        return {NAME_LABEL: WORKER_NAME, POOL_LABEL: self.name}

    @property
    def selector_text(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))

    @property
    def owner_reference(self) -> dict[str, Any]:
        return {
            "apiVersion": WORKER_POOL.api_version,
            "kind": WORKER_POOL.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDefaults:
    """The image of pools that name none, and how that one is pulled; a pool's own image has its own rules."""

    image: str
    pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()


def hash_handlers(config_map: Mapping[str, Any]) -> str:
    """A hash of a ConfigMap's content; a change of it rolls the pods."""
    content = {"data": config_map.get("data") or {}, "binaryData": config_map.get("binaryData") or {}}
    return _hash(content)[:32]


def hash_template(template: Mapping[str, Any]) -> str:
    """What a pod template is known by in the database, without the variable that says so to the worker.

    Ours and not the Deployment controller's, which is known only once the controller has seen the template.
    """
    return _hash(template)[:16]


def template_hash(deployment: Mapping[str, Any]) -> str:
    """The hash that a Deployment made here gives to its workers."""
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [value] = [variable["value"] for variable in container["env"] if variable["name"] == TEMPLATE_HASH_VARIABLE]
    return str(value)


def _hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def service_account(pool: PoolIdentity) -> Manifest:
    """An account that can do nothing and whose token is not mounted."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(pool),
        "automountServiceAccountToken": False,
    }


def database_secret(namespace: str, pools: Sequence[PoolIdentity], database_url: str) -> Manifest:
    """The connection URL for every pool of the namespace that brings none of its own; owned by all of them."""
    owners = [
        {key: value for key, value in pool.owner_reference.items() if key not in ("controller", "blockOwnerDeletion")}
        for pool in sorted(pools, key=lambda pool: pool.uid)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": DATABASE_SECRET,
            "namespace": namespace,
            "labels": {NAME_LABEL: WORKER_NAME, MANAGED_BY_LABEL: OPERATOR_NAME},
            "ownerReferences": owners,
        },
        "type": "Opaque",
        "data": {DATABASE_KEY: base64.b64encode(database_url.encode()).decode()},
    }


def disruption_budget(pool: PoolIdentity) -> Manifest:
    """Node drains take one worker at a time; a worker that is not ready never blocks one."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pool.selector},
        },
    }


def network_policy(pool: PoolIdentity) -> Manifest:
    """Nothing reaches a worker but its health and metrics port. Egress stays open: handlers call what they need."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(pool),
        "spec": {
            "podSelector": {"matchLabels": pool.selector},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": HEALTH_PORT}]}],
        },
    }


def deployment(
    pool: PoolIdentity,
    spec: WorkerPoolSpec,
    *,
    defaults: ImageDefaults,
    environment: str,
    replicas: int | None,
    handlers_hash: str | None,
) -> Manifest:
    """The workers, which are told `environment`. `replicas` None leaves the number to its owner (an autoscaler)."""
    body: dict[str, Any] = {
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": pool.selector},
        # A new worker is up before an old one starts to end, so that a roll-out never lowers the capacity.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "template": {
            "metadata": {
                "labels": pool.labels,
                "annotations": _pod_annotations(handlers_hash),
            },
            "spec": _pod_spec(pool, spec, defaults, environment),
        },
    }
    template = body["template"]
    [container] = template["spec"]["containers"]
    container["env"].append({"name": TEMPLATE_HASH_VARIABLE, "value": hash_template(template)})
    if replicas is not None:
        body["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(pool), "spec": body}


def others_own_replicas(deployment: Mapping[str, Any]) -> bool:
    """Whether a manager other than us has set the number of replicas, going by the object's managed fields."""
    for entry in deployment["metadata"].get("managedFields") or ():
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            continue
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {}):
            return True
    return False


def _metadata(pool: PoolIdentity) -> dict[str, Any]:
    return {
        "name": pool.object_name,
        "namespace": pool.namespace,
        "labels": pool.labels,
        "ownerReferences": [pool.owner_reference],
    }


def _pod_annotations(handlers_hash: str | None) -> dict[str, str]:
    annotations = {"kubectl.kubernetes.io/default-container": "worker"}
    if handlers_hash is not None:
        annotations[HANDLERS_HASH_ANNOTATION] = handlers_hash
    return annotations


def _pod_spec(pool: PoolIdentity, spec: WorkerPoolSpec, defaults: ImageDefaults, environment: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "serviceAccountName": spec.service_account_name or pool.object_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": WORKER_UID,
            "runAsGroup": WORKER_UID,
            "fsGroup": WORKER_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pool, spec, defaults, environment)],
        "volumes": _volumes(spec),
    }
    pull_secrets = [reference.name for reference in spec.image_pull_secrets]
    if not pull_secrets and spec.image is None:
        pull_secrets = list(defaults.pull_secrets)
    optional: dict[str, Any] = {
        "nodeSelector": spec.node_selector,
        "tolerations": list(spec.tolerations),
        "affinity": spec.affinity,
        "priorityClassName": spec.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in pull_secrets],
    }
    return body | {field: value for field, value in optional.items() if value}


def _container(pool: PoolIdentity, spec: WorkerPoolSpec, defaults: ImageDefaults, environment: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": "worker",
        "image": spec.image or defaults.image,
        "env": _variables(pool, spec, environment),
        "ports": [{"name": "http", "containerPort": HEALTH_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/health/live", period_seconds=1, failure_threshold=START_SECONDS),
        "livenessProbe": _probe("/health/live", period_seconds=10),
        "readinessProbe": _probe("/health/ready", period_seconds=2),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(spec),
        # The end of what a worker printed before it failed is in the pod's status then, and in the pool's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    optional: dict[str, Any] = {
        "args": list(spec.handlers),
        "imagePullPolicy": spec.image_pull_policy or (None if spec.image else defaults.pull_policy),
        "envFrom": list(spec.env_from),
        "resources": spec.resources,
    }
    return body | {field: value for field, value in optional.items() if value}


def _variables(pool: PoolIdentity, spec: WorkerPoolSpec, environment: str) -> list[dict[str, Any]]:
    own = spec.database.secret_ref if spec.database is not None else None
    secret_key = {"name": own.name, "key": own.key} if own else {"name": DATABASE_SECRET, "key": DATABASE_KEY}
    grace = max(1, spec.termination_grace_period_seconds - GRACE_MARGIN_SECONDS)
    ours: list[dict[str, Any]] = [
        {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": secret_key}},
        {"name": "PORT", "value": str(HEALTH_PORT)},
        {"name": "TASKER_ENV", "value": environment},
        {"name": "TASKER_NAMESPACE", "value": pool.namespace},
        {"name": "TASKER_POOL", "value": pool.name},
        {"name": "TASKER_SHUTDOWN_GRACE_SECONDS", "value": str(grace)},
        {"name": "TASKER_SLOTS", "value": str(spec.slots)},
        {"name": "TASKER_WORKER_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    if spec.handlers_config_map is not None:
        ours.append({"name": "TASKER_HANDLERS_PATH", "value": HANDLERS_PATH})
    taken = {TEMPLATE_HASH_VARIABLE, *(variable["name"] for variable in ours)}
    return ours + [variable for variable in spec.env if variable["name"] not in taken]


def _probe(path: str, *, period_seconds: int, failure_threshold: int = 3) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failure_threshold,
    }


def _volumes(spec: WorkerPoolSpec) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if spec.handlers_config_map is not None:
        volumes.append({"name": HANDLERS_VOLUME, "configMap": {"name": spec.handlers_config_map}})
    return [*volumes, *spec.volumes]


def _mounts(spec: WorkerPoolSpec) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - the container's own
    if spec.handlers_config_map is not None:
        mounts.append({"name": HANDLERS_VOLUME, "mountPath": HANDLERS_PATH, "readOnly": True})
    return [*mounts, *spec.volume_mounts]
