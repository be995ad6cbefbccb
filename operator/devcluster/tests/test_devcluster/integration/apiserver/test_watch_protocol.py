"""Watches keep what clients build on: no gap, no repetition, bookmarks, and 410 when the past is gone."""

from __future__ import annotations

from typing import Any

import pytest

from support.apiserver import Api, RunningApiServer, api_server

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def version(api: Api, path: str) -> str:
    found: str = api.get(path).json["metadata"]["resourceVersion"]
    return found


def test_a_watch_without_a_version_begins_with_what_is_there(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a"))
    with api.watch(config_maps) as watch:
        assert watch.take(1) == [("ADDED", "a")]
        api.create(config_maps, config_map("b"))
        assert watch.take(1) == [("ADDED", "b")]


def test_a_watch_from_a_list_sees_each_later_change_once(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a"))
    since = version(api, config_maps)
    api.merge(f"{config_maps}/a", {"data": {"k": "1"}})
    api.merge(f"{config_maps}/a", {"data": {"k": "1"}})  # changes nothing
    with api.watch(config_maps, resourceVersion=since) as watch:
        assert watch.take(1) == [("MODIFIED", "a")]
        api.request("DELETE", f"{config_maps}/a")
        event = watch.next()
    assert event["type"] == "DELETED"
    assert int(event["object"]["metadata"]["resourceVersion"]) > int(since) + 1, "the deletion has a version of its own"


def test_resource_versions_grow_over_all_resources(api: Api, config_maps: str, namespace: str) -> None:
    first = int(api.create(config_maps, config_map("a"))["metadata"]["resourceVersion"])
    second = int(
        api.create(f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "s"}})["metadata"][
            "resourceVersion"
        ]
    )
    third = int(api.merge(f"{config_maps}/a", {"data": {"k": "1"}})["metadata"]["resourceVersion"])
    assert first < second < third


@pytest.mark.parametrize("truth", ["true", "True", "1", "t"])
def test_query_booleans_are_go_s(api: Api, config_maps: str, truth: str) -> None:
    api.create(config_maps, config_map("a"))
    with api.watch(config_maps, watch=truth) as watch:
        assert watch.take(1) == [("ADDED", "a")]


def test_the_server_ends_a_watch_after_its_time_with_a_bookmark(api: Api, config_maps: str) -> None:
    since = version(api, config_maps)
    with api.watch(config_maps, resourceVersion=since, timeoutSeconds=1, allowWatchBookmarks="true") as watch:
        api.create(config_maps, config_map("a"))
        events = watch.rest()
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    bookmark = events[-1]["object"]
    assert (bookmark["kind"], bookmark["apiVersion"]) == ("ConfigMap", "v1")
    assert int(bookmark["metadata"]["resourceVersion"]) >= int(events[0]["object"]["metadata"]["resourceVersion"])


