"""Parameters of a handler get what the decorators ask for, validated; a misfit names step, source and field."""

from __future__ import annotations

import functools
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import pytest

from tasker_worker import StepContext, StepHandler, StepResult, depends_on, inputs, step_handler
from tasker_worker.binding import answer_before
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
        lambda anything, /, optional=5: anything.attempt,
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
        f"{_place(handler)}: handler 'pay': nothing says what its parameter 'cart' is for; "
        "name it in @inputs or @depends_on, or give it a default"
    )


def test_a_parameter_by_place_only_is_refused_when_more_than_the_context_is_asked_for() -> None:
    @inputs("count")
    def handler(count: int, /, context: StepContext) -> None: ...

    with pytest.raises(ConfigurationError) as refusal:
        HandlerRegistry().register("pay", handler)
    assert str(refusal.value) == (
        f"{_place(handler)}: handler 'pay': its parameter 'count' cannot be given by name; drop the '/'"
    )


# Annotations: `module` writes source files, for annotations are text in them, as `from __future__` has it.


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Makes a module of its text, whose annotations are text too; gives its names."""

    def run(text: str) -> dict[str, Any]:
        file = tmp_path / "handlers.py"
        file.write_text(f"from __future__ import annotations\n{textwrap.dedent(text)}")
        made = ModuleType("handlers_of_a_test")
        monkeypatch.setitem(sys.modules, made.__name__, made)
        exec(compile(file.read_text(), str(file), "exec"), vars(made))
        return vars(made)

    return run


Module = Callable[[str], dict[str, Any]]


def test_an_annotation_that_cannot_be_resolved_is_refused_at_its_line(module: Module, tmp_path: Path) -> None:
    names = module(
        """
        from tasker_worker import depends_on, inputs

        @depends_on(cart="validate_cart")
        @inputs("count")
        def handler(cart: Misspelt, count: int): ...
        """
    )
    with pytest.raises(ConfigurationError) as refusal:
        HandlerRegistry().register("pay", names["handler"])
    assert str(refusal.value) == (
        f"{tmp_path}/handlers.py:5: handler 'pay': the annotation 'Misspelt' of its parameter 'cart' cannot be"
        " resolved: NameError: name 'Misspelt' is not defined; it is read when the program runs, in the module of the"
        " handler"
    )


@pytest.mark.parametrize(
    "annotation", ["list[Misspelt]", "Misspelt | None", "typing.Misspelt", "int[", "Annotated[Misspelt, 1]", "1/0"]
)
def test_whatever_is_wrong_with_an_annotation_it_is_named(module: Module, annotation: str) -> None:
    if annotation == "int[":  # written as text by hand, for the file itself is to be Python
        annotation = "'int['"
    names = module(
        f"""
        import typing
        from typing import Annotated
        from tasker_worker import inputs

        @inputs("count")
        def handler(count: {annotation}): ...
        """
    )
    with pytest.raises(ConfigurationError, match=r"handlers\.py:7: handler 'pay': the annotation .* of its parameter"):
        HandlerRegistry().register("pay", names["handler"])


def test_one_annotation_that_is_not_needed_leaves_all_others_in_force(module: Module) -> None:
    names = module(
        """
        from tasker_worker import inputs

        @inputs("count")
        def handler(count: int, context: Unresolvable) -> AlsoUnresolvable:
            return count
        """
    )
    assert run_handler(names["handler"], make_context(task_context={"count": "3"})).result == 3
    assert _refusal(names["handler"], make_context(task_context={"count": "many"})).error_type == "ValidationError"


@pytest.mark.parametrize("annotation", ["StepContext", "tasker_worker.StepContext"])
def test_a_context_that_only_type_checkers_import_is_one(module: Module, annotation: str) -> None:
    names = module(
        f"""
        from typing import TYPE_CHECKING
        from tasker_worker import inputs
        if TYPE_CHECKING:
            import tasker_worker
            from tasker_worker import StepContext

        @inputs("count")
        def handler(count: int, this: {annotation}, other=5):
            return [count, this.attempt]
        """
    )
    assert run_handler(names["handler"], make_context(task_context={"count": 3}, attempt=2)).result == [3, 2]


def test_the_context_is_known_by_its_annotation_whatever_it_is_called(module: Module) -> None:
    names = module(
        """
        from tasker_worker import StepContext as Given

        def handler(dependency_results: dict, this: Given):
            return this.attempt
        """
    )
    assert run_handler(names["handler"], make_context(attempt=2)).result == 2


def test_constraints_of_an_annotation_hold(module: Module) -> None:
    names = module(
        """
        from typing import Annotated
        from pydantic import Field
        from tasker_worker import inputs

        @inputs("count")
        def handler(count: Annotated[int, Field(gt=0)]):
            return count
        """
    )
    assert run_handler(names["handler"], make_context(task_context={"count": 1})).result == 1
    result = _refusal(names["handler"], make_context(task_context={"count": 0}))
    assert result.error_message == "step 'step': input 'count' does not fit: value: Input should be greater than 0"


def test_names_of_the_handler_s_class_are_known_and_hide_no_others(module: Module) -> None:
    names = module(
        """
        from datetime import date
        from pydantic import BaseModel
        from tasker_worker import StepHandler, inputs

        class Base(StepHandler):
            class Line(BaseModel):
                product: str

        class Handler(Base):
            date = "an attribute that is named like a type"
            int = 5

            @inputs("line", "on", "count")
            def call(self, line: Line, on: date, count: int):
                return [line.product, on.year, count]
        """
    )
    context = make_context(task_context={"line": {"product": "tea"}, "on": "2026-01-01", "count": "3"})
    for handler in (names["Handler"], names["Handler"](), names["Handler"]().call):
        assert run_handler(handler, context).result == ["tea", 2026, 3]


def test_annotations_are_found_beneath_whatever_a_function_is_wrapped_in(module: Module) -> None:
    names = module(
        """
        import functools
        from tasker_worker import inputs

        class Line(int): ...

        @inputs("count")
        def plain(count: int, factor: int = 2, context=None):
            return count * factor

        def decorated(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        class Callable:
            @inputs("count")
            def __call__(self, count: int):
                return count * 2
        """
    )
    partial = inputs("count")(functools.partial(names["plain"], context=None))
    callable_object = inputs("count")(names["Callable"]())
    for handler in (names["plain"], names["decorated"](names["plain"]), partial, callable_object):
        assert run_handler(handler, make_context(task_context={"count": "3"})).result == 6
        assert _refusal(handler, make_context(task_context={"count": "x"})).error_type == "ValidationError"


def test_a_model_may_be_named_in_text_and_come_later_in_its_module(module: Module) -> None:
    names = module(
        """
        from pydantic import BaseModel
        from tasker_worker import depends_on

        @depends_on(cart=("validate_cart", "Cart"))
        def handler(cart):
            return cart.line.product

        class Cart(BaseModel):
            line: Line

        class Line(BaseModel):
            product: str
        """
    )
    context = make_context(dependency_results={"validate_cart": {"line": {"product": "tea"}}})
    assert run_handler(names["handler"], context).result == "tea"


class Client:
    """A type that pydantic knows nothing of."""


class Unfinished(pydantic.BaseModel):
    line: "Misspelt"  # type: ignore[name-defined]  # noqa: F821, UP037


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Client, r"values cannot be validated against 'Client', which its parameter 'cart' is to be: Pydantic"),
        (
            list[Client],
            r"values cannot be validated against list\[.*\.Client\], which its parameter 'cart' is to be: P",
        ),
        (
            Unfinished,
            r"values cannot be validated against 'Unfinished', .*: PydanticUndefinedAnnotation: name 'Misspelt' is not",
        ),
        (
            5,
            r"values cannot be validated against 5, which its parameter 'cart' is to be: PydanticSchemaGenerationError",
        ),
        ("Misspelt", r"the annotation 'Misspelt' of its parameter 'cart' cannot be resolved: NameError"),
    ],
    ids=["class", "items", "unfinished model", "number", "text"],
)
def test_what_values_cannot_be_held_to_is_refused_when_it_is_registered(model: Any, reason: str) -> None:
    @depends_on(cart=("validate_cart", model))
    def in_decorator(cart: Any) -> None: ...

    @depends_on(cart="validate_cart")
    def in_annotation(cart: Any) -> None: ...

    @depends_on(cart=("validate_cart", model))
    def of_keywords(**carts: Any) -> None: ...

    in_annotation.__annotations__["cart"] = model
    for handler in (in_decorator, in_annotation, of_keywords):
        with pytest.raises(ConfigurationError, match=rf"^{re.escape(_place(handler))}: handler 'pay': {reason}"):
            HandlerRegistry().register("pay", handler)


def _place(function: Any) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno}"


def test_decorators_refuse_parameters_that_are_not_there_or_asked_for_twice() -> None:
    def handler(cart: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"has no parameter 'basket' for the dependency 'validate_cart'"):
        depends_on(basket="validate_cart")(handler)
    depends_on(cart="validate_cart")(handler)
    with pytest.raises(ConfigurationError, match=r"parameter 'cart' of .* is asked for twice"):
        inputs("cart")(handler)


@pytest.mark.parametrize("wrong", [5, None, "", " ", (), ("validate_cart",), ("", Cart), (5, Cart)], ids=repr)
def test_decorators_refuse_what_names_nothing(wrong: Any) -> None:
    shown = re.escape(repr(wrong))
    with pytest.raises(ConfigurationError, match=rf"^depends_on\(cart=…\) takes a step's name or .*, not {shown}$"):
        depends_on(cart=wrong)
    with pytest.raises(ConfigurationError, match=rf"^inputs\(cart=…\) takes an input's name or .*, not {shown}$"):
        inputs(cart=wrong)


@pytest.mark.parametrize("wrong", [5, None, "", " ", Cart], ids=repr)
def test_inputs_are_named_by_texts(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^inputs needs an input's name, not {re.escape(repr(wrong))}$"):
        inputs("count", wrong)


def test_decorators_are_refused_without_their_parentheses_and_on_classes() -> None:
    def handler(cart: Any) -> None: ...

    anything: Any = inputs
    with pytest.raises(ConfigurationError, match=r"^inputs needs an input's name, not <function"):
        anything(handler)
    anything = step_handler
    with pytest.raises(ConfigurationError, match=r"^step_handler needs the callable's name, not <function"):
        anything(handler)
    with pytest.raises(ConfigurationError, match=r"are for functions and methods: decorate `call` of .*Idle$"):

        @inputs("cart")
        class Idle(StepHandler):
            pass


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


def test_of_several_faults_of_a_signature_the_first_is_named() -> None:
    @inputs("first", "second")
    def by_place(first: int, second: int, /, context: StepContext) -> None: ...

    with pytest.raises(ConfigurationError, match="its parameter 'first' cannot be given by name"):
        HandlerRegistry().register("pay", by_place)

    def unknown(context: StepContext, cart: Any, items: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="nothing says what its parameter 'cart' is for"):
        HandlerRegistry().register("pay", unknown)


def test_two_parameters_of_which_nothing_is_known_are_refused_and_a_context_by_keyword_is_given() -> None:
    def two(one: Any, other: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="nothing says what its parameter 'one' is for"):
        HandlerRegistry().register("pay", two)

    def by_keyword(*, context: StepContext) -> str:
        return context.step_name

    assert run_handler(by_keyword, make_context(step_name="pay")).result == "pay"


def test_of_many_misfits_five_are_told_and_the_rest_counted() -> None:
    class Wide(pydantic.BaseModel):
        a: int
        b: int
        c: int
        d: int
        e: int
        f: int

    def handler(context: StepContext, wide: Any) -> None: ...

    decorated = inputs(wide=("wide", Wide))(handler)
    told = run_handler(decorated, make_context(task_context={"wide": {}})).error_message or ""
    assert told.count("Field required") == 5
    assert told.endswith("; and 1 more")
    told = run_handler(decorated, make_context(task_context={"wide": {"a": 1}})).error_message or ""
    assert told.count("Field required") == 5
    assert told.endswith("f: Field required")


def test_every_parameter_that_is_annotated_as_the_context_gets_it() -> None:
    def handler(one: StepContext, two: StepContext) -> bool:
        return one is two

    assert run_handler(handler).result is True


class _WronglySigned:
    """An object that is called, and says of its parameters what nobody can read."""

    __signature__ = 5

    def __call__(self, context: StepContext) -> None: ...


@pytest.mark.parametrize("handler", [max, _WronglySigned()], ids=["built in", "wrong"])
def test_a_signature_that_cannot_be_read_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        HandlerRegistry().register("pay", handler)
    assert str(refusal.value) == f"handler 'pay': the signature of {handler!r} cannot be read"


def test_parameters_behind_those_that_take_anything_get_what_they_ask_for() -> None:
    @inputs("count")
    def handler(*rest: Any, count: int, context: StepContext) -> list[Any]:
        return [rest, count, context.attempt]

    assert run_handler(handler, make_context(task_context={"count": "3"}, attempt=2)).result == [[], 3, 2]


def test_of_a_fault_of_many_lines_the_first_is_told() -> None:
    @inputs(client=("client", Client))
    def handler(client: Any) -> None: ...

    with pytest.raises(ConfigurationError) as refusal:
        HandlerRegistry().register("pay", handler)
    assert str(refusal.value).endswith(
        f"PydanticSchemaGenerationError: Unable to generate pydantic-core schema for {Client!r}."
        " Set `arbitrary_types_allowed=True` in the model_config to ignore this error or implement"
        " `__get_pydantic_core_schema__` on your type to fully support it."
    )


def test_what_is_answered_before_a_handler_spares_its_call_and_what_it_wants() -> None:
    """Whether it is plain, asks for more, or is async."""

    def plain(context: StepContext) -> str:
        return context.step_name

    @inputs("count")
    def wants(count: int) -> int:
        return count

    @inputs("count")
    async def wants_async(count: int) -> int:
        return count

    handlers: list[Callable[..., Any]] = [plain, wants, wants_async]
    for handler in handlers:
        answer_before(handler, lambda context: None if context.attempt > 1 else "answered")
    first, second = make_context(), make_context(attempt=2, task_context={"count": 5})
    assert [run_handler(handler, first).result for handler in handlers] == ["answered"] * 3
    assert [run_handler(handler, second).result for handler in handlers] == ["step", 5, 5]
