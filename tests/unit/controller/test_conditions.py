"""Conditions: cut to their limits, with honest transition times, and those of others left alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tasker.controller.kube.conditions import (
    Condition,
    find,
    parse_timestamp,
    render,
    shorten,
    timestamp,
    utc_now,
)
from tasker.controller.kube.invalid import invalid_status
from tasker.controller.kube.resources.base import ResourceStatus

NOW = datetime(2031, 5, 6, 7, 8, 9, 999_999, tzinfo=UTC)
READY = Condition(type="Ready", status="False", reason="Why", message="m" * 1025)


@pytest.mark.parametrize(
    ("text", "limit", "short"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("ab", 1, "…"), ("ab", 0, "…"), ("", 0, "")]
)
def test_a_text_is_cut_to_its_limit(text: str, limit: int, short: str) -> None:
    assert shorten(text, limit) == short


def test_times_are_whole_seconds_of_utc() -> None:
    east = NOW.astimezone(timezone(timedelta(hours=2)))
    assert timestamp(NOW) == timestamp(east) == "2031-05-06T07:08:09Z"
    assert parse_timestamp(timestamp(NOW)) == NOW.replace(microsecond=0)
    assert utc_now().tzinfo is UTC
    assert abs(utc_now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_condition_is_found_by_its_type() -> None:
    status = {"conditions": [{"type": "A", "n": 1}, {"type": "B", "n": 2}]}
    assert find(status, "B") == {"type": "B", "n": 2}
    for none in (find(status, "C"), find({}, "A"), find(None, "A"), find({"conditions": None}, "A")):
        assert none is None


def recorded(**changes: Any) -> dict[str, Any]:
    condition = {
        "type": "Ready",
        "status": "False",
        "observedGeneration": 1,
        "lastTransitionTime": "2030-01-01T00:00:00Z",
        "reason": "Before",
        "message": "before",
    }
    return condition | changes


@pytest.mark.parametrize(
    ("before", "since"),
    [("False", "2030-01-01T00:00:00Z"), ("True", "2031-05-06T07:08:09Z"), (None, "2031-05-06T07:08:09Z")],
)
def test_only_another_status_is_a_transition(before: str | None, since: str) -> None:
    previous = ResourceStatus.model_validate({"conditions": [recorded(status=before)] if before else []}).conditions
    assert render([READY], previous=previous, generation=7, now=NOW) == [
        {
            "type": "Ready",
            "status": "False",
            "observedGeneration": 7,
            "lastTransitionTime": since,
            "reason": "Why",
            "message": "m" * 1023 + "…",
        }
    ]


def test_the_conditions_of_others_stay_with_all_that_they_say() -> None:
    other = recorded(type="Other")
    short = {name: value for name, value in recorded(type="Short").items() if name != "observedGeneration"}
    status = {"phase": "Running", "conditions": [other, recorded(), short], "observedGeneration": 1}
    made = invalid_status({"metadata": {"generation": 9}, "status": status}, [READY], now=NOW, message_limit=5)
    assert made == {
        "phase": "Running",
        "observedGeneration": 9,
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "observedGeneration": 9,
                "lastTransitionTime": "2030-01-01T00:00:00Z",
                "reason": "Why",
                "message": "mmmm…",
            },
            other,
            short,
        ],
    }


@pytest.mark.parametrize("status", [None, "odd", {"conditions": "odd"}, {"conditions": [{"type": 1}]}])
def test_a_status_that_cannot_be_read_is_no_obstacle(status: Any) -> None:
    made = invalid_status({"metadata": {}, "status": status}, [READY], now=NOW)
    assert [each["type"] for each in made["conditions"]] == ["Ready"]
    assert made["observedGeneration"] == 0
    assert made["conditions"][0]["message"] == "m" * 1023 + "…"