def test_initial_events_end_with_the_marked_bookmark(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a"))
    with api.watch(
        config_maps, sendInitialEvents="true", resourceVersionMatch="NotOlderThan", allowWatchBookmarks="true"
    ) as watch:
        assert watch.take(1) == [("ADDED", "a")]
        end = watch.next()
        assert end["type"] == "BOOKMARK"
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        api.create(config_maps, config_map("b"))
        assert watch.take(1) == [("ADDED", "b")]


def test_initial_events_need_their_match(api: Api, config_maps: str) -> None:
    refused = api.get(config_maps, watch="true", sendInitialEvents="true")
    assert refused.code == 422
    assert "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan" in refused.json["message"]


def test_a_selector_makes_its_own_additions_and_deletions(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a", tier="gold"))
    api.create(config_maps, config_map("b"))
    with api.watch(config_maps, labelSelector="tier=gold") as watch:
        assert watch.take(1) == [("ADDED", "a")]
        api.merge(f"{config_maps}/b", {"metadata": {"labels": {"tier": "gold"}}})
        assert watch.take(1) == [("ADDED", "b")]
        changed = api.merge(f"{config_maps}/a", {"metadata": {"labels": {"tier": "lead"}}})
        left = watch.next()
        assert (left["type"], left["object"]["metadata"]["labels"]) == ("DELETED", {"tier": "gold"})
        assert left["object"]["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
        api.merge(f"{config_maps}/a", {"data": {"k": "unseen"}})
        api.request("DELETE", f"{config_maps}/b")
        assert watch.take(1) == [("DELETED", "b")]


def test_one_object_can_be_watched(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a"))
    api.create(config_maps, config_map("b"))
    with api.watch(config_maps, fieldSelector="metadata.name=b") as watch:
        assert watch.take(1) == [("ADDED", "b")]
        api.merge(f"{config_maps}/a", {"data": {"k": "unseen"}})
        api.merge(f"{config_maps}/b", {"data": {"k": "seen"}})
        assert watch.take(1) == [("MODIFIED", "b")]


def test_a_version_whose_changes_are_forgotten_gets_410_as_an_event(api: Api, config_maps: str) -> None:
    since = version(api, config_maps)
    api.create(config_maps, config_map("a"))
    api.request("POST", "/debug/compact")
    with api.watch(config_maps, resourceVersion=since) as watch:
        (event,) = watch.rest()
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"].startswith(f"too old resource version: {since} (")
    newest = version(api, config_maps)
    with api.watch(config_maps, resourceVersion=newest) as watch:
        api.create(config_maps, config_map("b"))
        assert watch.take(1) == [("ADDED", "b")]


def test_the_past_is_forgotten_once_it_is_long(api: Api, config_maps: str) -> None:
    since = version(api, config_maps)
    name = api.create(config_maps, config_map("a"))["metadata"]["name"]
    large = "x" * 500_000
    for number in range(20):
        api.merge(f"{config_maps}/{name}", {"data": {"k": f"{number}{large}"}})
    with api.watch(config_maps, resourceVersion=since) as watch:
        assert watch.next()["type"] == "ERROR"


def test_a_watch_in_table_form_sends_columns_once(api: Api, config_maps: str) -> None:
    api.create(config_maps, config_map("a"))
    since = version(api, config_maps)
    reply = api.request("GET", config_maps, headers={"Accept": TABLE})
    assert [column["name"] for column in reply.json["columnDefinitions"]] == ["Name", "Data", "Age"]
    api.merge(f"{config_maps}/a", {"data": {"k": "1"}})
    api.merge(f"{config_maps}/a", {"data": {"k": "2"}})
    with api.watch(config_maps, headers={"Accept": TABLE}, resourceVersion=since) as watch:
        events = [watch.next(), watch.next()]
    assert [event["object"]["kind"] for event in events] == ["Table", "Table"]
    assert [bool(event["object"]["columnDefinitions"]) for event in events] == [True, False]


def test_after_a_restart_old_versions_are_gone_and_new_ones_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("restarted")
    path = "/api/v1/namespaces/default/configmaps"
    with api_server(folder) as server:
        before = version(server.api, path)
        newest = server.api.create(path, config_map("a"))["metadata"]["resourceVersion"]
    with api_server(folder) as server:
        api = server.api
        with api.watch(path, resourceVersion=before) as watch:
            assert watch.next()["object"]["code"] == 410
        with api.watch(path, resourceVersion=newest) as watch:
            api.create(path, config_map("b"))
            assert watch.take(1) == [("ADDED", "b")]


def test_lists_come_page_by_page_from_one_state(api: Api, config_maps: str) -> None:
    for number in range(5):
        api.create(config_maps, config_map(f"m{number}"))
    first = api.get(config_maps, limit=2).json
    assert first["metadata"]["remainingItemCount"] == 3
    api.create(config_maps, config_map("m11"))
    api.request("DELETE", f"{config_maps}/m3")
    second = api.get(config_maps, limit=2, **{"continue": first["metadata"]["continue"]}).json
    third = api.get(config_maps, limit=2, **{"continue": second["metadata"]["continue"]}).json
    names = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert names == ["m0", "m1", "m2", "m3", "m4"], "as at the time of the first page"
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1
    assert "continue" not in third["metadata"]


def test_a_page_of_a_server_that_has_forgotten_the_list_gets_410_and_a_way_on(
    server: RunningApiServer, config_maps: str
) -> None:
    api = server.api
    for number in range(4):
        api.create(config_maps, config_map(f"m{number}"))
    token = api.get(config_maps, limit=2).json["metadata"]["continue"]
    for _ in range(70):  # more unfinished lists than are kept
        api.get(config_maps, limit=1)
    refused = api.get(config_maps, limit=2, **{"continue": token})
    assert (refused.code, refused.json["reason"]) == (410, "Expired")
    rest = api.get(config_maps, **{"continue": refused.json["metadata"]["continue"]}).json
    assert [item["metadata"]["name"] for item in rest["items"]] == ["m2", "m3"]


def test_a_list_from_the_future_is_told_to_come_again(api: Api, config_maps: str) -> None:
    refused = api.get(config_maps, resourceVersion="999999999")
    assert refused.code == 504
    assert refused.json["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert refused.headers["Retry-After"] == "1"
