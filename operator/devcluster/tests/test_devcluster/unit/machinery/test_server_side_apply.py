"""Field ownership: who set what is kept, and server-side apply goes by it, as on a real API server."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devcluster.machinery import managed_fields
from devcluster.machinery.field_sets import FieldSet, InvalidFieldSet, decode_fields, format_path
from devcluster.machinery.managed_fields import ApplyConflict, InvalidApplyConfiguration
from support.definitions import builtin, custom, widget

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DEPLOYMENT = builtin("Deployment")
CONFIG_MAP = builtin("ConfigMap")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Server:
    """One object and what the server does to it; every write a second later than the one before."""

    def __init__(self, resource: Any = CONFIG_MAP) -> None:
        self.resource = resource
        self.live: dict[str, Any] | None = None
        self.now = T0

    def _tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def _keep(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.live = self.resource.schema.default(obj)
        return self.live

    def apply(self, config: dict[str, Any], manager: str = "me", *, force: bool = False, **more: Any) -> dict[str, Any]:
        before = copy.deepcopy((self.live, config))
        result = managed_fields.apply(
            self.live,
            config,
            manager=manager,
            force=force,
            schema=self.resource.schema,
            api_version=self.resource.api_version,
            now=self._tick(),
            **more,
        )
        assert (self.live, config) == before, "arguments are not changed"
        return self._keep(result)

    def update(self, new: dict[str, Any], manager: str = "editor", **more: Any) -> dict[str, Any]:
        completed = self.resource.schema.default(new)
        result = managed_fields.record_update(
            self.live,
            completed,
            manager=manager,
            schema=self.resource.schema,
            api_version=self.resource.api_version,
            now=self._tick(),
            **more,
        )
        return self._keep(result)

    def owned(self, manager: str, operation: str = "Apply") -> list[str]:
        assert self.live is not None
        for entry in self.live["metadata"].get("managedFields", []):
            if (entry["manager"], entry["operation"]) == (manager, operation):
                return [format_path(path) for path in decode_fields(entry["fieldsV1"]).paths()]
        return []


def config_map(**data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "default"},
        "data": data,
    }


def deployment(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default"},
        "spec": {
            **spec,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": list(containers)}},
        },
    }


def test_an_applier_owns_what_it_applies_and_nothing_the_server_keeps() -> None:
    server = Server()
    live = server.apply(config_map(a="1"))
    [entry] = live["metadata"]["managedFields"]
    assert entry == {
        "manager": "me",
        "operation": "Apply",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:01Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}}},
    }


def test_what_is_no_longer_applied_goes() -> None:
    server = Server()
    server.apply(config_map(a="1", b="2"))
    live = server.apply(config_map(b="2"))
    assert live["data"] == {"b": "2"}
    assert server.owned("me") == [".data.b"]


def test_what_another_owns_stays_when_an_applier_lets_go() -> None:
    server = Server()
    server.apply(config_map(a="1", b="2"))
    server.apply(config_map(a="1"), "other")
    live = server.apply(config_map(b="2"))
    assert live["data"] == {"a": "1", "b": "2"}
    assert server.owned("other") == [".data.a"]


def test_a_field_set_by_somebody_else_is_not_touched_by_an_apply_that_does_not_name_it() -> None:
    server = Server()
    live = server.apply(config_map(a="1"))
    server.update({**live, "data": {**live["data"], "x": "9"}})
    live = server.apply(config_map(a="1"))
    assert live["data"] == {"a": "1", "x": "9"}


def test_two_that_apply_the_same_value_own_it_together() -> None:
    server = Server()
    server.apply(config_map(a="1"))
    server.apply(config_map(a="1"), "other")
    assert server.owned("me") == server.owned("other") == [".data.a"]
    with pytest.raises(ApplyConflict) as caught:
        server.apply(config_map(a="2"))
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "other": .data.a'
    assert caught.value.causes == [(".data.a", '"other"')]


def test_several_conflicts_are_grouped_by_manager() -> None:
    server = Server(DEPLOYMENT)
    server.apply(deployment({"name": "c", "image": "i:1"}, replicas=1))
    live = server.live
    assert live is not None
    changed = copy.deepcopy(live)
    changed["spec"]["replicas"] = 5
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2"
    server.update(changed, "editor")
    with pytest.raises(ApplyConflict) as caught:
        server.apply(deployment({"name": "c", "image": "i:3"}, replicas=2))
    assert str(caught.value) == (
        'Apply failed with 2 conflicts: conflicts with "editor" using apps/v1:\n'
        "- .spec.replicas\n"
        '- .spec.template.spec.containers[name="c"].image'
    )


def test_force_takes_the_field_over() -> None:
    server = Server()
    server.apply(config_map(a="1"))
    live = server.apply(config_map(a="2"), "other", force=True)
    assert live["data"] == {"a": "2"}
    assert server.owned("other") == [".data.a"]
    assert server.owned("me") == []


def test_an_update_takes_what_it_changes_from_an_applier() -> None:
    server = Server()
    live = server.apply(config_map(a="1", b="2"))
    server.update({**live, "data": {"a": "9", "b": "2"}})
    assert server.owned("me") == [".data.b"]
    assert server.owned("editor", "Update") == [".data.a"]


def test_what_an_update_removes_is_nobodys() -> None:
    server = Server()
    live = server.apply(config_map(a="1", b="2"))
    server.update({**live, "data": {"a": "1"}})
    assert server.owned("me") == [".data.a"]
    assert server.owned("editor", "Update") == []


def test_a_create_owns_maps_and_their_keys() -> None:
    server = Server()
    server.update({**config_map(a="1"), "metadata": {"name": "c", "labels": {"l": "1"}}}, "creator")
    assert server.owned("creator", "Update") == [".data", ".data.a", ".metadata.labels", ".metadata.labels.l"]


def test_items_of_keyed_lists_are_owned_one_by_one() -> None:
    server = Server(DEPLOYMENT)
    server.apply(deployment({"name": "mine", "image": "i", "ports": [{"containerPort": 80}]}))
    assert '.spec.template.spec.containers[name="mine"].ports[containerPort=80,protocol="TCP"]' in server.owned("me")
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"name": "theirs", "image": "j"}]}}},
    }
    live = server.apply(theirs, "sidecar")
    assert [item["name"] for item in live["spec"]["template"]["spec"]["containers"]] == ["mine", "theirs"]
    live = server.apply(deployment({"name": "new", "image": "k"}))
    assert {item["name"] for item in live["spec"]["template"]["spec"]["containers"]} == {"theirs", "new"}


def test_sets_are_owned_by_value_and_atomic_lists_whole() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "plain": {"type": "array", "items": {"type": "string"}},
            "whole": {
                "type": "object",
                "x-kubernetes-map-type": "atomic",
                "additionalProperties": {"type": "string"},
            },
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    server = Server(custom(schema))
    spec = {"tags": ["x"], "plain": ["a"], "whole": {"k": "v"}, "free": {"deep": {"er": [1]}}}
    server.apply(widget(spec))
    assert server.owned("me") == [
        ".spec.free.deep",
        ".spec.free.deep.er",
        ".spec.plain",
        '.spec.tags[="x"]',
        ".spec.whole",
    ]
    live = server.apply(widget({"tags": ["y"]}), "other")
    assert live["spec"]["tags"] == ["x", "y"]
    with pytest.raises(ApplyConflict, match=r"\.spec\.plain"):
        server.apply(widget({"plain": ["a", "b"]}), "other")


def test_applying_the_same_again_changes_nothing_not_even_the_time() -> None:
    server = Server(DEPLOYMENT)
    config = deployment({"name": "c", "image": "i", "resources": {"limits": {"cpu": "1000m"}}})
    first = server.apply(config)
    assert server.apply(config) == first


def test_writing_back_what_was_read_changes_nothing() -> None:
    server = Server()
    live = server.apply(config_map(a="1"))
    assert server.update(copy.deepcopy(live)) == live


def test_the_status_subresource_has_an_owner_of_its_own() -> None:
    server = Server(DEPLOYMENT)
    live = server.apply(deployment({"name": "c", "image": "i"}), reset_fields=("status",))
    server.update({**live, "status": {"replicas": 1}}, "controller", subresource="status")
    assert server.live is not None
    entry = server.live["metadata"]["managedFields"][-1]
    assert (entry["manager"], entry["subresource"]) == ("controller", "status")
    config = {**deployment({"name": "other", "image": "x"}), "status": {"replicas": 7}}
    live = server.apply(config, "tool", force=True, subresource="status")
    assert live["status"]["replicas"] == 7
    assert [item["name"] for item in live["spec"]["template"]["spec"]["containers"]] == ["c"]


def test_a_status_in_the_main_resource_is_left_out() -> None:
    live = Server(DEPLOYMENT).apply(
        {**deployment({"name": "c", "image": "i"}), "status": {"replicas": 3}}, reset_fields=("status",)
    )
    assert "status" not in live


def test_an_object_without_history_is_counted_to_whoever_was_there_before() -> None:
    server = Server()
    server.live = {**config_map(a="1", b="2")}
    with pytest.raises(ApplyConflict, match="before-first-apply"):
        server.apply(config_map(a="9"))
    server.apply(config_map(a="1"))
    assert server.owned("before-first-apply", "Update") == [".data", ".data.a", ".data.b"]


def test_kubectl_may_go_over_from_client_side_to_server_side_apply() -> None:
    server = Server()
    config = config_map(a="1")
    annotated = copy.deepcopy(config)
    annotated["metadata"]["annotations"] = {LAST_APPLIED: json.dumps(config) + "\n"}
    server.update(annotated, "kubectl-client-side-apply")
    live = server.apply(config_map(a="2"), "kubectl")
    assert live["data"] == {"a": "2"}
    assert json.loads(live["metadata"]["annotations"][LAST_APPLIED])["data"] == {"a": "2"}
    with pytest.raises(ApplyConflict):
        server.apply(config_map(a="3"), "another-tool")


def test_what_was_changed_after_a_client_side_apply_is_still_a_conflict() -> None:
    server = Server()
    config = config_map(a="1")
    annotated = copy.deepcopy(config)
    annotated["metadata"]["annotations"] = {LAST_APPLIED: json.dumps(config)}
    live = server.update(annotated, "kubectl-client-side-apply")
    server.update({**live, "data": {"a": "by hand"}}, "editor")
    with pytest.raises(ApplyConflict, match='conflict with "editor" using v1'):
        server.apply(config_map(a="2"), "kubectl")


def test_a_client_may_set_or_reset_the_owners_itself() -> None:
    server = Server()
    live = server.apply(config_map(a="1"))
    entries = copy.deepcopy(live["metadata"]["managedFields"])
    entries[0]["manager"] = "renamed"
    server.update({**live, "metadata": {**live["metadata"], "managedFields": entries}}, "migrator")
    assert server.owned("renamed") == [".data.a"]
    assert server.live is not None
    reset = {**server.live, "metadata": {**server.live["metadata"], "managedFields": [{}]}}
    assert "managedFields" not in server.update(reset)["metadata"]


def test_the_oldest_updaters_are_thrown_together() -> None:
    server = Server()
    obj = config_map(start="x")
    for number in range(13):
        obj = copy.deepcopy(server.update({**obj, "data": {**obj["data"], f"k{number}": "v"}}, f"m{number:02}"))
    managers = [entry["manager"] for entry in obj["metadata"]["managedFields"]]
    assert len(managers) == 10
    assert "ancient-changes" in managers
    assert "m12" in managers
    assert "m00" not in managers


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            deployment({"name": "c", "image": "i"}, replicas=1)
            | {"spec": {"template": {"spec": {"containers": [{"image": "i"}]}}}},
            "omits all of its keys",
        ),
        (deployment({"name": "c", "image": "i"}, {"name": "c", "image": "j"}), "duplicate entries for key"),
        (
            {**deployment(), "metadata": {"name": "d", "managedFields": []}},
            "metadata.managedFields must be nil",
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidApplyConfiguration, match=words):
        Server(DEPLOYMENT).apply(config)


def test_fields_are_encoded_and_decoded_alike() -> None:
    encoded: dict[str, Any] = {
        "f:spec": {".": {}, "f:a": {}, 'k:{"name":"x"}': {".": {}, "f:v": {}}, 'v:"s"': {}, "v:3": {}, "i:0": {}}
    }
    assert decode_fields(encoded).encode() == encoded
    assert decode_fields({'k:{"b": 1, "a": 2}': {}}).encode() == {'k:{"a":2,"b":1}': {}}
    assert decode_fields({"z:later": {}}).encode() == {}
    malformed: list[Any] = [[], {"k:{": {}}, {"f:a": 1}]
    for wrong in malformed:
        with pytest.raises(InvalidFieldSet):
            decode_fields(wrong)


PATHS = st.lists(st.lists(st.sampled_from(["f:a", "f:b", 'k:{"n":1}', "v:2"]), min_size=1, max_size=3), max_size=6)


def field_set(paths: list[list[str]]) -> FieldSet:
    result = FieldSet()
    for path in paths:
        result.insert(path)
    return result


@given(PATHS, PATHS)
def test_field_sets_are_sets_of_paths(left: list[list[str]], right: list[list[str]]) -> None:
    one, other = field_set(left), field_set(right)
    first, second = set(map(tuple, left)), set(map(tuple, right))
    assert set(one.union(other).paths()) == first | second
    assert set(one.difference(other).paths()) == first - second
    assert set(one.intersection(other).paths()) == first & second
    assert decode_fields(one.encode()) == one


DATA = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("12"), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["me", "you"]), DATA), min_size=1, max_size=6))
def test_whoever_applies_by_force_gets_exactly_its_values_and_the_rest_stays(
    steps: list[tuple[str, dict[str, str]]],
) -> None:
    server = Server()
    wanted: dict[str, dict[str, str]] = {}
    for manager, data in steps:
        live = server.apply(config_map(**data), manager, force=True)
        for other in wanted.values():
            for key in [key for key, value in other.items() if data.get(key, value) != value]:
                del other[key]
        wanted[manager] = dict(data)
        expected = {key: value for values in wanted.values() for key, value in values.items()}
        assert live.get("data", {}) == expected
