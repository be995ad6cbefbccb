"""Parameters of a handler get what the decorators ask for, validated; a misfit names step, source and field."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from tasker_worker import StepContext, StepHandler, StepResult, depends_on, inputs, step_handler
from tasker_worker.errors import ConfigurationError
from tasker_worker.registry import HandlerRegistry
from tasker_worker.testing import make_context, run_handler


class Item(pydantic.BaseModel):
    product: str
    count: int


class Cart(pydantic.BaseModel):
    total: float
    items: list[Item] = []


def _refusal(handler: Any, context: StepContext) -> StepResult:
    result = run_handler(handler, context)
    assert not result.success
    return result


def test_the_documented_example_works() -> None:
    @step_handler("process_payment")
    @inputs("token")
    @depends_on(cart="validate_cart")
    async def process_payment(cart: Cart, token: str, context: StepContext) -> dict[str, Any]:
        return {"paid": cart.total, "token": token, "attempt": context.attempt}

    context = make_context(task_context={"token": "tok"}, dependency_results={"validate_cart": {"total": "10.8"}})
    assert run_handler(process_payment, context).result == {"paid": 10.8, "token": "tok", "attempt": 1}


def test_a_model_given_with_the_dependency_wins_over_the_annotation() -> None:
    @depends_on(cart=("validate_cart", Cart))
    def handler(cart: Any) -> Any:
        return type(cart).__name__

    assert run_handler(handler, make_context(dependency_results={"validate_cart": {"total": 1}})).result == "Cart"


def test_inputs_may_have_other_names_and_models() -> None:
    @inputs(lines="cart_items", first=("main_item", Item))
    def handler(lines: list[Item], first: Item) -> Any:
        return [line.product for line in lines] + [first.product]

    context = make_context(
        task_context={"cart_items": [{"product": "tea", "count": 1}], "main_item": {"product": "cup", "count": 2}}
    )
    assert run_handler(handler, context).result == ["tea", "cup"]


def test_a_misfit_names_the_step_the_source_and_the_fields_and_is_final() -> None:
    @inputs("items")
    @depends_on(cart=("validate_cart", Cart))
    def handler(cart: Cart, items: list[Item]) -> None: ...

    context = make_context(
        step_name="pay", task_context={"items": []}, dependency_results={"validate_cart": {"items": [{"product": 1}]}}
    )
    result = _refusal(handler, context)
    assert result.error_type == "ValidationError"
    assert not result.retryable
    assert result.error_message == (
        "step 'pay': result of step 'validate_cart' does not fit: total: Field required; "
        "items.0.product: Input should be a valid string; items.0.count: Field required"
    )


def test_an_input_that_does_not_fit_is_told_alike() -> None:
    @inputs("count")
    def handler(count: int) -> None: ...

    result = _refusal(handler, make_context(step_name="pay", task_context={"count": "many"}))
    assert result.error_message == (
        "step 'pay': input 'count' does not fit: "
        "value: Input should be a valid integer, unable to parse string as an integer"
    )


def test_what_is_missing_fails_for_good_unless_the_parameter_has_a_default() -> None:
    @inputs("count")
    @depends_on(cart="validate_cart")
    def strict(cart: Any, count: int) -> None: ...

    @inputs("count")
    @depends_on(cart="validate_cart")
    def lenient(cart: Any = None, count: int = 7) -> Any:
        return [cart, count]

    without_both = make_context(step_name="pay")
    assert _refusal(strict, without_both).error_message == (
        "step 'pay' needs the result of step 'validate_cart', which it does not have"
    )
    without_input = make_context(step_name="pay", dependency_results={"validate_cart": {}})
    assert _refusal(strict, without_input).error_message == "step 'pay': input 'count' is missing"
    assert run_handler(lenient, without_both).result == [None, 7]


def test_a_null_in_the_data_is_a_value_and_not_missing() -> None:
    @inputs("note")
    def handler(note: str | None = "default") -> Any:
        return note

    result = run_handler(handler, make_context(task_context={"note": None}))
    assert result.success
    assert result.result is None


@pytest.mark.parametrize(
    "handler",
    [
        lambda context: context.attempt,
        lambda anything: anything.attempt,
        lambda anything, /: anything.attempt,
        lambda context, optional=5: context.attempt,
    ],
)
def test_a_plain_function_of_the_context_needs_no_decorator(handler: Any) -> None:
    assert run_handler(handler, make_context(attempt=2)).result == 2


def test_functions_of_the_dependency_results_and_of_nothing_work_too() -> None:
    def of_both(context: StepContext, dependency_results: dict[str, Any]) -> Any:
        return [context.step_name, dependency_results]

    def of_results(dependency_results: dict[str, Any]) -> Any:
        return dependency_results

    context = make_context(step_name="join", dependency_results={"a": 1})
    assert run_handler(of_both, context).result == ["join", {"a": 1}]
    assert run_handler(of_results, context).result == {"a": 1}
    assert run_handler(lambda: 5, context).result == 5


def test_methods_of_handler_classes_are_injected_alike() -> None:
    class Pay(StepHandler):
        handler_name = "pay"

        @depends_on(cart="validate_cart")
        async def call(self, cart: Cart, context: StepContext) -> StepResult:
            return self.success({"total": cart.total})

    context = make_context(dependency_results={"validate_cart": {"total": 3}})
    assert run_handler(Pay, context).result == {"total": 3.0}
    assert run_handler(Pay(), context).result == {"total": 3.0}


def test_a_handler_class_without_a_call_says_so() -> None:
    class Idle(StepHandler):
        handler_name = "idle"

    result = _refusal(Idle, make_context())
    assert result.error_message is not None
    assert result.error_message.endswith("Idle does not say what it does: it has no `call`")


def test_a_parameter_that_nothing_is_known_of_is_refused_when_it_is_registered() -> None:
    def handler(context: StepContext, cart: Any) -> None: ...

    with pytest.raises(ConfigurationError) as refusal:
        HandlerRegistry().register("pay", handler)
    assert str(refusal.value) == (
        "handler 'pay': nothing says what its parameter 'cart' is for; "
        "name it in @inputs or @depends_on, or give it a default"
    )


def test_decorators_refuse_parameters_that_are_not_there_or_asked_for_twice() -> None:
    def handler(cart: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"has no parameter 'basket' for the dependency 'validate_cart'"):
        depends_on(basket="validate_cart")(handler)
    depends_on(cart="validate_cart")(handler)
    with pytest.raises(ConfigurationError, match=r"parameter 'cart' of .* is asked for twice"):
        inputs("cart")(handler)
    wrong: Any = 5
    with pytest.raises(ConfigurationError, match=r"takes a step's name or \(name, model\), not 5"):
        depends_on(cart=wrong)


def test_keywords_take_what_no_parameter_names() -> None:
    @inputs("a", "b")
    def handler(**values: Any) -> Any:
        return values

    assert run_handler(handler, make_context(task_context={"a": 1, "b": 2})).result == {"a": 1, "b": 2}


def test_a_decorated_function_can_still_be_called_directly() -> None:
    @step_handler("double")
    @inputs("value")
    def double(value: int) -> int:
        return value * 2

    assert double(4) == 8
