"""The page for workers in other languages says what the SDK does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from support.worker_engine import make_claim
from tasker_worker.batch import batch_success, create_cursor_configs, no_batches_result
from tasker_worker.claims import BATCHABLE, DECISION, Claim, OutcomeKind
from tasker_worker.decision import Decision
from tasker_worker.gateway import CONTRACT
from tasker_worker.outcomes import from_value
from tasker_worker.queries import QUERIES
from tasker_worker.types import Checkpoint

PAGE = (Path(__file__).parents[3] / "docs" / "worker-protocol.md").read_text(encoding="utf-8")


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the first table behind a heading."""
    table = PAGE.split(f"## {heading}\n", 1)[1].split("|---", 1)[1]
    rows = re.findall(r"(?m)^\| ([^|]+) \|", table.split("\n\n", 1)[0])
    return [name.strip("` ") for row in rows for name in row.split(",")]


def _json_blocks() -> list[Any]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)]


def test_it_is_about_the_contract_that_the_sdk_speaks() -> None:
    assert f"**contract {CONTRACT}**" in PAGE


def test_a_claim_has_the_columns_that_the_sdk_reads_in_their_order() -> None:
    assert _first_column("Claims") == list(Claim._fields)
    for name in ("claim_steps", "settle_steps", "create_batches"):
        columns = QUERIES[name].decode().removeprefix("select ").split("\nfrom ")[0]
        assert [column.strip() for column in columns.split(",")] == list(Claim._fields)


def test_it_names_every_outcome_and_every_function_that_the_sdk_calls() -> None:
    assert _first_column("Outcomes") == [str(kind) for kind in OutcomeKind if kind is not OutcomeKind.DIVIDE]
    called = {name for query in QUERIES.values() for name in re.findall(r"tasker\.(\w+)", query.decode())}
    assert {name for name in called - {"unhandled_callables"} if f"{name}(" not in PAGE} == set()


def test_the_result_of_a_decision_is_what_the_sdk_records() -> None:
    shown, *_ = _json_blocks()
    claim = make_claim("route", step_type=DECISION, dependents=["auto_approve"])
    outcome = from_value(claim, Decision.route("auto_approve", amount=500))
    assert json.loads(outcome.result or "") == shown
    assert '`{"decision": {"type": "no_branches", "reason": "…"}, "routing_context": {}}`' in PAGE
    assert Decision.skip("…").as_result() == {
        "decision": {"type": "no_branches", "reason": "…"},
        "routing_context": {},
    }


def test_a_division_is_what_the_sdk_tells_and_records() -> None:
    _, inputs, recorded = _json_blocks()
    claim = make_claim("divide", step_type=BATCHABLE, batch='{"worker_template": "work"}')
    outcome = from_value(claim, batch_success("work", create_cursor_configs(1000, 5)))
    assert outcome.batches is not None
    assert json.loads(outcome.batches.inputs[0]) == inputs
    assert json.loads(outcome.result or "") == recorded
    nothing = from_value(claim, no_batches_result())
    assert nothing.batches is not None
    assert f"`{nothing.result}`".replace('":', '": ') in PAGE
    assert (nothing.batches.ids, nothing.batches.is_no_op) == (["000"], True)


def test_a_checkpoint_has_the_shape_that_the_sdk_writes() -> None:
    [shown] = re.findall(r'`(\{"cursor": 300.*?)`', PAGE)
    assert Checkpoint(cursor=300, items_processed=300, accumulated={"sum": 4.5}).model_dump() == json.loads(shown)
