"""What of a pod's spec this node honours, what it accepts without effect, and what it refuses. Called by ``kubelet``.

A pod here is a few processes on this machine, not containers. What isolates a container, limits it, or says where among
many nodes it should run has no meaning and is accepted without effect: a manifest written for a real cluster must
run as it is. What would change the outcome if it were ignored is refused, with its path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from devcluster.node.objects import KubeObject
from devcluster.node.volumes import missing_mounts, unsupported_volumes

_POD_HONOURED = {
    "containers",
    "volumes",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "nodeName",
    "nodeSelector",
    "serviceAccountName",
    "affinity",
}
_POD_WITHOUT_EFFECT = {
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "imagePullSecrets",
    "os",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "tolerations",
    "topologySpreadConstraints",
}
_CONTAINER_HONOURED = {
    "args",
    "env",
    "envFrom",
    "image",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
    "workingDir",
}
_CONTAINER_WITHOUT_EFFECT = {
    "imagePullPolicy",
    "resizePolicy",
    "resources",
    "securityContext",
}
_MOUNT_FIELDS = {"name", "mountPath", "subPath", "readOnly", "recursiveReadOnly"}
_PROBE_FIELDS = {
    "httpGet",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
}
_ENV_SOURCES = {"secretKeyRef", "configMapKeyRef", "fieldRef"}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def find_refusals(pod: KubeObject) -> list[str]:
    """Everything in the pod that this node cannot do, each as ``path: reason``. Empty: it can be run."""
    return list(_refusals(pod))


def find_unschedulable(pod: KubeObject, labels: Mapping[str, str], node_name: str) -> str | None:
    """Why the pod does not fit on this node, the only one there is."""
    selector = pod["spec"].get("nodeSelector") or {}
    wrong = [f"{name}={value}" for name, value in selector.items() if labels.get(name) != value]
    if wrong:
        lacks = f"{node_name} lacks {', '.join(wrong)}"
        return f"0/1 nodes are available: 1 node(s) didn't match Pod's node selector ({lacks})"
    return None


def program_of(image: str, images: Mapping[str, Sequence[str]]) -> Sequence[str] | None:
    """The command for an image: the first whose key its repository ends in."""
    repository = repository_of(image)
    return next((command for ending, command in images.items() if repository.endswith(ending)), None)


def repository_of(image: str) -> str:
    """The image's name without its digest and tag."""
    name = image.partition("@")[0]
    head, separator, last = name.rpartition("/")
    return f"{head}{separator}{last.partition(':')[0]}"


def _refusals(pod: KubeObject) -> Iterator[str]:
    spec = pod["spec"]
    yield from _unknown(spec, "spec", _POD_HONOURED | _POD_WITHOUT_EFFECT)
    for kind, affinity in (spec.get("affinity") or {}).items():
        if (affinity or {}).get("requiredDuringSchedulingIgnoredDuringExecution"):
            yield f"spec.affinity.{kind}: required affinity is not evaluated by this node"
    yield from unsupported_volumes(spec.get("volumes") or ())
    for volume in spec.get("volumes") or ():
        if not _NAME.fullmatch(volume["name"]):
            yield f"spec.volumes: {volume['name']!r} is not a valid name"
    for index, container in enumerate(spec["containers"]):
        yield from _container(pod, container, f"spec.containers[{index}]")


def _container(pod: KubeObject, container: Mapping[str, Any], path: str) -> Iterator[str]:
    if container.get("command"):
        yield f"{path}.command: this node runs only the programs of images it knows, never a command of a pod; use args"
    yield from _unknown(container, path, _CONTAINER_HONOURED | _CONTAINER_WITHOUT_EFFECT | {"command"})
    if not _NAME.fullmatch(container["name"]):
        yield f"{path}.name: {container['name']!r} is not a valid name"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(name):
            yield from _unknown(container[name], f"{path}.{name}", _PROBE_FIELDS)
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        yield from _unknown(mount, f"{path}.volumeMounts[{index}]", _MOUNT_FIELDS)
    for reason in missing_mounts(pod, container):
        yield f"{path}.{reason}"
    for index, variable in enumerate(container.get("env") or ()):
        yield from _unknown(variable.get("valueFrom") or {}, f"{path}.env[{index}].valueFrom", _ENV_SOURCES)
    folder = container.get("workingDir")
    roots = [mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts") or ()]
    if folder and not any(folder == root or folder.startswith(f"{root}/") for root in roots):
        yield f"{path}.workingDir: {folder} is in no mounted volume, and this node has no image's files"


def _unknown(value: Mapping[str, Any], path: str, known: set[str]) -> Iterator[str]:
    for name in sorted(set(value) - known):
        if value[name] not in (None, False, "", [], {}):
            yield f"{path}.{name}: this is not supported by the embedded node"
