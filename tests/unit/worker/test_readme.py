"""What the SDK's README shows, works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

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
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


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


def test_the_testing_example_works(blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    handlers = blocks[0].replace('raise RetryableError("the gateway is busy", retry_after=5)', 'return "paid"')
    assert handlers != blocks[0]
    (tmp_path / "shop" / "handlers.py").write_text(handlers)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"template": TEMPLATE, "RetryableError": RetryableError}
    exec("from shop.handlers import validate_cart", names)
    exec(blocks[1], names)
