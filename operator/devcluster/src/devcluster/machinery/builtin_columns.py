"""The columns in which `kubectl get` shows the built-in kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from devcluster.machinery.durations import age
from devcluster.machinery.pod_summary import pod_readiness, pod_restarts, pod_status
from devcluster.machinery.selectors import InvalidSelector, format_label_selector

Cell = Callable[[dict[str, Any], datetime], Any]
NONE: Final = "<none>"
UNKNOWN: Final = "<unknown>"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: how it is announced, and what an object shows in it. Priority 1 is for ``-o wide``."""

    name: str
    type: str
    cell: Cell
    format: str = ""
    description: str = ""
    priority: int = 0


def _at(obj: Any, *path: str, default: Any = None) -> Any:
    for part in path:
        obj = obj.get(part) if isinstance(obj, dict) else None
    return default if obj is None else obj


def _text(name: str, cell: Callable[[dict[str, Any]], Any], *, wide: bool = False, kind: str = "string") -> Column:
    return Column(name=name, type=kind, cell=lambda obj, _now: cell(obj), priority=int(wide))


def _count(name: str, cell: Callable[[dict[str, Any]], Any]) -> Column:
    return _text(name, cell, kind="integer")


NAME: Final = Column(
    name="Name",
    type="string",
    format="name",
    description="Name must be unique within a namespace.",
    cell=lambda obj, _now: _at(obj, "metadata", "name"),
)
AGE: Final = Column(
    name="Age",
    type="string",
    description="The time since the object was created.",
    cell=lambda obj, now: age(_at(obj, "metadata", "creationTimestamp"), now),
)


def creation_columns() -> list[Column]:
    """What a kind without columns of its own shows."""
    created = Column(name="Created At", type="date", cell=lambda obj, _now: _at(obj, "metadata", "creationTimestamp"))
    return [NAME, created]


def _containers(path: tuple[str, ...], field: str) -> Callable[[dict[str, Any]], str]:
    def cell(obj: dict[str, Any]) -> str:
        return ",".join(str(item.get(field, "")) for item in _at(obj, *path, default=[]))

    return cell


def _selector(*path: str) -> Callable[[dict[str, Any]], str]:
    def cell(obj: dict[str, Any]) -> str:
        try:
            return format_label_selector(_at(obj, *path, default={})) or NONE
        except InvalidSelector:
            return "<invalid>"

    return cell


_TEMPLATE: Final = ("spec", "template", "spec", "containers")
_WORKLOAD_WIDE: Final = [
    _text("Containers", _containers(_TEMPLATE, "name"), wide=True),
    _text("Images", _containers(_TEMPLATE, "image"), wide=True),
    _text("Selector", _selector("spec", "selector"), wide=True),
]


def _node_status(node: dict[str, Any]) -> str:
    conditions = {item.get("type"): item for item in _at(node, "status", "conditions", default=[])}
    ready = conditions.get("Ready")
    words = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if _at(node, "spec", "unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node_roles(node: dict[str, Any]) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = _at(node, "metadata", "labels", default={})
    return ",".join(sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix))) or NONE


def _node_address(kind: str) -> Callable[[dict[str, Any]], str]:
    def cell(node: dict[str, Any]) -> str:
        addresses = _at(node, "status", "addresses", default=[])
        return next((item["address"] for item in addresses if item.get("type") == kind), NONE)

    return cell


def _node_info(name: str, field: str, *, wide: bool = True) -> Column:
    return _text(name, lambda node: _at(node, "status", "nodeInfo", field, default=UNKNOWN), wide=wide)


def _service_ports(service: dict[str, Any]) -> str:
    ports = []
    for port in _at(service, "spec", "ports", default=[]):
        number = f"{port['port']}:{port['nodePort']}" if port.get("nodePort") else str(port["port"])
        ports.append(f"{number}/{port.get('protocol', 'TCP')}")
    return ",".join(ports) or NONE


