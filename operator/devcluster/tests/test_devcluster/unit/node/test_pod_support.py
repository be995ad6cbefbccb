"""What the node runs, what it accepts without effect, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from devcluster.node.pod_support import find_refusals, find_unschedulable, program_of, repository_of


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod with one container."""
    containers = [{"name": "worker", "image": "tasker-worker", **(container or {})}]
    return {"metadata": {"name": "p"}, "spec": {"containers": containers, **spec}}


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("tasker-worker", "tasker-worker"),
        ("tasker-worker:0.1.0", "tasker-worker"),
        ("registry:5000/team/tasker-worker", "registry:5000/team/tasker-worker"),
        ("registry:5000/team/tasker-worker:1@sha256:abc", "registry:5000/team/tasker-worker"),
    ],
)
def test_repository_is_the_image_without_tag_and_digest(image: str, repository: str) -> None:
    assert repository_of(image) == repository
    assert program_of(image, {"tasker-worker": ("run",)}) == ("run",)


def test_other_images_have_no_program() -> None:
    assert program_of("tasker-worker-extra:1", {"tasker-worker": ("run",)}) is None
    assert program_of("nginx:tasker-worker", {"tasker-worker": ("run",)}) is None


def test_pod_of_a_hardened_deployment_is_accepted() -> None:
    hardened = {
        "args": ["handlers"],
        "imagePullPolicy": "Always",
        "resources": {"limits": {"memory": "1Gi"}},
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "lifecycle": {},
        "terminationMessagePolicy": "File",
    }
    spec = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{}]}},
        "priorityClassName": "high",
        "initContainers": [],
    }
    assert find_refusals(pod(hardened, **spec)) == []


@pytest.mark.parametrize(
    ("container", "spec", "path"),
    [
        ({"command": ["sh"]}, {}, "spec.containers[0].command"),
        ({"livenessProbe": {"tcpSocket": {"port": 1}}}, {}, "spec.containers[0].livenessProbe.tcpSocket"),
        ({"readinessProbe": {"grpc": {"port": 1}}}, {}, "spec.containers[0].readinessProbe.grpc"),
        ({"restartPolicy": "Always"}, {}, "spec.containers[0].restartPolicy"),
        ({"workingDir": "/app"}, {}, "spec.containers[0].workingDir"),
        ({"volumeMounts": [{"name": "no", "mountPath": "/x"}]}, {}, "spec.containers[0].volumeMounts"),
        (
            {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]},
            {},
            "spec.containers[0].env[0].valueFrom.resourceFieldRef",
        ),
        ({"name": "../x"}, {}, "spec.containers[0].name"),
        ({}, {"initContainers": [{"name": "i"}]}, "spec.initContainers"),
        ({}, {"activeDeadlineSeconds": 5}, "spec.activeDeadlineSeconds"),
        (
            {},
            {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            "spec.volumes[0].persistentVolumeClaim",
        ),
        (
            {},
            {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
            "spec.volumes[0].projected.sources[0].serviceAccountToken",
        ),
        (
            {},
            {
                "affinity": {
                    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}
                }
            },
            "spec.affinity.nodeAffinity",
        ),
        ({}, {"somethingNew": {"x": 1}}, "spec.somethingNew"),
    ],
)
def test_what_would_change_the_outcome_is_refused_by_path(
    container: dict[str, Any], spec: dict[str, Any], path: str
) -> None:
    (refusal,) = find_refusals(pod(container, **spec))
    assert refusal.partition(":")[0] == path


def test_node_selector_is_compared_with_the_nodes_labels() -> None:
    wanted = pod(nodeSelector={"kubernetes.io/os": "linux", "disk": "ssd"})
    assert find_unschedulable(wanted, {"kubernetes.io/os": "linux", "disk": "ssd"}, "n") is None
    assert "(n lacks disk=ssd)" in str(find_unschedulable(wanted, {"kubernetes.io/os": "linux"}, "n"))
