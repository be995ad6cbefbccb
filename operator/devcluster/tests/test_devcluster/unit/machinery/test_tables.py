"""What `kubectl get` shows is made here, and looks as on a real cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devcluster.machinery.durations import human_duration
from devcluster.machinery.jsonpath import InvalidJsonPath, compile_json_path
from devcluster.machinery.table import to_table
from support.definitions import builtin, custom, project_kind, widget

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ago(**how_long: float) -> str:
    return (NOW - timedelta(**how_long)).isoformat().replace("+00:00", "Z")


def row(resource: Any, obj: dict[str, Any], *, wide: bool = False) -> dict[str, Any]:
    """The cells of one object by the names of their columns."""
    table = to_table(resource, [obj], NOW)
    shown = [index for index, column in enumerate(table["columnDefinitions"]) if wide or not column["priority"]]
    return {table["columnDefinitions"][index]["name"]: table["rows"][0]["cells"][index] for index in shown}


def test_a_custom_kind_shows_its_columns() -> None:
    columns = [
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
        {"name": "Count", "type": "integer", "jsonPath": ".spec.count"},
        {"name": "Ratio", "type": "number", "jsonPath": ".spec.ratio"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
        {"name": "Seen", "type": "date", "jsonPath": ".status.seen"},
        {"name": "List", "type": "string", "jsonPath": ".spec.list", "priority": 1},
        {"name": "Missing", "type": "string", "jsonPath": ".spec.missing"},
    ]
    open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    resource = custom(open_object, additionalPrinterColumns=columns)
    obj = widget(
        {"count": 3, "ratio": 2, "on": True, "list": ["a", "b"]},
        status={
            "conditions": [{"type": "Other", "status": "x"}, {"type": "Ready", "status": "True"}],
            "seen": ago(minutes=3, seconds=4),
        },
    )
    assert row(resource, obj) == {
        "Name": "w",
        "Ready": "True",
        "Count": 3,
        "Ratio": 2.0,
        "On": True,
        "Seen": "3m4s",
        "Missing": None,
    }
    assert row(resource, obj, wide=True)["List"] == '["a","b"]'
    mistyped = widget({"count": "three", "on": 1})
    assert row(resource, mistyped)["Count"] is None
    assert row(resource, mistyped)["On"] is None


def test_without_columns_of_its_own_a_kind_shows_name_and_age() -> None:
    obj = widget({})
    obj["metadata"]["creationTimestamp"] = ago(hours=5, minutes=1)
    assert row(custom({"type": "object"}), obj) == {"Name": "w", "Age": "5h1m"}


def test_a_row_carries_as_much_of_the_object_as_was_asked_for() -> None:
    resource = custom({"type": "object"})
    obj = widget({})
    metadata = to_table(resource, [obj], NOW)["rows"][0]["object"]
    assert metadata == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }
    assert to_table(resource, [obj], NOW, include_object="Object")["rows"][0]["object"] == obj
    assert to_table(resource, [obj], NOW, include_object="None")["rows"][0]["object"] is None


@pytest.mark.parametrize("kind", ["TaskTemplate", "Task", "WorkerPool"])
def test_the_projects_kinds_can_be_shown_before_they_have_a_status(kind: str) -> None:
    obj = {"metadata": {"name": "x", "creationTimestamp": ago(seconds=7)}, "spec": {}}
    cells = row(project_kind(kind), obj)
    assert cells["Name"] == "x"
    assert cells["Age"] == "7s"


def pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "creationTimestamp": ago(days=3), **metadata},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "local"},
        "status": status,
    }


def container(state: dict[str, Any], *, ready: bool = False, restarts: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": "a", "state": state, "ready": ready, "restartCount": restarts, **more}


@pytest.mark.parametrize(
    ("given_pod", "shown"),
    [
        (pod({"phase": "Pending"}), ("0/2", "Pending", "0")),
        (
            pod({"phase": "Running", "containerStatuses": [container({"running": {}}, ready=True)]}),
            ("1/2", "Running", "0"),
        ),
        (
            pod(
                {
                    "phase": "Running",
                    "containerStatuses": [
                        container(
                            {"waiting": {"reason": "CrashLoopBackOff"}},
                            restarts=4,
                            lastState={"terminated": {"finishedAt": ago(seconds=9)}},
                        )
                    ],
                }
            ),
            ("0/2", "CrashLoopBackOff", "4 (9s ago)"),
        ),
        (
            pod({"phase": "Failed", "containerStatuses": [container({"terminated": {"exitCode": 3}})]}),
            ("0/2", "ExitCode:3", "0"),
        ),
        (
            pod({"phase": "Failed", "containerStatuses": [container({"terminated": {"signal": 9, "exitCode": 137}})]}),
            ("0/2", "Signal:9", "0"),
        ),
        (
            pod({"phase": "Succeeded", "containerStatuses": [container({"terminated": {"reason": "Completed"}})]}),
            ("0/2", "Completed", "0"),
        ),
        (pod({"phase": "Running"}, deletionTimestamp=ago(seconds=1)), ("0/2", "Terminating", "0")),
        (pod({"phase": "Failed", "reason": "Evicted"}), ("0/2", "Evicted", "0")),
        (
            pod({"phase": "Pending", "initContainerStatuses": [container({"waiting": {"reason": "PodInitializing"}})]}),
            ("0/2", "Init:0/0", "0"),
        ),
    ],
)
def test_a_pod_is_summed_up_as_kubectl_users_know_it(given_pod: dict[str, Any], shown: tuple[str, str, str]) -> None:
    cells = row(builtin("Pod"), given_pod)
    assert (cells["Ready"], cells["Status"], cells["Restarts"]) == shown
    assert cells["Age"] == "3d"


def test_a_deployment_shows_its_replicas() -> None:
    obj = {
        "metadata": {"name": "d", "creationTimestamp": ago(seconds=30)},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        },
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1},
    }
    assert row(builtin("Deployment"), obj, wide=True) == {
        "Name": "d",
        "Ready": "2/3",
        "Up-to-date": 3,
        "Available": 1,
        "Age": "30s",
        "Containers": "c",
        "Images": "i:1",
        "Selector": "a=b",
    }


def test_an_event_shows_what_happened_to_what() -> None:
    obj = {
        "metadata": {"name": "e"},
        "type": "Warning",
        "reason": "Failed",
        "message": "it did\n",
        "lastTimestamp": ago(minutes=2),
        "involvedObject": {"kind": "Task", "name": "t"},
        "source": {"component": "tasker"},
    }
    cells = row(builtin("Event", ""), obj, wide=True)
    assert (cells["Last Seen"], cells["Object"], cells["Message"]) == ("2m", "task/t", "it did")
    assert cells["Source"] == "tasker"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-0.5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600 + 60, "8h"),
        (2 * 86400, "2d"),
        (2 * 86400 + 3600, "2d1h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ],
)
def test_durations_read_as_kubectl_prints_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


OBJECT = {
    "a": {"b.c": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
    "metadata": {"labels": {"example.test/key": "found"}},
}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (".a.list[0].n", ["x"]),
        (".a.list[-1].v", [2]),
        (".a.list[*].v", [1, 2]),
        (".a.list[0:1].n", ["x"]),
        ('.a.list[?(@.n=="y")].v', [2]),
        (".a.list[?(@.v>1)].n", ["y"]),
        (".a.list[?(@.gone)].n", []),
        (".a['b.c']", [1]),
        (r".a.b\.c", [1]),
        (r".metadata.labels.example\.test/key", ["found"]),
        ("..n", ["x", "y"]),
        ("{.a.list[0].v}", [1]),
        (".nothing.here", []),
        (".a.list[7]", []),
        (".a.list[0]['n','v']", ["x", 1]),
    ],
)
def test_a_json_path_finds(path: str, values: list[Any]) -> None:
    assert compile_json_path(path)(OBJECT) == values


@pytest.mark.parametrize("path", ["a.b", "", ".a[", ".a[x]", ".a[?(@.b=~'x')]", ".a."])
def test_a_json_path_that_cannot_be_read_is_refused(path: str) -> None:
    with pytest.raises(InvalidJsonPath):
        compile_json_path(path)
