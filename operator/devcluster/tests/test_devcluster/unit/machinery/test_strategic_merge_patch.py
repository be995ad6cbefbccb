"""Strategic merge patch merges lists by their keys, as `kubectl apply`, `edit` and `set` count on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from devcluster.machinery.patch import PatchError, strategic_merge_patch
from support.definitions import builtin

DEPLOYMENT = builtin("Deployment").schema
POD = builtin("Pod").schema
BASE: dict[str, Any] = {
    "metadata": {"name": "d", "labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
    "spec": {
        "replicas": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "one",
                        "image": "i:1",
                        "args": ["a", "b"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [{"containerPort": 80}],
                    },
                    {"name": "two", "image": "j:1"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "k"}],
            }
        },
    },
}


def patched(patch: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(BASE)
    result = strategic_merge_patch(BASE, patch, DEPLOYMENT)
    assert before == BASE
    return result


def pod_patch(**fields: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": fields}}}


def pod_spec(patch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = patched(patch)["spec"]["template"]["spec"]
    return found


def test_a_container_is_found_by_its_name() -> None:
    containers = pod_spec(pod_patch(containers=[{"name": "two", "image": "j:2"}]))["containers"]
    assert containers == [BASE["spec"]["template"]["spec"]["containers"][0], {"name": "two", "image": "j:2"}]


def test_lists_inside_a_container_merge_too_and_plain_lists_are_replaced() -> None:
    change = {"name": "one", "args": ["c"], "env": [{"name": "B", "value": "9"}, {"name": "C", "value": "3"}]}
    one = next(item for item in pod_spec(pod_patch(containers=[change]))["containers"] if item["name"] == "one")
    assert one["args"] == ["c"]
    assert {item["name"]: item["value"] for item in one["env"]} == {"A": "1", "B": "9", "C": "3"}
    assert one["ports"] == [{"containerPort": 80}]


def test_a_list_without_keys_is_replaced_whole() -> None:
    assert pod_spec(pod_patch(tolerations=[{"key": "z"}]))["tolerations"] == [{"key": "z"}]


def test_items_go_by_a_delete_directive() -> None:
    containers = pod_spec(pod_patch(containers=[{"$patch": "delete", "name": "one"}]))["containers"]
    assert [item["name"] for item in containers] == ["two"]


def test_a_list_is_replaced_by_a_replace_directive() -> None:
    change = [{"$patch": "replace"}, {"name": "three", "image": "k"}]
    assert pod_spec(pod_patch(containers=change))["containers"] == [{"name": "three", "image": "k"}]


def test_an_object_is_replaced_or_emptied_by_a_directive() -> None:
    replaced = patched({"metadata": {"labels": {"$patch": "replace", "z": "1"}}})
    assert replaced["metadata"]["labels"] == {"z": "1"}
    assert patched({"metadata": {"labels": {"$patch": "delete"}}})["metadata"]["labels"] == {}


def test_null_takes_a_field_away() -> None:
    result = patched({"spec": {"replicas": None}, "metadata": {"labels": {"a": None, "never": None}}})
    assert "replicas" not in result["spec"]
    assert result["metadata"]["labels"] == {"b": "2"}


def test_the_order_of_items_can_be_set() -> None:
    patch = pod_patch(
        **{
            "$setElementOrder/containers": [{"name": "two"}, {"name": "new"}, {"name": "one"}],
            "containers": [{"name": "new", "image": "n"}],
        }
    )
    assert [item["name"] for item in pod_spec(patch)["containers"]] == ["two", "new", "one"]


def test_items_that_only_the_server_has_keep_their_place() -> None:
    patch = pod_patch(
        **{
            "$setElementOrder/containers": [{"name": "new"}, {"name": "two"}],
            "containers": [{"name": "new", "image": "n"}],
        }
    )
    names = [item["name"] for item in pod_spec(patch)["containers"]]
    assert set(names) == {"one", "two", "new"}
    assert names.index("one") < names.index("two")
    assert names.index("new") < names.index("two")


def test_scalars_are_added_to_and_deleted_from_a_merged_list() -> None:
    assert patched({"metadata": {"finalizers": ["y", "z"]}})["metadata"]["finalizers"] == ["x", "y", "z"]
    result = patched({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}})
    assert result["metadata"]["finalizers"] == ["y"]


def test_retained_keys_drop_the_rest() -> None:
    result = patched({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})
    assert result["spec"]["strategy"] == {"type": "Recreate"}


def test_what_is_new_comes_without_directives_and_nulls() -> None:
    volume = {"name": "n", "configMap": {"name": "c", "optional": None, "$retainKeys": ["name"]}}
    volumes = pod_spec(pod_patch(volumes=[volume]))["volumes"]
    assert {"name": "n", "configMap": {"name": "c"}} in volumes


def test_conditions_merge_by_type() -> None:
    pod = {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    conditions = strategic_merge_patch(pod, patch, POD)["status"]["conditions"]
    assert {item["type"]: item["status"] for item in conditions} == {"Ready": "True", "X": "True"}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (pod_patch(containers=[{"image": "i"}]), "does not contain declared merge key: name"),
        (pod_patch(containers=[{"$patch": "delete"}]), "no merge key"),
        (pod_patch(containers=[{"$patch": "explode", "name": "one"}]), "unknown patch type found: explode"),
        ({"metadata": {"$patch": "explode"}}, "unknown patch type found: explode"),
        ({"spec": {"strategy": {"$retainKeys": ["a"], "type": "x"}}}, "retainKeys"),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}, "must be a list"),
        ([], "must be an object"),
    ],
)
def test_a_patch_that_makes_no_sense_is_refused(patch: Any, words: str) -> None:
    with pytest.raises(PatchError, match=words):
        strategic_merge_patch(BASE, patch, DEPLOYMENT)
