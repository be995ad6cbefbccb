"""The restricted Pod Security Standard, rule by rule, as https://kubernetes.io/docs/concepts/security/ states it.

`violations` takes any pod spec, rendered by the chart or made by the operator, and names what an admission controller
would refuse. Restricted includes baseline, so the rules of both are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

PodSpec = Mapping[str, Any]

VOLUME_TYPES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
SELINUX_TYPES = frozenset({None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})


def violations(pod: PodSpec) -> list[str]:
    """Every rule that the pod breaks, with where; none for a pod that the restricted level admits."""
    return [f"{rule.__name__.strip('_')}: {where}" for rule in RULES for where in rule(pod)]


def _containers(pod: PodSpec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(field) or ():
            yield f"{field}[{container['name']}]", container


def _contexts(pod: PodSpec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "pod", pod.get("securityContext") or {}
    for where, container in _containers(pod):
        yield where, container.get("securityContext") or {}


def _host_namespaces(pod: PodSpec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field


def _host_process(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield where


def _privileged(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        if context.get("privileged"):
            yield where


def _capabilities(pod: PodSpec) -> Iterator[str]:
    for where, container in _containers(pod):
        capabilities = (container.get("securityContext") or {}).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{where} does not drop ALL"
        for added in capabilities.get("add") or ():
            if added != "NET_BIND_SERVICE":
                yield f"{where} adds {added}"


def _volume_types(pod: PodSpec) -> Iterator[str]:
    for volume in pod.get("volumes") or ():
        for kind in volume.keys() - {"name"} - VOLUME_TYPES:
            yield f"volumes[{volume['name']}] is of type {kind}"


def _host_ports(pod: PodSpec) -> Iterator[str]:
    for where, container in _containers(pod):
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield f"{where} takes host port {port['hostPort']}"


def _probe_hosts(pod: PodSpec) -> Iterator[str]:
    for where, container in _containers(pod):
        lifecycle = container.get("lifecycle") or {}
        handlers = {name: container.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
        handlers |= {name: lifecycle.get(name) for name in ("postStart", "preStop")}
        for name, handler in handlers.items():
            for action in ("httpGet", "tcpSocket"):
                if ((handler or {}).get(action) or {}).get("host"):
                    yield f"{where} {name} names a host"


def _app_armor(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield where


def _selinux(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        options = context.get("seLinuxOptions") or {}
        if options.get("type") not in SELINUX_TYPES or options.get("user") or options.get("role"):
            yield where


def _proc_mount(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        if context.get("procMount", "Default") != "Default":
            yield where


def _sysctls(pod: PodSpec) -> Iterator[str]:
    for sysctl in (pod.get("securityContext") or {}).get("sysctls") or ():
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield sysctl["name"]


def _seccomp(pod: PodSpec) -> Iterator[str]:
    allowed = ("RuntimeDefault", "Localhost")
    of_pod = ((pod.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    if of_pod is not None and of_pod not in allowed:
        yield f"pod has {of_pod}"
    for where, container in _containers(pod):
        own = ((container.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
        if (own or of_pod) not in allowed:
            yield f"{where} has {own or of_pod}"


def _privilege_escalation(pod: PodSpec) -> Iterator[str]:
    for where, container in _containers(pod):
        if (container.get("securityContext") or {}).get("allowPrivilegeEscalation") is not False:
            yield where


def _run_as_non_root(pod: PodSpec) -> Iterator[str]:
    of_pod = (pod.get("securityContext") or {}).get("runAsNonRoot")
    for where, container in _containers(pod):
        own = (container.get("securityContext") or {}).get("runAsNonRoot")
        if (of_pod if own is None else own) is not True:
            yield where


def _run_as_user(pod: PodSpec) -> Iterator[str]:
    for where, context in _contexts(pod):
        if context.get("runAsUser") == 0:
            yield where


RULES: tuple[Callable[[PodSpec], Iterator[str]], ...] = (
    _host_namespaces,
    _host_process,
    _privileged,
    _capabilities,
    _volume_types,
    _host_ports,
    _probe_hosts,
    _app_armor,
    _selinux,
    _proc_mount,
    _sysctls,
    _seccomp,
    _privilege_escalation,
    _run_as_non_root,
    _run_as_user,
)