def _service_external(service: dict[str, Any]) -> str:
    ingress = _at(service, "status", "loadBalancer", "ingress", default=[])
    found = [item.get("ip") or item.get("hostname") for item in ingress]
    if _at(service, "spec", "type") == "LoadBalancer" and not found:
        return "<pending>"
    return ",".join([*found, *_at(service, "spec", "externalIPs", default=[])]) or NONE


def _plain_selector(*path: str) -> Callable[[dict[str, Any]], str]:
    def cell(obj: dict[str, Any]) -> str:
        return ",".join(f"{key}={value}" for key, value in _at(obj, *path, default={}).items()) or NONE

    return cell


def _endpoints(obj: dict[str, Any]) -> str:
    found = [
        f"{address['ip']}:{port['port']}"
        for subset in obj.get("subsets", [])
        for address in subset.get("addresses", [])
        for port in subset.get("ports", [])
    ]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return (",".join(found[:3]) + more) or NONE


def _event_seen(*fields: tuple[str, ...]) -> Cell:
    def cell(event: dict[str, Any], now: datetime) -> str:
        moments = (_at(event, *field) for field in fields)
        return age(next((moment for moment in moments if moment), None), now)

    return cell


def _event_object(event: dict[str, Any]) -> str:
    target = event.get("involvedObject") or event.get("regarding") or {}
    return f"{str(target.get('kind', '')).lower()}/{target.get('name', '')}"


def _event_source(event: dict[str, Any]) -> str:
    source = event.get("source") or event.get("deprecatedSource") or {}
    component = source.get("component") or event.get("reportingComponent") or event.get("reportingController") or ""
    host = source.get("host") or event.get("reportingInstance")
    return f"{component}, {host}" if component and host else component


def _event_columns() -> list[Column]:
    last = _event_seen(("series", "lastObservedTime"), ("lastTimestamp",), ("deprecatedLastTimestamp",), ("eventTime",))
    first = _event_seen(("firstTimestamp",), ("deprecatedFirstTimestamp",), ("eventTime",))
    return [
        Column(name="Last Seen", type="string", cell=last),
        _text("Type", lambda event: event.get("type", "")),
        _text("Reason", lambda event: event.get("reason", "")),
        _text("Object", _event_object),
        _text("Subobject", lambda event: _at(event, "involvedObject", "fieldPath", default=""), wide=True),
        _text("Source", _event_source, wide=True),
        _text("Message", lambda event: str(event.get("message") or event.get("note") or "").strip()),
        Column(name="First Seen", type="string", cell=first, priority=1),
        _text("Count", lambda event: event.get("count") or _at(event, "series", "count", default=1), wide=True),
        _text("Name", lambda event: _at(event, "metadata", "name"), wide=True),
    ]


def _binding_columns() -> list[Column]:
    def subjects(kind: str) -> Callable[[dict[str, Any]], str]:
        def cell(obj: dict[str, Any]) -> str:
            return ", ".join(
                f"{item['namespace']}/{item['name']}" if kind == "ServiceAccount" else item["name"]
                for item in obj.get("subjects", [])
                if item.get("kind") == kind
            )

        return cell

    return [
        NAME,
        _text("Role", lambda obj: f"{_at(obj, 'roleRef', 'kind')}/{_at(obj, 'roleRef', 'name')}"),
        AGE,
        _text("Users", subjects("User"), wide=True),
        _text("Groups", subjects("Group"), wide=True),
        _text("ServiceAccounts", subjects("ServiceAccount"), wide=True),
    ]


