"""The order example: each handler alone with JSON values, and the whole run in memory."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from support.examples import load_handlers, load_manifests, load_template
from tasker_worker import HandlerRegistry, StepResult
from tasker_worker.testing import LocalRun, LocalRunner, make_context, run_handler

NAME = "03-order-fulfillment"
KEYBOARDS = {"product": "keyboard", "price": 49.90, "quantity": 2}
MOUSE = {"product": "mouse", "price": 24.50, "quantity": 1}
CART = {"items": [KEYBOARDS, MOUSE], "item_count": 3, "subtotal": 124.3, "tax": 9.94, "total": 134.24}
ORDER: dict[str, object] = {"email": "ada@example.com", "address": "London", "cart_items": [KEYBOARDS, MOUSE]}


@pytest.fixture(scope="module")
def handlers() -> ModuleType:
    return load_handlers(NAME)


def run(handlers: ModuleType, context: dict[str, object]) -> LocalRun:
    registry = HandlerRegistry()
    registry.discover(handlers)
    return LocalRunner(_without_waits(load_template(NAME)), registry).run(context)


def _without_waits(template: dict[str, Any]) -> dict[str, Any]:
    for step in template["spec"]["steps"]:
        step["handler"].get("initialization", {}).pop("gateway_seconds", None)
    return template


def validate(handlers: ModuleType, items: object) -> StepResult:
    return run_handler(handlers.validate_cart, make_context(task_context={"cart_items": items}))


def pay(handlers: ModuleType, token: str | None, *, attempt: int = 1) -> StepResult:
    context = make_context(
        step_name="process_payment",
        task_context={} if token is None else {"payment_token": token},
        dependency_results={"validate_cart": CART},
        attempt=attempt,
        task_uuid="7f0c2a3e-1111-4222-8333-444455556666",
    )
    return run_handler(handlers.process_payment, context)


def reserve(handlers: ModuleType, stock: dict[str, int], **context: Any) -> StepResult:
    made = make_context(
        step_name="update_inventory",
        dependency_results={"validate_cart": CART},
        step_config={"stock": stock},
        **context,
    )
    return run_handler(handlers.UpdateInventory, made)


@pytest.mark.parity(218, 222, 223)
def test_a_cart_is_added_up_with_eight_percent_tax(handlers: ModuleType) -> None:
    result = validate(handlers, [KEYBOARDS, MOUSE])
    assert result.success
    assert result.result == CART


@pytest.mark.parity(218)
@pytest.mark.parametrize(
    ("price", "quantity", "subtotal", "tax", "total"),
    [
        (0.1, 3, 0.3, 0.02, 0.32),  # 0.1 * 3 is 0.30000000000000004 in floats
        (10.00, 1, 10.0, 0.8, 10.8),
        (12.5625, 1, 12.56, 1.0, 13.56),  # 1.0048
        (1.0625, 1, 1.06, 0.08, 1.14),  # 0.0848
        (0.0625, 1, 0.06, 0.0, 0.06),  # 0.0048
        (0.1875, 1, 0.19, 0.02, 0.21),  # half a cent goes up: 0.1875; 0.0152
    ],
)
def test_amounts_are_rounded_to_cents(
    handlers: ModuleType, price: float, quantity: int, subtotal: float, tax: float, total: float
) -> None:
    result = validate(handlers, [{"product": "thing", "price": price, "quantity": quantity}]).result
    assert (result["subtotal"], result["tax"], result["total"]) == (subtotal, tax, total)


@pytest.mark.parity(213, 216, 223)
def test_an_empty_cart_fails_for_good(handlers: ModuleType) -> None:
    result = validate(handlers, [])
    assert (result.success, result.retryable) == (False, False)
    assert (result.error_type, result.error_message) == ("ValidationError", "the cart is empty")


@pytest.mark.parity(210)
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("keyboard", "input 'cart_items' does not fit: value: Input should be a valid list"),
        ([{"product": "keyboard", "price": 1}], "0.quantity: Field required"),
        ([{"product": "keyboard", "price": -1, "quantity": 1}], "0.price: Input should be greater than or equal to 0"),
        (
            [{"product": "keyboard", "price": 1, "quantity": 0}],
            "0.quantity: Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_cart_of_another_shape_is_refused_with_its_path(handlers: ModuleType, items: object, message: str) -> None:
    result = validate(handlers, items)
    assert (result.success, result.retryable, result.error_type) == (False, False, "ValidationError")
    assert message in str(result.error_message)


@pytest.mark.parity(209, 219, 223)
def test_a_payment_charges_the_carts_total_to_the_default_token(handlers: ModuleType) -> None:
    result = pay(handlers, None)
    assert result.success
    assert result.result["amount"] == 134.24
    assert result.result["transaction_id"].startswith("txn_")


def test_a_payment_that_runs_twice_is_one_charge(handlers: ModuleType) -> None:
    assert pay(handlers, None, attempt=1).result == pay(handlers, None, attempt=2).result


@pytest.mark.parity(211)
def test_a_payment_without_a_cart_says_what_it_lacks(handlers: ModuleType) -> None:
    result = run_handler(handlers.process_payment, make_context(step_name="process_payment"))
    assert (result.success, result.retryable) == (False, False)
    assert "needs the result of step 'validate_cart'" in str(result.error_message)


def test_a_declined_card_fails_for_good(handlers: ModuleType) -> None:
    result = pay(handlers, "tok_test_declined")
    assert (result.success, result.retryable, result.error_type) == (False, False, "PermanentError")
    assert result.error_message == "the card was declined for a charge of 134.24 dollars"


@pytest.mark.parity(217)
def test_a_gateway_that_is_away_is_worth_another_try(handlers: ModuleType) -> None:
    result = pay(handlers, "tok_test_flaky", attempt=2)
    assert (result.success, result.retryable, result.error_type) == (False, True, "NetworkError")
    assert pay(handlers, "tok_test_flaky", attempt=3).success


@pytest.mark.parity(220)
def test_every_item_is_reserved(handlers: ModuleType) -> None:
    result = reserve(handlers, {"keyboard": 2, "mouse": 1})
    assert [(each["product"], each["quantity"]) for each in result.result["reservations"]] == [
        ("keyboard", 2),
        ("mouse", 1),
    ]
    assert len({each["reservation_id"] for each in result.result["reservations"]}) == 2


def test_a_reservation_that_runs_twice_is_one(handlers: ModuleType) -> None:
    same = {"task_uuid": "7f0c2a3e-1111-4222-8333-444455556666"}
    first = reserve(handlers, {"keyboard": 9, "mouse": 9}, attempt=1, **same)
    assert first.result == reserve(handlers, {"keyboard": 9, "mouse": 9}, attempt=2, **same).result


@pytest.mark.parity(214)
@pytest.mark.parametrize(
    ("stock", "message"),
    [
        ({"keyboard": 1, "mouse": 9}, "insufficient stock for keyboard: requested 2, available 1"),
        ({"keyboard": 2}, "insufficient stock for mouse: requested 1, available 0"),
    ],
)
def test_too_little_stock_fails_for_good_and_says_how_much_there_is(
    handlers: ModuleType, stock: dict[str, int], message: str
) -> None:
    result = reserve(handlers, stock)
    assert (result.success, result.retryable, result.error_message) == (False, False, message)


@pytest.mark.parity(212, 221)
def test_the_steps_make_one_run(handlers: ModuleType) -> None:
    result = run(handlers, ORDER)
    assert result.state == "complete"
    assert result.results["create_shipment"]["paid_by"] == result.results["process_payment"]["transaction_id"]
    assert [each["product"] for each in result.results["create_shipment"]["parcels"]] == ["keyboard", "mouse"]
    confirmation = result.results["send_confirmation"]
    assert confirmation["to"] == "ada@example.com"
    assert confirmation["text"].startswith("3 items for 134.24 dollars are on their way: trk_")


@pytest.mark.parametrize(
    ("task", "state", "attempts"),
    [
        ("order-success", "complete", {"process_payment": 1, "send_confirmation": 1}),
        ("order-flaky-gateway", "complete", {"process_payment": 3, "send_confirmation": 1}),
        ("order-insufficient-stock", "error", {"update_inventory": 1, "create_shipment": 0}),
        ("order-declined-card", "error", {"process_payment": 1, "create_shipment": 0}),
        ("order-empty-cart", "error", {"validate_cart": 1, "process_payment": 0}),
    ],
)
def test_every_task_of_the_example_ends_as_it_says(
    handlers: ModuleType, task: str, state: str, attempts: dict[str, int]
) -> None:
    manifests = {each["metadata"]["name"]: each for each in load_manifests(NAME, "task.yaml")}
    manifest = manifests[task]
    assert manifest["metadata"]["annotations"]["tasker.dev/expected-state"] == state
    result = run(handlers, manifest["spec"]["context"])
    assert result.state == state
    assert {step: result.attempts_of(step) for step in attempts} == attempts
