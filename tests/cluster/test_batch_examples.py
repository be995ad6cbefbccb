"""The examples with batches on a cluster: what is added up, a poisoned row, and a batch on one side of a diamond."""

from __future__ import annotations

import json

import pytest

from support.cluster import Namespace
from support.examples import folder_of

ALL = {"orders": 100_000, "batches": 20, "amount": "4985974.35"}


@pytest.mark.parity(226)
def test_a_poisoned_row_does_what_the_strategy_says(namespace: Namespace) -> None:
    namespace.kubectl("apply", "--server-side", "-f", str(folder_of("05-csv-batches")))
    complete = ("csv-clean", "csv-empty", "csv-poisoned-continue", "csv-poisoned-isolate")
    namespace.wait("condition=Succeeded=True", *(f"task/{name}" for name in complete))
    namespace.wait("condition=Succeeded=False", "task/csv-poisoned-fail-fast")
    clean = namespace.status("task", "csv-clean")
    assert clean["result"]["report"] == ALL
    assert (clean["progress"], clean["steps"]["complete"]) == ("22/22", 22)
    assert namespace.status("task", "csv-empty")["result"]["report"]["batches"] == 0
    for name in ("csv-poisoned-continue", "csv-poisoned-isolate"):
        status = namespace.status("task", name)
        report = status["result"]["report"]
        assert (report["orders"], report["batches"]) == (95_000, 19), json.dumps(status)
        assert [failure["step"] for failure in status["failures"]] == ["add_up_orders_009"]
        assert status["failures"][0]["message"] == "order 41337: the amount 'a lot' is no number"
    failed = namespace.status("task", "csv-poisoned-fail-fast")
    assert failed["steps"].get("cancelled", 0) > 0, json.dumps(failed)
    assert "add_up_orders_009" in [failure["step"] for failure in failed["failures"]]


@pytest.mark.parity(227)
def test_a_batch_on_one_side_of_a_diamond_meets_the_other(namespace: Namespace) -> None:
    namespace.kubectl("apply", "--server-side", "-f", str(folder_of("07-diamond-decision-batch")))
    namespace.wait("condition=Succeeded=True", "task/squares-few", "task/squares-many", "task/squares-none")
    joined = {name: namespace.status("task", f"squares-{name}").get("result", {}) for name in ("few", "many", "none")}
    assert joined["few"]["join_sides"] == {"sum": 285, "workers": 0, "audited": False}
    assert joined["many"]["join_sides"] == {"sum": 332_833_500, "workers": 8, "audited": True}
    assert "join_sides" not in joined["none"]
