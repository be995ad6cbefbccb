"""The examples with batches, in memory: what each Task ends as, and what the batches come to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from support.examples import load_handlers, load_manifests, load_templates
from tasker_worker import HandlerRegistry
from tasker_worker.testing import LocalRun, LocalRunner

CSV = "05-csv-batches"
DIAMOND = "07-diamond-decision-batch"
AMOUNT = "4985974.35"
"""Of 100,000 orders, by their formula; a test below holds it to that."""


@pytest.fixture(autouse=True, scope="module")
def folder_of_the_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the handlers make the file: nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("orders")))
        yield


def runner(name: str, template: str) -> LocalRunner:
    registry = HandlerRegistry()
    registry.discover(load_handlers(name))
    [found] = [each for each in load_templates(name) if each["metadata"]["name"] == template]
    return LocalRunner(found, registry)


def run(name: str, template: str, context: dict[str, Any]) -> LocalRun:
    return runner(name, template).run(context)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        pytest.param(name, task, id=task["metadata"]["name"])
        for name in (CSV, DIAMOND)
        for task in load_manifests(name, "task.yaml")
    ],
)
def test_a_task_ends_in_memory_as_it_says(name: str, task: dict[str, Any]) -> None:
    expected = task["metadata"]["annotations"]["tasker.dev/expected-state"]
    assert run(name, task["spec"]["templateRef"]["name"], task["spec"]["context"]).state == expected


@pytest.mark.parity(226)
def test_all_rows_are_added_up_in_twenty_batches() -> None:
    result = run(CSV, "csv-fail-fast", {})
    cents = sum(row * 37 % 9973 for row in range(100_000))
    assert f"{cents / 100:.2f}" == AMOUNT
    assert result.results["report"] == {"orders": 100_000, "batches": 20, "amount": AMOUNT}
    assert result.results["analyze_orders"]["rows"] == 100_000
    assert "add_up_orders_020" in result.results


@pytest.mark.parametrize("template", ["csv-continue", "csv-isolate"])
def test_a_poisoned_batch_is_left_out_of_the_report(template: str) -> None:
    result = run(CSV, template, {"rows": 100, "poisoned_row": 7})
    assert result.results["report"] == {"orders": 0, "batches": 0, "amount": "0.00"}
    result = run(CSV, template, {"rows": 10_000, "poisoned_row": 7})
    assert (result.state, result.results["report"]["orders"], result.results["report"]["batches"]) == (
        "complete",
        5000,
        1,
    )
    assert [failure.step for failure in result.failures] == ["add_up_orders_001"]
    assert result.failures[0].result.error_message == "order 7: the amount 'a lot' is no number"


def test_a_poisoned_batch_ends_the_others_when_it_is_to_fail_fast() -> None:
    result = run(CSV, "csv-fail-fast", {"rows": 20_000, "poisoned_row": 7000})
    assert result.state == "error"
    assert [name for name in result.results if name.startswith("add_up")] == ["add_up_orders_001"]
    assert [attempt.step for attempt in result.attempts][-1] == "add_up_orders_002", "no other has begun since"


def test_a_file_without_rows_has_a_report_of_nothing() -> None:
    result = run(CSV, "csv-fail-fast", {"rows": 0})
    assert result.results["report"] == {"orders": 0, "batches": 0, "amount": "0.00"}
    assert result.results["add_up_orders_000"]["no_op"] is True


def test_a_worker_that_died_goes_on_from_its_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    local = runner(CSV, "csv-fail-fast")
    handlers = load_handlers(CSV)
    local.registry.unregister("add_up_orders")
    local.registry.register("add_up_orders", handlers.add_up_orders)
    kept: list[int] = []
    keep = handlers.checkpoint

    def checkpoint(row: int, *rest: Any) -> bool:
        kept.append(row)
        keep(row, *rest)
        if kept == [1000, 2000, 3000]:
            raise ConnectionError("the volume is gone")
        return True

    monkeypatch.setattr(handlers, "checkpoint", checkpoint)
    result = local.run({"rows": 5000})
    assert kept == [1000, 2000, 3000, 4000, 5000]
    cents = sum(row * 37 % 9973 for row in range(5000))
    assert (result.results["report"]["amount"], result.attempts_of("add_up_orders_001")) == (f"{cents / 100:.2f}", 2)


@pytest.mark.parity(227)
@pytest.mark.parametrize(
    ("count", "joined", "skipped"),
    [
        (0, None, ["square_at_once", "divide_numbers", "audit", "join_sides"]),
        (10, {"sum": 285, "workers": 0, "audited": False}, ["divide_numbers", "audit"]),
        (11, {"sum": 385, "workers": 6, "audited": True}, ["square_at_once"]),
        (1000, {"sum": 332_833_500, "workers": 8, "audited": True}, ["square_at_once"]),
    ],
)
def test_the_sides_that_were_chosen_meet_again(count: int, joined: Any, skipped: list[str]) -> None:
    result = run(DIAMOND, "diamond-decision-batch", {"count": count})
    assert (result.state, result.results.get("join_sides")) == ("complete", joined)
    assert sorted(result.skipped) == sorted(skipped)


def test_a_worker_that_fails_ends_the_batch_and_nothing_is_joined() -> None:
    local = runner(DIAMOND, "diamond-decision-batch")
    local.fail("square_numbers_003", times=3)
    result = local.run({"count": 1000})
    assert (result.state, result.attempts_of("square_numbers_003")) == ("error", 3)
    assert "join_sides" not in result.results
