"""The log of calls: what was asked for, by whom, as an authorizer would be asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from support.apiserver import Api


@pytest.fixture
def recording(api: Api, namespace: str) -> Iterator[Api]:
    assert namespace, "made before the log is on"
    assert api.request("PUT", "/debug/calls").json == {"on": True, "calls": []}
    yield api
    api.request("DELETE", "/debug/calls")


def calls_of(api: Api, user: str) -> set[tuple[str, ...]]:
    calls: list[dict[str, Any]] = api.get("/debug/calls").json["calls"]
    fields = ("verb", "group", "resource", "namespace", "name")
    return {tuple(call[field] for field in fields) for call in calls if call["user"] == user}


def test_users_are_told_apart_by_what_follows_the_token(recording: Api, namespace: str) -> None:
    operator = replace(recording, token=f"{recording.token}~operator")
    operator.get("/apis/apps/v1/deployments")
    recording.get(f"/api/v1/namespaces/{namespace}/secrets/a")
    assert calls_of(recording, "operator") == {("list", "apps", "deployments", "", "")}
    assert calls_of(recording, "devcluster") == {("get", "", "secrets", namespace, "a")}
    review = operator.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {"spec": {}})
    assert review.json["status"]["userInfo"]["username"] == "operator"


def test_a_wrong_token_is_refused_whatever_follows_it(api: Api) -> None:
    for token in ("", "~operator", "wrong~operator", f"{api.token}operator"):
        assert replace(api, token=token).get("/api/v1/namespaces").code == 401


def test_an_apply_is_a_patch_and_the_first_one_a_create_too(recording: Api, config_maps: str, namespace: str) -> None:
    def apply() -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
        path = f"{config_maps}/a?fieldManager=me"
        assert recording.request("PATCH", path, body, content_type="application/apply-patch+yaml").code < 300

    apply()
    first = {(verb, "", "configmaps", namespace, "a") for verb in ("patch", "create")}
    assert calls_of(recording, "devcluster") == first
    recording.request("PUT", "/debug/calls")
    apply()
    assert calls_of(recording, "devcluster") == {("patch", "", "configmaps", namespace, "a")}


def test_nothing_is_noted_while_the_log_is_off(api: Api, config_maps: str) -> None:
    api.request("PUT", "/debug/calls")
    api.request("DELETE", "/debug/calls")
    api.get(config_maps)
    assert api.get("/debug/calls").json == {"on": False, "calls": []}
