"""Values that the chart is rendered with, each row a way of installing it; and what to look for in the objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from support.helm import Helm, Manifest

OWN_DATABASE: dict[str, Any] = {"database": {"existingSecret": "postgres"}}

MATRIX: dict[str, dict[str, Any]] = {
    "own-database": OWN_DATABASE,
    "some-namespaces": OWN_DATABASE | {"watchNamespaces": ["orders", "billing"], "environment": "test"},
    "bundled-postgres": {
        "postgresql": {"enabled": True, "password": "secret", "persistence": {"storageClassName": "x"}}
    },
    "bundled-postgres-in-memory": {
        "postgresql": {"enabled": True, "runAsUser": 70, "persistence": {"enabled": False}},
        "networkPolicy": {"enabled": False},
    },
    "images-by-hand": {
        "database": {"existingSecret": "postgres", "key": "url", "listenKey": "listen", "ports": [6432, 5432]},
        "image": {"repository": "tasker-operator", "tag": "dev", "pullPolicy": "Never"},
        "worker": {"image": {"repository": "tasker-worker", "tag": "dev", "pullPolicy": "Never"}},
    },
    "private-registry": {
        "database": {"existingSecret": "postgres", "workers": {"existingSecret": "postgres-workers", "key": "url"}},
        "image": {"repository": "registry.example:5000/tasker/operator", "digest": f"sha256:{'a' * 64}"},
        "imagePullSecrets": ["registry"],
        "worker": {
            "image": {"repository": "registry.example:5000/tasker/worker", "digest": f"sha256:{'b' * 64}"},
            "imagePullSecrets": ["registry", "registry-2"],
        },
    },
    "least": OWN_DATABASE
    | {
        "crds": {"enabled": False},
        "rbac": {"create": False, "userRoles": False},
        "serviceAccount": {"create": False, "name": "given"},
        "migration": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "openshift": OWN_DATABASE
    | {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "rbac": {"ownerReferencesPermissionEnforcement": True},
        "crds": {"keep": False},
    },
    "placed": OWN_DATABASE
    | {
        "fullnameOverride": "a-name-of-exactly-forty-characters-herex",
        "commonLabels": {"team": "payments"},
        "podLabels": {"tier": "control"},
        "podAnnotations": {"note": "42"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "tasker"}},
            }
        ],
        "serviceAccount": {"annotations": {"cloud/role": "tasker"}},
        "env": [
            {"name": "TASKER_RESYNC_SECONDS", "value": "600"},
            {"name": "SSL_CERT_FILE", "valueFrom": {"configMapKeyRef": {"name": "ca", "key": "path"}}},
        ],
        "networkPolicy": {
            "ingressFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 3128}]}],
        },
    },
    "more-objects": OWN_DATABASE
    | {
        "nameOverride": "workflows",
        "extraObjects": [
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-more\ndata: {a: b}\n",
            {
                "apiVersion": "tasker.dev/v1alpha1",
                "kind": "WorkerPool",
                "metadata": {"name": "default", "namespace": "orders"},
                "spec": {"handlers": ["orders.handlers"]},
            },
            {
                "apiVersion": "tasker.dev/v1alpha1",
                "kind": "TaskTemplate",
                "metadata": {"name": "one", "namespace": "orders"},
                "spec": {"steps": [{"name": "a", "handler": {"callable": "a"}}]},
            },
        ],
    },
    "busy-pool": OWN_DATABASE
    | {
        "defaultPool": {
            "image": "registry.example/orders:1",
            "handlers": ["orders.handlers"],
            "minReplicas": 2,
            "maxReplicas": 50,
            "slots": 20,
            "scaling": {"idleSeconds": 600, "maxStep": 5},
            "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
            "env": [{"name": "LEVEL", "value": "3"}],
        }
    },
}


def render(helm: Helm, name: str) -> list[Manifest]:
    """The objects of one row of the matrix, rendered once a process. Not to be changed by the caller."""
    if name not in _RENDERED:
        _RENDERED[name] = helm.template("tasker", MATRIX[name])
    return list(_RENDERED[name])


_RENDERED: dict[str, list[Manifest]] = {}


def find(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The one object of that kind and name."""
    [found] = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def pod_specs(manifests: Iterable[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod spec among the objects, with what it belongs to."""
    for manifest in manifests:
        where = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            yield where, manifest["spec"]
        elif manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield where, manifest["spec"]["template"]["spec"]


def environment(manifests: Iterable[Manifest]) -> dict[str, Any]:
    """The operator's variables: the value, or where it comes from."""
    [deployment] = of_kind(manifests, "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
