"""What single kinds need of the write path beyond their schema: a first status, fields of the server, fixed fields.

`writing` calls `prepare_create` and `prepare_update` after defaulting and before an object is validated, and `faults`
with the schema's check. A custom resource needs nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from devcluster.apiserver.object_meta import timestamp
from devcluster.apiserver.registry import CRDS, PODS, SERVICE_ACCOUNTS, ResourceRegistry, Served
from devcluster.apiserver.storage import Storage
from devcluster.machinery.field_errors import FieldError, forbidden, invalid
from devcluster.machinery.resources import InvalidDefinition, from_crd

CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"

KEEPS_STATUS_ON_CREATE = frozenset({"nodes"})
_COUNTS_GENERATIONS = frozenset(
    {
        PODS,
        CRDS,
        "deployments.apps",
        "replicasets.apps",
        "networkpolicies.networking.k8s.io",
        "poddisruptionbudgets.policy",
    }
)
_POD_CHANGES = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_POD_SPEC_MAY_CHANGE = frozenset({"activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"})


def counts_generations(served: Served) -> bool:
    """Whether `metadata.generation` is kept: by custom resources and by the built-in kinds that have a controller."""
    return bool(served.crd) or served.storage in _COUNTS_GENERATIONS


def generation_content(served: Served, obj: Mapping[str, Any]) -> Any:
    """The part of the object whose change makes a new generation."""
    if not served.crd:
        return obj.get("spec")
    ignored = {"metadata", "apiVersion", "kind"}
    if "status" in served.info.subresources:
        ignored.add("status")
    return {key: value for key, value in obj.items() if key not in ignored}


def prepare_create(served: Served, obj: dict[str, Any], *, registry: ResourceRegistry, now: datetime) -> None:
    """Fills in what the server sets on a new, defaulted object of this kind, in place."""
    match served.storage:
        case "namespaces":
            obj["spec"] = {"finalizers": ["kubernetes"]}
            obj["status"] = {"phase": "Active"}
        case "pods":
            obj["status"] = {"phase": "Pending", "qosClass": _quality_of_service(obj)}
        case "deployments.apps":
            obj["status"] = {}
        case "replicasets.apps":
            obj["status"] = {"replicas": 0}
        case "services":
            obj["status"] = {"loadBalancer": {}}
        case "customresourcedefinitions.apiextensions.k8s.io":
            obj["metadata"].setdefault("finalizers", []).append(CRD_FINALIZER)
            obj["status"] = crd_status(obj, None, registry=registry, now=now)


def refuse_admission(served: Served, obj: Mapping[str, Any], storage: Storage) -> str | None:
    """Why a new object is not let in although nothing is wrong with it: a pod whose ServiceAccount does not exist.

    The account ``default`` is taken for granted: every namespace gets one soon after it was made.
    """
    if served.storage != PODS or not isinstance(obj.get("spec"), Mapping):
        return None
    namespace = obj["metadata"]["namespace"]
    account = obj["spec"].get("serviceAccountName") or "default"
    if account == "default" or storage.get(SERVICE_ACCOUNTS, namespace, account) is not None:
        return None
    return f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'


def prepare_update(
    served: Served, new: dict[str, Any], old: dict[str, Any], *, registry: ResourceRegistry, now: datetime
) -> None:
    """The same for a new state of an object; not called for its subresources."""
    match served.storage:
        case "namespaces":
            new["spec"] = old.get("spec", {})
        case "customresourcedefinitions.apiextensions.k8s.io":
            new["status"] = crd_status(new, old, registry=registry, now=now)


def faults(served: Served, new: dict[str, Any], old: Mapping[str, Any] | None) -> Iterator[FieldError]:
    """Faults of a new object, or of a change, that the kind's schema cannot express."""
    match served.storage:
        case "pods" if old is not None:
            bound = "nodeName" in old["spec"]  # the embedded node binds a pod by writing its name there
            if _frozen_pod_spec(new["spec"], bound=bound) != _frozen_pod_spec(old["spec"], bound=bound):
                yield forbidden("spec", _POD_CHANGES)
        case "customresourcedefinitions.apiextensions.k8s.io":
            try:
                from_crd(new)
            except InvalidDefinition as error:
                yield from error.errors
            else:
                if old is not None:
                    yield from _crd_change_faults(new, old)


def crd_status(
    crd: Mapping[str, Any], old: Mapping[str, Any] | None, *, registry: ResourceRegistry, now: datetime
) -> dict[str, Any]:
    """The status that establishes a CRD: accepted names, the two conditions, the versions that were ever stored."""
    status: dict[str, Any] = dict(old.get("status", {})) if old else {}
    spec = crd.get("spec")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("names"), Mapping) or not spec.get("group"):
        return status  # the schema's check will say what is missing
    names = dict(spec["names"])
    if not isinstance(names.get("kind"), str) or not isinstance(names.get("plural"), str):
        return status
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", names["kind"] + "List")
    taken = list(registry.names_taken(crd))
    if taken:
        accepted = {"status": "False", "reason": "NameConflict", "message": taken[0]}
        established = {"status": "False", "reason": "NotAccepted", "message": "not all names are accepted"}
    else:
        accepted = {"status": "True", "reason": "NoConflicts", "message": "no conflicts found"}
        established = {
            "status": "True",
            "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        }
        status["acceptedNames"] = names
    status.setdefault("acceptedNames", {"kind": "", "plural": ""})
    conditions = [item for item in status.get("conditions", []) if item["type"] not in ("NamesAccepted", "Established")]
    for kind, condition in (("NamesAccepted", accepted), ("Established", established)):
        before = next((item for item in status.get("conditions", []) if item["type"] == kind), None)
        changed = before is None or before["status"] != condition["status"]
        since = timestamp(now) if before is None or changed else before["lastTransitionTime"]
        conditions.append({"type": kind, "lastTransitionTime": since, **condition})
    status["conditions"] = conditions
    storage = [version["name"] for version in spec.get("versions") or [] if version.get("storage")]
    status["storedVersions"] = list(dict.fromkeys([*status.get("storedVersions", []), *storage]))
    return status


def is_established(crd: Mapping[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions", [])
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def _frozen_pod_spec(spec: Mapping[str, Any], *, bound: bool) -> dict[str, Any]:
    free = _POD_SPEC_MAY_CHANGE if bound else _POD_SPEC_MAY_CHANGE | {"nodeName"}
    frozen = {key: value for key, value in spec.items() if key not in free}
    for field in ("containers", "initContainers"):
        frozen[field] = [
            {key: value for key, value in container.items() if key != "image"} for container in spec.get(field) or []
        ]
    return frozen


def _quality_of_service(pod: Mapping[str, Any]) -> str:
    """`BestEffort` without any request or limit, else `Burstable`: the embedded node reserves nothing."""
    spec = pod.get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    for container in containers if isinstance(containers, list) else ():
        resources = container.get("resources") if isinstance(container, Mapping) else None
        if isinstance(resources, Mapping) and (resources.get("requests") or resources.get("limits")):
            return "Burstable"
    return "BestEffort"


def _crd_change_faults(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[FieldError]:
    for path in (("group",), ("scope",), ("names", "plural"), ("names", "kind")):
        now, before = new["spec"], old["spec"]
        for part in path:
            now, before = now.get(part), before.get(part)
        if now != before:
            yield invalid(".".join(("spec", *path)), now, "field is immutable")
