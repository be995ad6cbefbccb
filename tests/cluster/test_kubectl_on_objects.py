"""Everyday kubectl on built-in kinds and on ours: what it prints and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import Kubectl
from support.waiting import PATIENCE, eventually


def deployment(name: str = "web", *, replicas: int = 0, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "registry.example/none:1", **container}]},
            },
        },
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def task(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {"templateRef": {"name": "order"}, "context": {"order_id": 7}, **spec},
    }


@pytest.mark.parametrize(
    ("arguments", "resource", "path", "expected"),
    [
        (("configmap", "a", "--from-literal=k=v"), "configmap/a", "{.data.k}", "v"),
        (("secret", "generic", "a", "--from-literal=k=v"), "secret/a", "{.data.k} {.type}", "dg== Opaque"),
        (("serviceaccount", "a"), "serviceaccount/a", "{.metadata.name}", "a"),
        (
            ("deployment", "a", "--image=x.example/y:1", "--replicas=0", "--port=80"),
            "deployment/a",
            "{.spec.replicas} {.spec.template.spec.containers[0].ports[0].protocol}",
            "0 TCP",
        ),
        (
            ("service", "clusterip", "a", "--tcp=80:http"),
            "service/a",
            "{.spec.ports[0].port} {.spec.ports[0].targetPort}",
            "80 http",
        ),
        (("role", "a", "--verb=get", "--resource=pods"), "role/a", "{.rules[0].verbs[0]}", "get"),
        (
            ("rolebinding", "a", "--role=a", "--serviceaccount=other:b"),
            "rolebinding/a",
            "{.roleRef.name} {.subjects[0].namespace}",
            "a other",
        ),
        (
            ("poddisruptionbudget", "a", "--selector=app=x", "--min-available=50%"),
            "pdb/a",
            "{.spec.minAvailable} {.spec.selector.matchLabels.app}",
            "50% x",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_create_commands_store_what_they_say(
    kubectl: Kubectl, arguments: tuple[str, ...], resource: str, path: str, expected: str
) -> None:
    """These commands send protobuf, whatever the server would rather have."""
    kubectl("create", *arguments)
    assert kubectl("get", resource, "-o", f"jsonpath={path}") == expected


def test_create_of_what_exists_is_refused(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "a")
    assert 'configmaps "a" already exists' in kubectl.fails("create", "configmap", "a")


def test_apply_says_created_unchanged_configured(kubectl: Kubectl) -> None:
    assert kubectl.apply(deployment(), config_map("a", k="v")) == "deployment.apps/web created\nconfigmap/a created\n"
    before = versions(kubectl)
    assert (
        kubectl.apply(deployment(), config_map("a", k="v")) == "deployment.apps/web unchanged\nconfigmap/a unchanged\n"
    )
    assert versions(kubectl) == before
    assert kubectl.apply(deployment(image="registry.example/none:2")) == "deployment.apps/web configured\n"
    assert kubectl.get("deployment", "web")["metadata"]["generation"] >= 2


def versions(kubectl: Kubectl) -> tuple[int, str]:
    """What a write would change: of a Deployment, whose status its controller writes, the generation."""
    config = kubectl.get("configmap", "a")
    return kubectl.get("deployment", "web")["metadata"]["generation"], config["metadata"]["resourceVersion"]


def test_apply_takes_away_what_the_manifest_no_longer_has(kubectl: Kubectl) -> None:
    kubectl.apply(deployment(env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], command=["run"]))
    kubectl("set", "env", "deployment/web", "C=3")
    kubectl.apply(deployment(env=[{"name": "B", "value": "2"}]))
    container = kubectl.get("deployment", "web")["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "B", "value": "2"}, {"name": "C", "value": "3"}]
    assert "command" not in container


def test_apply_on_server_side_reports_conflicts_and_can_take_over(kubectl: Kubectl) -> None:
    kubectl.apply(task("t", priority=1), options=("--server-side", "--field-manager=first"))
    refused = kubectl.run(
        "apply",
        "--server-side",
        "--field-manager=second",
        "-f",
        "-",
        stdin=json.dumps(task("t", suspend=True, priority=2)),
    )
    assert refused.code == 1
    assert 'conflict with "first"' in refused.err
    assert ".spec.priority" in refused.err
    kubectl.apply(task("t", suspend=True), options=("--server-side", "--field-manager=second"))
    assert kubectl.get("task", "t")["spec"] | {} == {
        "templateRef": {"name": "order"},
        "context": {"order_id": 7},
        "priority": 1,
        "suspend": True,
        "cancel": False,
    }
    kubectl.apply(task("t"), options=("--server-side", "--field-manager=second"))
    assert kubectl.get("task", "t")["spec"]["suspend"] is False, "what its only owner drops falls back to the default"


def test_server_side_apply_of_the_same_again_changes_nothing(kubectl: Kubectl) -> None:
    kubectl.apply(deployment(), config_map("a", k="v"), options=("--server-side",))
    before = versions(kubectl)
    kubectl.apply(deployment(), config_map("a", k="v"), options=("--server-side",))
    assert versions(kubectl) == before


def test_diff_shows_what_apply_would_change_and_changes_nothing(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("a", k="old"))
    assert kubectl.run("diff", "-f", "-", stdin=json.dumps(config_map("a", k="old"))).code == 0
    shown = kubectl.run("diff", "-f", "-", stdin=json.dumps(config_map("a", k="new")))
    assert shown.code == 1
    assert "-  k: old\n+  k: new" in shown.out
    assert kubectl.get("configmap", "a")["data"] == {"k": "old"}


def test_dry_run_on_the_server_stores_nothing(kubectl: Kubectl) -> None:
    shown = kubectl("create", "-f", "-", "--dry-run=server", "-o", "json", stdin=json.dumps(task("t")))
    assert json.loads(shown)["spec"]["priority"] == 0, "defaults are shown"
    assert '"t" not found' in kubectl.fails("get", "task", "t")
    kubectl.apply(task("t"))
    kubectl("delete", "task", "t", "--dry-run=server")
    kubectl("label", "task", "t", "a=b", "--dry-run=server")
    assert "labels" not in kubectl.get("task", "t")["metadata"]


def test_edit_sends_back_what_the_editor_left(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl.apply(task("t"), deployment())
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i -e 's/suspend: false/suspend: true/' -e 's/replicas: 0/replicas: 2/' \"$1\"\n")
    editor.chmod(0o755)
    assert "task.tasker.dev/t edited" in kubectl("edit", "task", "t", env={"KUBE_EDITOR": str(editor)})
    assert "deployment.apps/web edited" in kubectl("edit", "deployment", "web", env={"KUBE_EDITOR": str(editor)})
    assert kubectl.get("task", "t")["spec"]["suspend"] is True
    assert kubectl.get("deployment", "web")["spec"]["replicas"] == 2


def test_labels_and_annotations_come_and_go(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"), task("u"))
    kubectl("label", "task", "t", "tier=gold", "team=red")
    kubectl("annotate", "task", "t", "note=hello")
    assert kubectl("get", "tasks", "-l", "tier=gold,team in (red, blue)", "-o", "name") == "task.tasker.dev/t\n"
    assert kubectl("get", "tasks", "-l", "tier!=gold", "-o", "name") == "task.tasker.dev/u\n"
    assert kubectl("get", "tasks", "-l", "!tier", "-o", "name") == "task.tasker.dev/u\n"
    kubectl("label", "task", "t", "tier-", "team=blue", "--overwrite")
    kubectl("annotate", "task", "t", "note-")
    metadata = kubectl.get("task", "t")["metadata"]
    assert metadata["labels"] == {"team": "blue"}
    assert "note" not in metadata.get("annotations", {})
    assert "unable to parse" in kubectl.fails("get", "tasks", "-l", "a in b")


def test_field_selectors_find_by_name_and_refuse_what_they_do_not_know(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"), task("u"))
    assert kubectl("get", "tasks", "--field-selector", "metadata.name=u", "-o", "name") == "task.tasker.dev/u\n"
    assert kubectl("get", "tasks", "--field-selector", "metadata.name!=u", "-o", "name") == "task.tasker.dev/t\n"
    assert "field label not supported: spec.priority" in kubectl.fails(
        "get", "tasks", "--field-selector", "spec.priority=1"
    )


def test_the_three_patches(kubectl: Kubectl) -> None:
    kubectl.apply(deployment(env=[{"name": "A", "value": "1"}]), task("t"))
    strategic = {
        "spec": {"template": {"spec": {"containers": [{"name": "main", "env": [{"name": "B", "value": "2"}]}]}}}
    }
    kubectl("patch", "deployment", "web", "-p", json.dumps(strategic))
    container = kubectl.get("deployment", "web")["spec"]["template"]["spec"]["containers"][0]
    assert {item["name"] for item in container["env"]} == {"A", "B"}
    kubectl("patch", "task", "t", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kubectl("patch", "task", "t", "--type=json", "-p", '[{"op":"replace","path":"/spec/suspend","value":false}]')
    assert kubectl.get("task", "t")["spec"]["suspend"] is False
    assert "(no change)" in kubectl("patch", "task", "t", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    failed = kubectl.fails(
        "patch", "task", "t", "--type=json", "-p", '[{"op":"test","path":"/spec/suspend","value":true}]'
    )
    assert "The request is invalid: the server rejected our request due to an error in our request" in failed
    assert "media type" in kubectl.fails("patch", "task", "t", "--type=strategic", "-p", "{}")


def test_scale_changes_replicas_and_minds_the_current_count(kubectl: Kubectl) -> None:
    kubectl.apply(deployment())
    kubectl("scale", "deployment/web", "--replicas=3")
    assert kubectl.get("deployment", "web")["spec"]["replicas"] == 3
    assert "Expected replicas to be 1, was 3" in kubectl.fails(
        "scale", "deployment/web", "--current-replicas=1", "--replicas=5"
    )


def test_replace_refuses_a_state_that_is_not_the_newest(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"))
    stale = kubectl.get("task", "t")
    kubectl("label", "task", "t", "a=b")
    stale["spec"]["suspend"] = True
    failed = kubectl.fails("replace", "-f", "-", stdin=json.dumps(stale))
    assert "(Conflict)" in failed
    assert "the object has been modified; please apply your changes to the latest version and try again" in failed


def test_get_shows_columns_wide_names_and_pages(kubectl: Kubectl) -> None:
    kubectl.apply(*(task(f"t{number}") for number in range(5)), deployment())
    table = kubectl("get", "tasks").splitlines()
    assert table[0].split() == ["NAME", "TEMPLATE", "STATE", "PROGRESS", "FAILED", "AGE"]
    assert table[1].split()[:2] == ["t0", "order"]
    assert "PHASE" in kubectl("get", "tk", "-o", "wide").splitlines()[0]
    assert kubectl("get", "tasks", "--chunk-size=2", "--no-headers", "-o", "name").split() == [
        f"task.tasker.dev/t{number}" for number in range(5)
    ]
    wide = kubectl("get", "deployments", "-o", "wide").splitlines()
    assert wide[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert "registry.example/none:1" in wide[1]
    assert "task.tasker.dev/t0" in kubectl("get", "tasker", "-o", "name"), "the category lists all our kinds"
    assert kubectl("get", "tasks", "-A", "--no-headers").count("order") >= 5


def test_get_watch_follows_an_object_through_its_life(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"))
    with kubectl.running("get", "tasks", "--watch", "--output-watch-events") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().split()[:2] == ["EVENT", "NAME"]
        assert watching.stdout.readline().split()[:2] == ["ADDED", "t"]
        kubectl("label", "task", "t", "a=b")
        assert watching.stdout.readline().split()[:2] == ["MODIFIED", "t"]
        kubectl.apply(task("u"))
        assert watching.stdout.readline().split()[:2] == ["ADDED", "u"]
        kubectl("delete", "task", "t")
        assert watching.stdout.readline().split()[:2] == ["DELETED", "t"]


def test_wait_returns_when_the_condition_comes_and_fails_when_it_does_not(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"))
    succeeded = {
        "status": {
            "conditions": [
                {
                    "type": "Succeeded",
                    "status": "True",
                    "reason": "Complete",
                    "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ]
        }
    }
    with kubectl.running("wait", "--for=condition=Succeeded", "task/t", "--timeout=30s") as waiting:
        kubectl("patch", "task", "t", "--subresource=status", "--type=merge", "-p", json.dumps(succeeded))
        out, _ = waiting.communicate(timeout=30 * PATIENCE)
        assert out == "task.tasker.dev/t condition met\n"
    assert "condition met" in kubectl("wait", "--for=condition=Succeeded", "task/t", "--timeout=5s")
    assert "timed out" in kubectl.fails("wait", "--for=condition=Succeeded=False", "task/t", "--timeout=1s")
    assert "condition met" in kubectl("wait", "--for=jsonpath={.spec.suspend}=false", "task/t", "--timeout=5s")
    with kubectl.running("wait", "--for=delete", "task/t", "--timeout=30s") as waiting:
        kubectl("delete", "task", "t")
        out, _ = waiting.communicate(timeout=30 * PATIENCE)
        assert waiting.returncode == 0, out
    with kubectl.running("wait", "--for=create", "task/later", "--timeout=30s") as waiting:
        kubectl.apply(task("later"))
        out, _ = waiting.communicate(timeout=30 * PATIENCE)
        assert "condition met" in out


def test_describe_shows_the_object_and_its_events(kubectl: Kubectl) -> None:
    kubectl.apply(task("t"))
    uid = kubectl.get("task", "t")["metadata"]["uid"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "t.", "namespace": kubectl.namespace},
        "involvedObject": {
            "apiVersion": "tasker.dev/v1alpha1",
            "kind": "Task",
            "name": "t",
            "namespace": kubectl.namespace,
            "uid": uid,
        },
        "type": "Normal",
        "reason": "Accepted",
        "message": "the run has been queued",
        "source": {"component": "test"},
        "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    kubectl("create", "-f", "-", stdin=json.dumps(event))
    described = kubectl("describe", "task", "t")
    assert "API Version:  tasker.dev/v1alpha1" in described
    assert "the run has been queued" in described
    assert "Accepted" in kubectl("get", "events").splitlines()[1]
    assert "Accepted" in kubectl("events", "--for", "task/t").splitlines()[1]
    new_form = kubectl.get("events.v1.events.k8s.io")["items"][0]
    assert new_form["note"] == "the run has been queued"
    assert new_form["regarding"]["uid"] == uid
    assert "Replicas:" in (kubectl.apply(deployment()) and kubectl("describe", "deployment", "web"))


def test_explain_knows_our_fields_and_built_in_ones(kubectl: Kubectl) -> None:
    assert "maxAttempts" in kubectl("explain", "tasktemplate.spec.steps.retry")
    assert "dependsOn" in kubectl("explain", "tasktemplate.spec.steps")
    assert "minReplicas" in kubectl("explain", "workerpool.spec", "--recursive")
    assert "FIELD: terminationGracePeriodSeconds <integer>" in kubectl(
        "explain", "deployment.spec.template.spec.terminationGracePeriodSeconds"
    )


def test_api_resources_lists_short_names_and_categories(kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--categories=tasker", "--no-headers").splitlines()
    assert {line.split()[0] for line in listed} == {"tasks", "tasktemplates", "workerpools"}
    assert "deploy" in kubectl("api-resources", "--api-group=apps")
    assert "tasker.dev/v1alpha1" in kubectl("api-versions").split()


def test_deleting_an_owner_deletes_orphans_or_waits_as_told(kubectl: Kubectl) -> None:
    def owned(owner: str, name: str) -> dict[str, Any]:
        uid = kubectl.get("configmap", owner)["metadata"]["uid"]
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": True}
        return {**config_map(name), "metadata": {"name": name, "ownerReferences": [reference]}}

    def names() -> set[str]:
        found = kubectl.get("configmaps", "-l", "app!=none")["items"]
        return {item["metadata"]["name"] for item in found} - {"kube-root-ca.crt"}

    kubectl.apply(config_map("a"), config_map("b"), config_map("c"))
    kubectl.apply(owned("a", "a1"), owned("b", "b1"), owned("c", "c1"))
    kubectl.apply(owned("c1", "c2"))
    kubectl("delete", "configmap", "a")
    eventually(lambda: "a1" not in names(), what="the dependent goes in the background")
    kubectl("delete", "configmap", "b", "--cascade=orphan")
    eventually(lambda: "ownerReferences" not in kubectl.get("configmap", "b1")["metadata"])
    kubectl("delete", "configmap", "c", "--cascade=foreground")
    assert names() == {"b1"}, "the owner went last, with all below it"


def test_an_object_whose_owner_is_gone_is_collected(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("a"))
    uid = kubectl.get("configmap", "a")["metadata"]["uid"]
    kubectl("delete", "configmap", "a")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": uid}
    kubectl.apply({**config_map("late"), "metadata": {"name": "late", "ownerReferences": [reference]}})
    eventually(lambda: kubectl.run("get", "configmap", "late").code == 1)


def test_deleting_a_namespace_empties_it_first(kubectl: Kubectl) -> None:
    held = {**config_map("held"), "metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    kubectl.apply(held, task("t"), deployment())
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")
    eventually(lambda: kubectl.run("get", "task", "t").code == 1, what="what nothing holds goes")
    assert kubectl.get("namespace", kubectl.namespace)["status"]["phase"] == "Terminating"
    refused = kubectl.fails("create", "configmap", "late")
    assert f"unable to create new content in namespace {kubectl.namespace} because it is being terminated" in refused
    kubectl("patch", "configmap", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("wait", "--for=delete", f"namespace/{kubectl.namespace}", "--timeout=50s")


def test_delete_all_and_generated_names(kubectl: Kubectl) -> None:
    nameless = {**config_map("x"), "metadata": {"generateName": "batch-", "labels": {"batch": "1"}}}
    for _ in range(3):
        kubectl("create", "-f", "-", stdin=json.dumps(nameless))
    names = kubectl("get", "configmaps", "-l", "batch=1", "-o", "name").split()
    assert len(set(names)) == 3
    assert all(name.startswith("configmap/batch-") and len(name) == len("configmap/batch-") + 5 for name in names)
    kubectl("delete", "configmaps", "-l", "batch=1")
    assert kubectl("get", "configmaps", "-l", "batch=1", "-o", "name") == ""


def test_can_i_and_whoami_are_answered(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "tasks.tasker.dev") == "yes\n"
    assert "Username" in kubectl("auth", "whoami")
