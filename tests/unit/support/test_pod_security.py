"""`support.pod_security` refuses each thing that the restricted standard refuses, and nothing of a good pod."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from support.pod_security import RULES, violations

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "a",
            "ports": [{"containerPort": 80}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
        }
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
}
OWN = ("containers", 0, "securityContext")

BAD: list[tuple[str, tuple[Any, ...], Any]] = [
    ("host_namespaces", ("hostNetwork",), True),
    ("host_namespaces", ("hostPID",), True),
    ("host_namespaces", ("hostIPC",), True),
    ("host_process", (*OWN, "windowsOptions"), {"hostProcess": True}),
    ("privileged", (*OWN, "privileged"), True),
    ("capabilities", (*OWN, "capabilities"), {"drop": ["NET_RAW"]}),
    ("capabilities", (*OWN, "capabilities"), {"drop": ["ALL"], "add": ["SYS_TIME"]}),
    ("volume_types", ("volumes", 0), {"name": "v", "hostPath": {"path": "/"}}),
    ("host_ports", ("containers", 0, "ports"), [{"containerPort": 80, "hostPort": 80}]),
    ("probe_hosts", ("containers", 0, "livenessProbe"), {"httpGet": {"port": 80, "host": "10.0.0.1"}}),
    ("probe_hosts", ("containers", 0, "lifecycle"), {"preStop": {"tcpSocket": {"port": 80, "host": "x"}}}),
    ("app_armor", (*OWN, "appArmorProfile"), {"type": "Unconfined"}),
    ("selinux", (*OWN, "seLinuxOptions"), {"type": "spc_t"}),
    ("selinux", ("securityContext", "seLinuxOptions"), {"user": "system_u"}),
    ("proc_mount", (*OWN, "procMount"), "Unmasked"),
    ("sysctls", ("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
    ("seccomp", (*OWN, "seccompProfile"), {"type": "Unconfined"}),
    ("seccomp", ("securityContext", "seccompProfile"), None),
    ("privilege_escalation", (*OWN, "allowPrivilegeEscalation"), None),
    ("run_as_non_root", ("securityContext", "runAsNonRoot"), None),
    ("run_as_non_root", (*OWN, "runAsNonRoot"), False),
    ("run_as_user", (*OWN, "runAsUser"), 0),
]


def test_a_pod_that_meets_the_standard_breaks_no_rule() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(("rule", "path", "value"), BAD)
def test_a_pod_that_breaks_one_rule_is_told_which(rule: str, path: tuple[Any, ...], value: Any) -> None:
    pod = copy.deepcopy(GOOD)
    place: Any = pod
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert [found.partition(":")[0] for found in violations(pod)] == [rule]


def test_init_containers_count_as_well() -> None:
    pod = copy.deepcopy(GOOD) | {"initContainers": [{"name": "i"}]}
    assert {found.partition(":")[0] for found in violations(pod)} == {"capabilities", "privilege_escalation"}


def test_every_rule_has_a_pod_that_breaks_it() -> None:
    assert {rule.__name__.strip("_") for rule in RULES} == {rule for rule, *_ in BAD}
