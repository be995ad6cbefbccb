"""What the engine is given of each step of a template."""

from __future__ import annotations

import json
from typing import Any

from tasker.engine.templates import step_rows
from tasker.model.template import parse_template_spec


def rows(*steps: dict[str, Any]) -> list[dict[str, Any]]:
    """As the database reads them."""
    written = [{"handler": {"callable": "do"}, **step} for step in steps]
    read: list[dict[str, Any]] = json.loads(json.dumps(step_rows(parse_template_spec({"steps": written}))))
    return read


def test_the_row_of_a_step_that_says_nothing_more_than_it_must() -> None:
    assert rows({"name": "a"}) == [
        {
            "name": "a",
            "type": "standard",
            "condition": None,
            "callable": "do",
            "method": "call",
            "resolver": None,
            "configuration": {},
            "dependency_count": 0,
            "is_leaf": True,
            "result_positions": [],
            "batch_positions": None,
            "result_schema": None,
            "max_attempts": 3,
            "backoff": "exponential",
            "base_ms": 1000,
            "max_ms": 30000,
            "jitter": 0.1,
            "timeout_ms": 300_000,
            "schedule_timeout_ms": None,
            "worker_timeout_ms": None,
        }
    ]


def test_the_rows_of_a_batch_say_how_it_is_divided_and_who_comes_after() -> None:
    batch = {"parallelism": 3, "failureStrategy": "isolate", "cursorField": "created_at"}
    divide, work, end = rows(
        {"name": "divide", "type": "batchable", "batch": batch},
        {"name": "work", "type": "batch_worker", "dependsOn": ["divide"]},
        {"name": "end", "type": "deferred_convergence", "dependsOn": ["work"]},
    )
    assert divide["batch"] == {
        "batch_size": 1000,
        "parallelism": 3,
        "cursor_field": "created_at",
        "worker_template": "work",
        "failure_strategy": "isolate",
    }
    assert (divide["worker_position"], divide["parallelism"], divide["failure_strategy"]) == (1, 3, "isolate")
    assert (work["failure_strategy"], work["batch_positions"]) == ("isolate", None)
    assert (end["result_positions"], end["batch_positions"]) == ([0, 1], [1])


def test_a_row_says_what_a_step_is_and_when_it_runs() -> None:
    found = rows(
        {"name": "route", "type": "decision"},
        {"name": "approve", "dependsOn": ["route"], "when": "context.amount < 1000"},
        {"name": "join", "dependsOn": ["approve"], "type": "deferred_convergence"},
    )
    assert [(row["type"], row["condition"]) for row in found] == [
        ("decision", None),
        ("standard", "context.amount < 1000"),
        ("deferred_convergence", None),
    ]
    assert [(row["dependency_count"], row["is_leaf"], row["result_positions"]) for row in found] == [
        (0, False, []),
        (1, False, [0]),
        (1, True, [0, 1]),
    ]
