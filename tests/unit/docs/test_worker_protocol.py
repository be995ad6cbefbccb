"""The page for workers in other languages says what the SDK does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.worker_engine import make_claim
from tasker_worker.claims import DECISION, Claim, OutcomeKind
from tasker_worker.decision import Decision
from tasker_worker.gateway import CONTRACT
from tasker_worker.outcomes import from_value
from tasker_worker.queries import QUERIES

PAGE = (Path(__file__).parents[3] / "docs" / "worker-protocol.md").read_text(encoding="utf-8")


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the first table behind a heading."""
    table = PAGE.split(f"## {heading}\n", 1)[1].split("|---", 1)[1]
    rows = re.findall(r"(?m)^\| ([^|]+) \|", table.split("\n\n", 1)[0])
    return [name.strip("` ") for row in rows for name in row.split(",")]


def test_it_is_about_the_contract_that_the_sdk_speaks() -> None:
    assert f"**contract {CONTRACT}**" in PAGE


def test_a_claim_has_the_columns_that_the_sdk_reads_in_their_order() -> None:
    assert _first_column("Claims") == list(Claim._fields)
    for name in ("claim_steps", "settle_steps"):
        columns = QUERIES[name].decode().removeprefix("select ").split("\nfrom ")[0]
        assert [column.strip() for column in columns.split(",")] == list(Claim._fields)


def test_it_names_every_outcome_and_every_function_that_the_sdk_calls() -> None:
    assert _first_column("Outcomes") == [str(kind) for kind in OutcomeKind]
    called = {name for query in QUERIES.values() for name in re.findall(r"tasker\.(\w+)", query.decode())}
    assert {name for name in called - {"unhandled_callables"} if f"{name}(" not in PAGE} == set()


def test_the_result_of_a_decision_is_what_the_sdk_records() -> None:
    [shown] = re.findall(r"```json\n(.*?)\n```", PAGE)
    claim = make_claim("route", step_type=DECISION, dependents=["auto_approve"])
    outcome = from_value(claim, Decision.route("auto_approve", amount=500))
    assert json.loads(outcome.result or "") == json.loads(shown)
    assert '`{"decision": {"type": "no_branches", "reason": "…"}, "routing_context": {}}`' in PAGE
    assert Decision.skip("…").as_result() == {
        "decision": {"type": "no_branches", "reason": "…"},
        "routing_context": {},
    }
