"""What the SDK's README shows, works."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasker_worker import HandlerRegistry
from tasker_worker.errors import RetryableError
from tasker_worker.testing import LocalRunner, make_context, run_handler

README = Path(__file__).parents[3] / "worker_image" / "README.md"
TEMPLATE = {
    "steps": [
        {"name": "validate_cart", "handler": {"callable": "validate_cart"}},
        {"name": "process_payment", "handler": {"callable": "process_payment"}, "dependsOn": ["validate_cart"]},
    ]
}


@pytest.fixture
def blocks() -> list[str]:
    """Its Python examples, in order."""
    return _blocks("python")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_handlers_of_the_first_example_work(blocks: list[str]) -> None:
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    registry = HandlerRegistry()
    registry.register_all([names["validate_cart"], names["process_payment"], names["ProcessOrder"]])
    cart = make_context(task_context={"cart_items": [{"price": 5}]})
    assert run_handler(names["validate_cart"], cart).result == {"total": 5}
    assert run_handler(names["validate_cart"], make_context(task_context={"cart_items": []})).retryable is False
    order = run_handler(names["ProcessOrder"], make_context(task_context={"order_id": 7}))
    assert (order.result, order.metadata) == ({"order_id": 7}, {"carrier": "post"})
    run = LocalRunner(TEMPLATE, registry).run({"cart_items": [{"price": 5}]})
    assert [attempt.at for attempt in run.attempts if attempt.step == "process_payment"] == [0, 5, 10]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package `shop`, importable during the test."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_the_example_of_decisions_and_conditions_works(blocks: list[str], shop: Path) -> None:
    (shop / "approval.py").write_text(blocks[2])
    template = _blocks("yaml")[0]
    names: dict[str, Any] = {"template": yaml.safe_load(template)}
    exec(blocks[2], names)
    exec(blocks[3], names)
    runner = LocalRunner(names["template"], modules=["shop.approval"])
    assert runner.run({"amount": 20_000}).skipped == ["auto_approve"]
    assert runner.run({"amount": 999.5}).results["finish"] == ["auto_approve"]
    nothing = runner.run()
    assert (nothing.state, list(nothing.results)) == ("complete", ["route_request"])
    choices = make_context(dependents=["auto_approve", "manager_approval", "finance_review"])
    assert run_handler(names["RouteRequest"], choices).result == run_handler(names["route_request"], choices).result


@pytest.mark.parity(228)
def test_the_example_of_batches_works(blocks: list[str], shop: Path) -> None:
    (shop / "rows.py").write_text(blocks[4])
    names: dict[str, Any] = {"template": yaml.safe_load(_blocks("yaml")[1])}
    exec(blocks[4], names)
    exec(blocks[5], names)
    runner = LocalRunner(names["template"], modules=["shop.rows"])
    runner.fail("work_on_rows_002", times=3)
    isolated = runner.run({"rows": 1000})
    assert (isolated.state, isolated.results["add_up_rows"]["total_processed"]) == ("complete", 750)
    context = make_context(batch={}, task_context={"rows": 10})
    assert run_handler(names["DivideRows"], context).result == run_handler(names["divide_rows"], context).result


def test_the_testing_example_works(blocks: list[str], shop: Path) -> None:
    handlers = blocks[0].replace('raise RetryableError("the gateway is busy", retry_after=5)', 'return "paid"')
    assert handlers != blocks[0]
    (shop / "handlers.py").write_text(handlers)
    names: dict[str, Any] = {"template": TEMPLATE, "RetryableError": RetryableError}
    exec("from shop.handlers import validate_cart", names)
    exec(blocks[1], names)
