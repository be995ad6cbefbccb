"""The fault switch does what its rules say, to those requests only."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.apiserver import Api

RESOURCE = "configmaps"


def switch(api: Api, *rules: dict[str, Any]) -> None:
    assert api.request("PUT", "/debug/faults", {"rules": list(rules)}).code == 200


@pytest.mark.parametrize(
    ("status", "reason"),
    [(409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable")],
)
def test_errors_come_as_often_as_told(api: Api, config_maps: str, status: int, reason: str) -> None:
    switch(api, {"action": "error", "verb": "create", "resource": RESOURCE, "status": status, "count": 2})
    body = {"metadata": {"generateName": "a-"}}
    replies = [api.request("POST", config_maps, body) for _ in range(3)]
    assert [reply.code for reply in replies] == [status, status, 201]
    assert replies[0].json["reason"] == reason
    assert (replies[0].headers.get("Retry-After") == "1") == (status == 429)
    assert api.get("/debug/faults").json["rules"][0]["hits"] == 2
    assert len(api.get(config_maps).json["items"]) == 1


def test_a_late_error_hides_a_write_that_was_carried_out(api: Api, config_maps: str) -> None:
    switch(api, {"action": "error", "verb": "create", "resource": RESOURCE, "status": 500, "count": 1, "late": True})
    assert api.request("POST", config_maps, {"metadata": {"name": "a"}}).code == 500
    assert api.request("POST", config_maps, {"metadata": {"name": "a"}}).code == 409


def test_other_verbs_and_resources_are_spared(api: Api, config_maps: str, namespace: str) -> None:
    switch(api, {"action": "error", "verb": "create", "resource": "secrets"})
    assert api.get(config_maps).code == 200
    assert api.request("POST", config_maps, {"metadata": {"name": "a"}}).code == 201
    assert api.request("POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "a"}}).code == 500


def test_a_delay_makes_requests_slow(api: Api, config_maps: str) -> None:
    switch(api, {"action": "delay", "verb": "list", "resource": RESOURCE, "delaySeconds": 0.3})
    began = time.monotonic()
    api.get(config_maps)
    assert time.monotonic() - began >= 0.3


def test_a_watch_can_be_dropped_after_some_events(api: Api, config_maps: str) -> None:
    switch(api, {"action": "drop-watch", "resource": RESOURCE, "afterEvents": 2})
    for name in "abc":
        api.create(config_maps, {"metadata": {"name": name}})
    with api.watch(config_maps) as watch:
        assert [event["object"]["metadata"]["name"] for event in watch.rest()] == ["a", "b"]


def test_a_watch_can_fall_silent(api: Api, config_maps: str) -> None:
    switch(api, {"action": "silence-watch", "resource": RESOURCE, "afterEvents": 1})
    with api.watch(config_maps, timeout=0.5) as watch:
        api.create(config_maps, {"metadata": {"name": "a"}})
        assert watch.take(1) == [("ADDED", "a")]
        api.create(config_maps, {"metadata": {"name": "b"}})
        with pytest.raises(TimeoutError):
            watch.next()


def test_a_watch_can_swap_neighbours(api: Api, config_maps: str) -> None:
    switch(api, {"action": "reorder-watch", "resource": RESOURCE})
    for name in "abcd":
        api.create(config_maps, {"metadata": {"name": name}})
    with api.watch(config_maps) as watch:
        assert [name for _, name in watch.take(4)] == ["b", "a", "d", "c"]


@pytest.mark.parametrize(
    "rule", [{"action": "explode"}, {"action": "error", "status": 418}, {"action": "error", "chance": 1}]
)
def test_rules_that_are_not_known_are_refused(api: Api, rule: dict[str, Any]) -> None:
    assert api.request("PUT", "/debug/faults", {"rules": [rule]}).code == 400
