"""Defaults of built-in kinds that depend on other fields; the static ones stand in ``builtin_schemas.json``.

Every function completes, in place, an object that already has its static defaults. They matter to apply: a client
compares what it wrote with what the server made of it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final


def _items(parent: Mapping[str, Any], field: str) -> list[Any]:
    found = parent.get(field)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _mapping(parent: Mapping[str, Any], field: str) -> dict[str, Any]:
    found = parent.get(field)
    return found if isinstance(found, dict) else {}


def _ensured(parent: dict[str, Any], field: str) -> dict[str, Any]:
    """The object in a field, made when it is absent; a loose one when something else stands there, a fault."""
    found = parent.setdefault(field, {})
    return found if isinstance(found, dict) else {}


def complete_pod_spec(spec: dict[str, Any], *, is_template: bool) -> None:
    """Pull policies, volume sources, service accounts; requests from limits only in a real Pod, as Kubernetes does."""
    for volume in _items(spec, "volumes"):
        if set(volume) <= {"name"}:
            volume["emptyDir"] = {}
    containers = [item for field in ("initContainers", "containers") for item in _items(spec, field)]
    for container in containers:
        if "imagePullPolicy" not in container:
            container["imagePullPolicy"] = "Always" if _is_latest(str(container.get("image"))) else "IfNotPresent"
        resources = _mapping(container, "resources")
        if not is_template and (limits := _mapping(resources, "limits")):
            requests = _ensured(resources, "requests")
            for name, amount in limits.items():
                requests.setdefault(name, amount)
    service_account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if service_account:  # the deprecated twin is always written alike
        spec["serviceAccountName"] = spec["serviceAccount"] = service_account
    elif not is_template:
        spec["serviceAccountName"] = spec["serviceAccount"] = "default"
    if not is_template:
        spec.setdefault("enableServiceLinks", True)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        spec.setdefault("priority", 0)


def _is_latest(image: str) -> bool:
    if "@" in image:
        return False
    name = image.rsplit("/", 1)[-1]
    return ":" not in name or name.endswith(":latest")


def complete_pod(obj: dict[str, Any]) -> None:
    complete_pod_spec(_mapping(obj, "spec"), is_template=False)
    _ensured(obj, "status").setdefault("phase", "Pending")


def complete_deployment(obj: dict[str, Any]) -> None:
    spec = _mapping(obj, "spec")
    strategy = _mapping(spec, "strategy")
    if strategy.get("type") == "RollingUpdate":
        rolling = _ensured(strategy, "rollingUpdate")
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    complete_pod_spec(_mapping(_mapping(spec, "template"), "spec"), is_template=True)


def complete_replica_set(obj: dict[str, Any]) -> None:
    spec = _mapping(obj, "spec")
    complete_pod_spec(_mapping(_mapping(spec, "template"), "spec"), is_template=True)


def complete_service(obj: dict[str, Any]) -> None:
    spec = _mapping(obj, "spec")
    if not spec:
        return
    for port in _items(spec, "ports"):
        if "port" in port:
            port.setdefault("targetPort", port["port"])
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec.get("sessionAffinity") == "ClientIP":
        client = _ensured(_ensured(spec, "sessionAffinityConfig"), "clientIP")
        client.setdefault("timeoutSeconds", 10800)


def complete_secret(obj: dict[str, Any]) -> None:
    """What stands in `stringData` moves, encoded, to `data`."""
    plain = obj.pop("stringData", None)
    if isinstance(plain, dict):
        data = _ensured(obj, "data")
        for name, value in plain.items():
            data[name] = base64.b64encode(str(value).encode()).decode()


def complete_namespace(obj: dict[str, Any]) -> None:
    name = _mapping(obj, "metadata").get("name")
    if name:
        _ensured(obj["metadata"], "labels")["kubernetes.io/metadata.name"] = name
    _ensured(obj, "status").setdefault("phase", "Active")


def complete_role_binding(obj: dict[str, Any]) -> None:
    _mapping(obj, "roleRef").setdefault("apiGroup", "rbac.authorization.k8s.io")
    for subject in _items(obj, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")


def complete_network_policy(obj: dict[str, Any]) -> None:
    spec = _mapping(obj, "spec")
    if spec and not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def complete_crd(obj: dict[str, Any]) -> None:
    spec = _mapping(obj, "spec")
    names = _mapping(spec, "names")
    kind = names.get("kind")
    if isinstance(kind, str) and kind:
        if not names.get("singular"):
            names["singular"] = kind.lower()
        if not names.get("listKind"):
            names["listKind"] = f"{kind}List"
    status = _ensured(obj, "status")
    if not status.get("storedVersions"):
        stored = [version.get("name") for version in _items(spec, "versions") if version.get("storage")]
        if stored:
            status["storedVersions"] = stored[:1]


COMPLETIONS: Final[Mapping[tuple[str, str], Callable[[dict[str, Any]], None]]] = {
    ("", "Pod"): complete_pod,
    ("", "Service"): complete_service,
    ("", "Secret"): complete_secret,
    ("", "Namespace"): complete_namespace,
    ("apps", "Deployment"): complete_deployment,
    ("apps", "ReplicaSet"): complete_replica_set,
    ("rbac.authorization.k8s.io", "RoleBinding"): complete_role_binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): complete_role_binding,
    ("networking.k8s.io", "NetworkPolicy"): complete_network_policy,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): complete_crd,
}