BUILTIN_COLUMNS: Final[Mapping[tuple[str, str], list[Column]]] = {
    ("", "Namespace"): [NAME, _text("Status", lambda obj: _at(obj, "status", "phase", default="")), AGE],
    ("", "Node"): [
        NAME,
        _text("Status", _node_status),
        _text("Roles", _node_roles),
        AGE,
        _node_info("Version", "kubeletVersion", wide=False),
        _text("Internal-IP", _node_address("InternalIP"), wide=True),
        _text("External-IP", _node_address("ExternalIP"), wide=True),
        _node_info("OS-Image", "osImage"),
        _node_info("Kernel-Version", "kernelVersion"),
        _node_info("Container-Runtime", "containerRuntimeVersion"),
    ],
    ("", "Pod"): [
        NAME,
        _text("Ready", pod_readiness),
        _text("Status", pod_status),
        Column(name="Restarts", type="string", cell=pod_restarts),
        AGE,
        _text("IP", lambda pod: _at(pod, "status", "podIP", default=NONE), wide=True),
        _text("Node", lambda pod: _at(pod, "spec", "nodeName", default=NONE), wide=True),
        _text("Nominated Node", lambda pod: _at(pod, "status", "nominatedNodeName", default=NONE), wide=True),
        _text("Readiness Gates", lambda _pod: NONE, wide=True),
    ],
    ("", "ConfigMap"): [
        NAME,
        _count("Data", lambda obj: len(obj.get("data") or {}) + len(obj.get("binaryData") or {})),
        AGE,
    ],
    ("", "Secret"): [
        NAME,
        _text("Type", lambda obj: obj.get("type", "")),
        _count("Data", lambda obj: len(obj.get("data") or {})),
        AGE,
    ],
    ("", "ServiceAccount"): [NAME, _count("Secrets", lambda obj: len(obj.get("secrets") or [])), AGE],
    ("", "Service"): [
        NAME,
        _text("Type", lambda obj: _at(obj, "spec", "type", default="")),
        _text("Cluster-IP", lambda obj: _at(obj, "spec", "clusterIP", default=NONE)),
        _text("External-IP", _service_external),
        _text("Port(s)", _service_ports),
        AGE,
        _text("Selector", _plain_selector("spec", "selector"), wide=True),
    ],
    ("", "Endpoints"): [NAME, _text("Endpoints", _endpoints), AGE],
    ("", "Event"): _event_columns(),
    ("events.k8s.io", "Event"): _event_columns(),
    ("apps", "Deployment"): [
        NAME,
        _text(
            "Ready",
            lambda obj: f"{_at(obj, 'status', 'readyReplicas', default=0)}/{_at(obj, 'spec', 'replicas', default=0)}",
        ),
        _text("Up-to-date", lambda obj: _at(obj, "status", "updatedReplicas", default=0)),
        _text("Available", lambda obj: _at(obj, "status", "availableReplicas", default=0)),
        AGE,
        *_WORKLOAD_WIDE,
    ],
    ("apps", "ReplicaSet"): [
        NAME,
        _count("Desired", lambda obj: _at(obj, "spec", "replicas", default=0)),
        _count("Current", lambda obj: _at(obj, "status", "replicas", default=0)),
        _count("Ready", lambda obj: _at(obj, "status", "readyReplicas", default=0)),
        AGE,
        *_WORKLOAD_WIDE,
    ],
    ("coordination.k8s.io", "Lease"): [
        NAME,
        _text("Holder", lambda obj: _at(obj, "spec", "holderIdentity", default="")),
        AGE,
    ],
    ("policy", "PodDisruptionBudget"): [
        NAME,
        _text("Min Available", lambda obj: str(_at(obj, "spec", "minAvailable", default="N/A"))),
        _text("Max Unavailable", lambda obj: str(_at(obj, "spec", "maxUnavailable", default="N/A"))),
        _count("Allowed Disruptions", lambda obj: _at(obj, "status", "disruptionsAllowed", default=0)),
        AGE,
    ],
    ("networking.k8s.io", "NetworkPolicy"): [NAME, _text("Pod-Selector", _selector("spec", "podSelector")), AGE],
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding_columns(),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding_columns(),
}
