"""Cuts the schemas of the built-in kinds out of what the wheel `kubernetes-validate` ships.

Run by a developer when a kind is added or Kubernetes moves on: ``python cut_builtin_schemas.py`` rewrites
``builtin_schemas.json`` of `devcluster.machinery`. The published JSON schema is turned into the vocabulary that a
CustomResourceDefinition uses, so that one engine serves both: nulls go (a null means absence to the API server), the
two union types get their Kubernetes markers, and the static defaults, which the published schema lacks, are written in
from the table below.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devcluster.machinery.builtin_kinds import BUILTIN_KINDS, ROOT_DEFINITIONS
from devcluster.machinery.schema_node import QUANTITY

TARGET = Path(__file__).parents[1] / "src" / "devcluster" / "machinery" / "builtin_schemas.json"
RELEASE = "v1.37.0-local"

CORE = "io.k8s.api.core.v1."
APPS = "io.k8s.api.apps.v1."
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"

_POD_DEFAULTS: dict[str, Any] = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "securityContext": {},
}
_CONTAINER_DEFAULTS: dict[str, Any] = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "resources": {},
}
_KEY_REF_MODE = 420

STATIC_DEFAULTS: dict[str, dict[str, Any]] = {
    CORE + "PodSpec": _POD_DEFAULTS,
    CORE + "Container": _CONTAINER_DEFAULTS,
    CORE + "EphemeralContainer": _CONTAINER_DEFAULTS,
    CORE + "ContainerPort": {"protocol": "TCP"},
    CORE + "ServicePort": {"protocol": "TCP"},
    CORE + "EndpointPort": {"protocol": "TCP"},
    CORE + "Probe": {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
    CORE + "HTTPGetAction": {"path": "/", "scheme": "HTTP"},
    CORE + "ObjectFieldSelector": {"apiVersion": "v1"},
    CORE + "ConfigMapVolumeSource": {"defaultMode": _KEY_REF_MODE},
    CORE + "SecretVolumeSource": {"defaultMode": _KEY_REF_MODE},
    CORE + "DownwardAPIVolumeSource": {"defaultMode": _KEY_REF_MODE},
    CORE + "ProjectedVolumeSource": {"defaultMode": _KEY_REF_MODE},
    CORE + "ServiceAccountTokenProjection": {"expirationSeconds": 3600},
    CORE + "HostPathVolumeSource": {"type": ""},
    CORE + "ServiceSpec": {"type": "ClusterIP", "sessionAffinity": "None"},
    CORE + "Secret": {"type": "Opaque"},
    CORE + "Namespace": {"spec": {}},
    CORE + "NamespaceSpec": {"finalizers": ["kubernetes"]},
    APPS + "DeploymentSpec": {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
        "strategy": {},
    },
    APPS + "DeploymentStrategy": {"type": "RollingUpdate"},
    APPS + "ReplicaSetSpec": {"replicas": 1},
    "io.k8s.api.networking.v1.NetworkPolicyPort": {"protocol": "TCP"},
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec": {
        "conversion": {"strategy": "None"}
    },
}

_DROPPED_KEYWORDS = frozenset({"x-kubernetes-group-version-kind", "x-kubernetes-unions", "$schema", "$id"})


def published_definitions() -> dict[str, Any]:
    """The definitions of the wheel, by their full names. Raises ImportError when the wheel is not installed."""
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / RELEASE
    document = json.loads((folder / "_definitions.json").read_text())
    definitions: dict[str, Any] = document["$defs"]
    return definitions


def cut() -> dict[str, Any]:
    """The content of ``builtin_schemas.json``."""
    published = published_definitions()
    wanted = [kind.definition for kind in BUILTIN_KINDS] + list(ROOT_DEFINITIONS)
    found: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = _with_defaults(name, _structural(name, published[name]))
        wanted.extend(_references(found[name]))
    return {
        "about": f"Cut from the Kubernetes API schemas ({RELEASE}, Apache-2.0) by cut_builtin_schemas.py; not edited.",
        "definitions": dict(sorted(found.items())),
    }


def _structural(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    description = {"description": schema["description"]} if "description" in schema else {}
    if name in (INT_OR_STRING, QUANTITY):
        return {**description, "x-kubernetes-int-or-string": True}
    result = _convert(schema)
    if "type" not in result or (
        result["type"] == "object" and "properties" not in result and "additionalProperties" not in result
    ):
        result["x-kubernetes-preserve-unknown-fields"] = True
    return result


def _convert(schema: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for keyword, value in schema.items():
        match keyword:
            case _ if keyword in _DROPPED_KEYWORDS:
                continue
            case "$ref":
                result["$ref"] = value.rsplit("/", 1)[1]
            case "type":
                types = [item for item in ([value] if isinstance(value, str) else value) if item != "null"]
                result["type"] = types[0]
            case "properties":
                result["properties"] = {field: _convert(part) for field, part in value.items()}
                for field in ("apiVersion", "kind"):  # the server checks them itself, with a better message
                    result["properties"].get(field, {}).pop("enum", None)
            case "items" | "additionalProperties" if isinstance(value, dict):
                result[keyword] = _convert(value)
            case _:
                result[keyword] = copy.deepcopy(value)
    return result


def _with_defaults(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    for field, default in STATIC_DEFAULTS.get(name, {}).items():
        schema["properties"][field]["default"] = default
    return schema


def _references(schema: dict[str, Any]) -> Iterator[str]:
    if isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for part in schema.get("properties", {}).values():
        yield from _references(part)
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from _references(schema[keyword])


def main() -> int:
    TARGET.write_text(json.dumps(cut(), separators=(",", ":"), ensure_ascii=False, sort_keys=False) + "\n")
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
