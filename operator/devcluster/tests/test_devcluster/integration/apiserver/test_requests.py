"""What a request may be, and the Status that an impossible one gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import Api, RunningApiServer

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "registry.example/none:1"}]},
        },
    },
}


def config_map(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **more}


def test_only_the_token_of_the_kubeconfig_gets_in(server: RunningApiServer) -> None:
    api = server.api
    assert api.get("/api").code == 200
    for token in ("", "wrong", f"{api.token}x"):
        refused = replace(api, token=token).get("/api/v1/namespaces")
        assert (refused.code, refused.json["reason"]) == (401, "Unauthorized")
    assert replace(api, token="").get("/healthz").body == b"ok"
    assert replace(api, token="").get("/version").json["gitVersion"].startswith("v1.37.")
    assert server.kubeconfig.stat().st_mode & 0o777 == 0o600
    for secret in ("token", "server.key"):
        assert (server.folder / "credentials" / secret).stat().st_mode & 0o777 == 0o600


def test_it_listens_on_the_loopback_only(server: RunningApiServer) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f"{server.api.port:04X}"
    addresses = {parts[1] for parts in listening if parts[1].endswith(f":{port}") and parts[3] == "0A"}
    assert addresses == {f"0100007F:{port}"}


def test_create_answers_201_and_fills_in_what_the_server_owns(api: Api, config_maps: str) -> None:
    forged = {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "selfLink": "/x", "generation": 7}
    created = api.create(config_maps, {"metadata": {"name": "a", **forged}, "data": {"k": "v"}})
    assert (created["kind"], created["apiVersion"]) == ("ConfigMap", "v1"), "a built-in kind may be implied"
    metadata = created["metadata"]
    assert metadata["uid"] != "mine"
    assert not metadata["creationTimestamp"].startswith("2001")
    assert "selfLink" not in metadata
    assert "generation" not in metadata
    (owner,) = metadata["managedFields"]
    assert owner["operation"] == "Update"
    assert owner["fieldsV1"] == {"f:data": {".": {}, "f:k": {}}}


@pytest.mark.parametrize(
    ("metadata", "code", "message"),
    [
        ({}, 422, 'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required'),
        ({"name": "A_b"}, 422, "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters"),
        (
            {"generateName": "a."},
            422,
            'metadata.generateName: Invalid value: "a.": a lowercase RFC 1123 subdomain must',
        ),
        ({"name": "a" * 254}, 422, "must be no more than 253 bytes"),
        ({"name": "a", "namespace": "other"}, 400, "the namespace of the provided object does not match"),
        (
            {"name": "a", "labels": {"k": 1}},
            400,
            "cannot unmarshal number into Go struct field ConfigMap.metadata.labels",
        ),
        ({"name": "a", "labels": {"k": "a b"}}, 422, 'metadata.labels: Invalid value: "a b": a valid label must be'),
        ({"name": "a", "labels": {"/k": "v"}}, 422, "prefix part must be non-empty"),
        ({"name": "a", "annotations": {"k": "x" * 262_144}}, 422, "metadata.annotations: Too long"),
        ({"name": "a", "resourceVersion": "5"}, 500, "resourceVersion should not be set on objects to be created"),
        (
            {"name": "a", "ownerReferences": [{"name": "x", "kind": "ConfigMap", "apiVersion": "v1"}]},
            422,
            "metadata.ownerReferences[0].uid: Required value",
        ),
    ],
)
def test_bad_metadata_is_refused(api: Api, config_maps: str, metadata: dict[str, Any], code: int, message: str) -> None:
    refused = api.request("POST", config_maps, {"metadata": metadata})
    assert (refused.code, refused.json["code"]) == (code, code)
    assert message in refused.json["message"]
    assert api.get(config_maps).json["items"] == []


def test_an_invalid_object_names_every_field_at_fault(api: Api, namespace: str) -> None:
    wrong = json.loads(json.dumps(DEPLOYMENT))
    wrong["spec"]["replicas"] = "three"
    del wrong["spec"]["template"]["spec"]["containers"][0]["name"]
    refused = api.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", wrong).json
    assert (refused["reason"], refused["details"]["kind"], refused["details"]["group"]) == (
        "Invalid",
        "Deployment",
        "apps",
    )
    assert refused["message"].startswith('Deployment.apps "web" is invalid: [')
    fields = {cause["field"] for cause in refused["details"]["causes"]}
    assert fields == {"spec.replicas", "spec.template.spec.containers[0].name"}


def test_a_selector_cannot_change_nor_miss_its_template(api: Api, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    api.create(path, DEPLOYMENT)
    patch = {
        "spec": {"selector": {"matchLabels": {"app": "other"}}, "template": {"metadata": {"labels": {"app": "other"}}}}
    }
    refused = api.request("PATCH", f"{path}/web", patch, content_type="application/merge-patch+json")
    assert "spec.selector: Invalid value" in refused.json["message"]
    assert "field is immutable" in refused.json["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "invalid JSON"),
        (b"[]", "it must be a JSON object"),
        (b'{"metadata": {"name": "a"}, "data": {"k": NaN}}', "invalid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (
            json.dumps({"apiVersion": "v2", "kind": "ConfigMap"}).encode(),
            "does not match the expected API version (v1)",
        ),
        (
            json.dumps({"apiVersion": "v1", "kind": "Secret"}).encode(),
            'Secret in version "v1" cannot be handled as a ConfigMap',
        ),
    ],
)
def test_bodies_that_are_no_such_object_get_400(api: Api, config_maps: str, body: bytes, message: str) -> None:
    refused = api.request("POST", config_maps, body)
    assert (refused.code, refused.json["reason"]) == (400, "BadRequest")
    assert message in refused.json["message"]


def test_yaml_bodies_keep_dates_as_text_and_show_double_keys(api: Api, config_maps: str) -> None:
    text = b"metadata: {name: a}\ndata:\n  on: 'yes'\n  date: 2026-01-01\n  date: 2026-01-02\n"
    refused = api.request("POST", config_maps, text, content_type="application/yaml", fieldValidation="Strict")
    assert 'strict decoding error: duplicate field "data.date"' in refused.json["message"]
    created = api.request("POST", config_maps, text, content_type="application/yaml")
    assert created.json["data"] == {"true": "yes", "date": "2026-01-02"}
    assert created.warnings == ['299 - "duplicate field \\"data.date\\""']


def test_double_and_unknown_fields_in_json(api: Api, config_maps: str) -> None:
    text = b'{"metadata": {"name": "a", "naem": "b"}, "data": {"k": "1", "k": "2"}, "dat": {}}'
    refused = api.request("POST", config_maps, text, fieldValidation="Strict")
    assert refused.code == 400
    assert refused.json["message"] == (
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: '
        'duplicate field "data.k", unknown field "dat", unknown field "metadata.naem"'
    )
    created = api.request("POST", config_maps, text, fieldValidation="Ignore")
    assert (created.code, created.warnings, created.json["data"]) == (201, [], {"k": "2"})
    assert "dat" not in created.json


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v2", 404),
        ("GET", "/nothing", 404),
        ("GET", "/apis/batch/v1/jobs", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/configmaps/a", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/absent", 404),
        ("GET", "/api/v1/namespaces/default/configmaps?limit=x", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?limit=-1", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?watch=maybe", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?continue=x", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?fieldSelector=spec.x=1", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?labelSelector=a%20in", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?resourceVersion=x", 400),
        ("POST", "/api/v1/configmaps", 405),
        ("POST", "/api/v1/namespaces/default/configmaps/a", 405),
        ("PUT", "/api/v1/namespaces/default/configmaps", 405),
        ("DELETE", "/api/v1/configmaps", 405),
        ("POST", "/api/v1/namespaces/default/pods/a/exec", 501),
        ("POST", "/api/v1/namespaces/default/pods/a/eviction", 501),
        ("DELETE", "/version", 404),
    ],
)
def test_impossible_requests_get_their_code(api: Api, method: str, path: str, code: int) -> None:
    refused = api.request(method, path, {} if method in ("POST", "PUT") else None)
    assert (refused.code, refused.json["kind"], refused.json["code"]) == (code, "Status", code), refused.body


def test_other_media_types_are_refused_by_name(api: Api, config_maps: str) -> None:
    assert api.request("POST", config_maps, b"<a/>", content_type="application/xml").code == 415
    api.create(config_maps, config_map())
    assert api.request("PATCH", f"{config_maps}/a", {}, content_type="application/json").code == 415
    refused = api.request("GET", config_maps, headers={"Accept": "application/xml"})
    assert (refused.code, refused.json["reason"]) == (406, "NotAcceptable")


def test_a_body_over_the_limit_is_refused(api: Api, config_maps: str) -> None:
    refused = api.request("POST", config_maps, config_map(data={"k": "x" * (3 * 1024 * 1024)}))
    assert (refused.code, refused.json["reason"]) == (413, "RequestEntityTooLarge")


def test_an_update_needs_the_newest_version_if_it_names_one(api: Api, config_maps: str) -> None:
    created = api.create(config_maps, config_map())
    path = f"{config_maps}/a"
    api.merge(path, {"data": {"k": "1"}})
    stale = api.request("PUT", path, created)
    assert (stale.code, stale.json["reason"]) == (409, "Conflict")
    assert stale.json["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    patch = {"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "data": {"k": "2"}}
    assert api.request("PATCH", path, patch, content_type="application/merge-patch+json").code == 409
    assert api.request("PUT", path, config_map(data={"k": "3"})).json["data"] == {"k": "3"}
    other = {**created, "metadata": {"name": "a", "uid": "other"}}
    assert "Precondition failed: UID in precondition: other" in api.request("PUT", path, other).json["message"]
    assert api.request("PUT", path, config_map("b")).code == 400
    assert api.request("PUT", f"{config_maps}/absent", config_map("absent")).code == 404


def test_a_write_that_changes_nothing_has_no_new_version(api: Api, config_maps: str) -> None:
    created = api.create(config_maps, config_map(data={"k": "1"}))
    same = api.request("PUT", f"{config_maps}/a", created, headers={"User-Agent": "somebody-else/1"}).json
    assert same == created


def test_json_patches_apply_whole_or_not_at_all(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map(data={"k": "1"}))
    path, kind = f"{config_maps}/a", "application/json-patch+json"
    both = [{"op": "replace", "path": "/data/k", "value": "2"}, {"op": "test", "path": "/data/k", "value": "1"}]
    failed = api.request("PATCH", path, both, content_type=kind)
    assert (failed.code, failed.json["reason"]) == (422, "Invalid")
    missing = api.request("PATCH", path, [{"op": "remove", "path": "/data/absent"}], content_type=kind)
    assert missing.code == 422
    assert api.get(path).json["data"] == {"k": "1"}
    tested = [{"op": "test", "path": "/data/k", "value": "1"}, {"op": "add", "path": "/data/l", "value": "2"}]
    assert api.request("PATCH", path, tested, content_type=kind).json["data"] == {"k": "1", "l": "2"}


def test_server_side_apply_needs_a_manager_and_known_fields(api: Api, config_maps: str) -> None:
    kind = "application/apply-patch+yaml"
    path = f"{config_maps}/a"
    refused = api.request("PATCH", path, config_map(), content_type=kind)
    assert refused.code == 422
    assert "fieldManager: Required value: is required for apply patch" in refused.json["message"]
    unknown = api.request("PATCH", path, config_map(dat={}), content_type=kind, fieldManager="me")
    assert ".dat: field not declared in schema" in unknown.json["message"]
    created = api.request("PATCH", path, config_map(data={"k": "1"}), content_type=kind, fieldManager="me")
    assert created.code == 201
    other = api.request("PATCH", path, config_map(data={"k": "2"}), content_type=kind, fieldManager="you")
    assert (other.code, other.json["reason"]) == (409, "Conflict")
    assert other.json["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "me"', "field": ".data.k"}
    ]
    forced = api.request(
        "PATCH", path, config_map(data={"k": "2"}), content_type=kind, fieldManager="you", force="true"
    )
    assert forced.json["data"] == {"k": "2"}


def test_the_namespace_must_be_there(api: Api) -> None:
    refused = api.request("POST", "/api/v1/namespaces/absent/configmaps", config_map())
    assert refused.code == 404
    assert refused.json["message"] == 'namespaces "absent" not found'


def test_metadata_can_be_asked_for_alone(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map(data={"k": "v"}))
    accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
    listed = api.request("GET", config_maps, headers=accept).json
    assert listed["kind"] == "PartialObjectMetadataList"
    assert "data" not in listed["items"][0]


def test_documents_are_not_sent_again_when_the_client_has_them(api: Api) -> None:
    first = api.get("/openapi/v3")
    url = first.json["paths"]["api/v1"]["serverRelativeURL"]
    document = api.get(url)
    assert "io.k8s.api.core.v1.ConfigMap" in document.json["components"]["schemas"]
    assert api.request("GET", url, headers={"If-None-Match": document.headers["ETag"]}).code == 304
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    found = api.request("GET", "/apis", headers={"Accept": aggregated})
    assert found.headers["Content-Type"] == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    assert api.get("/apis").json["kind"] == "APIGroupList"
