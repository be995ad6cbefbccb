"""How objects go: with preconditions, with grace, one by one or many at once."""

from __future__ import annotations

from typing import Any

import pytest

from support.apiserver import Api
from support.waiting import eventually


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "x.example/y:1"}], **spec}}


@pytest.fixture
def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def test_a_deletion_at_once_is_answered_with_a_status(api: Api, config_maps: str) -> None:
    created = api.create(config_maps, {"metadata": {"name": "a"}})
    reply = api.request("DELETE", f"{config_maps}/a")
    assert reply.code == 200
    assert reply.json["status"] == "Success"
    assert reply.json["details"] == {"name": "a", "kind": "configmaps", "uid": created["metadata"]["uid"]}
    assert api.request("DELETE", f"{config_maps}/a").code == 404


def test_preconditions_protect_another_object_of_the_name(api: Api, config_maps: str) -> None:
    created = api.create(config_maps, {"metadata": {"name": "a"}})
    for condition in ({"uid": "other"}, {"resourceVersion": "1"}):
        refused = api.request("DELETE", f"{config_maps}/a", {"preconditions": condition})
        assert (refused.code, refused.json["reason"]) == (409, "Conflict")
        assert "Precondition failed" in refused.json["message"]
    condition = {"uid": created["metadata"]["uid"], "resourceVersion": created["metadata"]["resourceVersion"]}
    assert api.request("DELETE", f"{config_maps}/a", {"preconditions": condition}).code == 200


def test_options_that_make_no_sense_are_refused(api: Api, config_maps: str) -> None:
    api.create(config_maps, {"metadata": {"name": "a"}})
    for body in (
        {"propagationPolicy": "Sideways"},
        {"orphanDependents": True, "propagationPolicy": "Orphan"},
        {"gracePeriodSeconds": "soon"},
        {"dryRun": ["Some"]},
        {"kind": "ConfigMap"},
    ):
        assert api.request("DELETE", f"{config_maps}/a", body).code == 400, body
    assert api.request("DELETE", f"{config_maps}/a", {"dryRun": ["All"]}).code == 200
    assert api.get(f"{config_maps}/a").code == 200


def test_a_pod_on_a_node_waits_for_the_node(api: Api, pods: str) -> None:
    api.create(pods, pod("a", nodeName="here", terminationGracePeriodSeconds=20))
    marked = api.request("DELETE", f"{pods}/a").json
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 20
    sooner = api.request("DELETE", f"{pods}/a", {"gracePeriodSeconds": 5}).json
    assert sooner["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = api.request("DELETE", f"{pods}/a", {"gracePeriodSeconds": 60}).json
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5, "grace only gets shorter"
    api.merge(f"{pods}/a/status", {"status": {"phase": "Running"}})
    assert api.get(f"{pods}/a").code == 200, "a status written meanwhile does not end it"
    api.request("DELETE", f"{pods}/a", {"gracePeriodSeconds": 0})
    assert api.get(f"{pods}/a").code == 404


def test_a_pod_that_no_node_has_or_that_has_ended_goes_at_once(api: Api, pods: str) -> None:
    api.create(pods, pod("waiting"))
    api.request("DELETE", f"{pods}/waiting")
    assert api.get(f"{pods}/waiting").code == 404
    api.create(pods, pod("done", nodeName="here"))
    api.merge(f"{pods}/done/status", {"status": {"phase": "Succeeded"}})
    api.request("DELETE", f"{pods}/done")
    assert api.get(f"{pods}/done").code == 404


def test_a_node_may_take_a_pod_and_nothing_else_of_it_changes(api: Api, pods: str) -> None:
    created = api.create(pods, pod("a"))
    assert created["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    api.merge(f"{pods}/a", {"spec": {"nodeName": "here"}})
    changed = {"spec": {"containers": [{"name": "main", "image": "x.example/y:1", "command": ["other"]}]}}
    refused = api.request("PATCH", f"{pods}/a", changed, content_type="application/merge-patch+json")
    assert refused.code == 422
    assert "pod updates may not change fields other than" in refused.json["message"]
    moved = api.request(
        "PATCH", f"{pods}/a", {"spec": {"nodeName": "there"}}, content_type="application/merge-patch+json"
    )
    assert moved.code == 422


def test_a_collection_goes_by_selector(api: Api, config_maps: str) -> None:
    for name, tier in (("a", "gold"), ("b", "gold"), ("c", "lead")):
        api.create(config_maps, {"metadata": {"name": name, "labels": {"tier": tier}}})
    reply = api.request("DELETE", config_maps, labelSelector="tier=gold")
    assert [item["metadata"]["name"] for item in reply.json["items"]] == ["a", "b"]
    assert [item["metadata"]["name"] for item in api.get(config_maps).json["items"]] == ["c"]


def test_every_namespace_has_its_default_service_account(api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    eventually(lambda: api.get(path).code == 200)
    api.request("DELETE", f"/api/v1/namespaces/{namespace}")
    eventually(lambda: api.get(f"/api/v1/namespaces/{namespace}").code == 404)


def test_a_namespace_with_many_objects_is_emptied_while_others_are_served(
    api: Api, namespace: str, config_maps: str
) -> None:
    for number in range(300):
        api.create(config_maps, {"metadata": {"name": f"m{number}"}})
    assert api.request("DELETE", f"/api/v1/namespaces/{namespace}").json["status"]["phase"] == "Terminating"
    assert api.get("/api/v1/namespaces/default").code == 200
    eventually(lambda: api.get(f"/api/v1/namespaces/{namespace}").code == 404)
    assert api.get("/api/v1/configmaps", fieldSelector=f"metadata.namespace={namespace}").json["items"] == []
