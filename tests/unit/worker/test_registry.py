"""Names lead to handlers, through a chain of resolvers whose order is fixed."""

from __future__ import annotations

import functools
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasker_worker import HandlerRegistry, StepContext, StepHandler, places, step_handler
from tasker_worker.errors import ConfigurationError
from tasker_worker.registry import FunctionHandler
from tasker_worker.testing import make_context


class Order(StepHandler):
    handler_name = "order"
    handler_version = "2.1.0"

    async def call(self, context: StepContext) -> Any:
        return self.success("called")

    def refund(self, context: StepContext) -> Any:
        return self.success("refunded")


class Refund(StepHandler):
    handler_name = "refund"

    def call(self, context: StepContext) -> Any:
        return "refund"


@step_handler("double")
def double(context: StepContext) -> int:
    return 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes modules into a package of a name of its own and makes it importable."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"shop_{tmp_path.name.replace('-', '_')}"

    def write(**modules: str) -> str:
        folder = tmp_path / name
        for path, text in modules.items():
            file = folder.joinpath(*path.split("/")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
            for parent in file.relative_to(tmp_path).parents[:-1]:
                (tmp_path / parent / "__init__.py").touch()
        return name

    yield write
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def test_registering_counting_listing_and_forgetting() -> None:
    registry = HandlerRegistry()
    assert not registry.is_registered("order")
    registry.register("order", Order)
    registry.register_fn("double", double)
    registry.register_all([Refund])
    registry.register_all({"other": Refund()})
    assert registry.is_registered("order")
    assert registry.list_handlers() == ["double", "order", "other", "refund"]
    assert registry.handler_count() == 4
    assert registry.unregister("order")
    assert not registry.unregister("order")
    assert registry.resolve("order") is None


def test_resolving_gives_an_instance_of_its_own_for_a_class_and_the_same_for_an_instance() -> None:
    registry = HandlerRegistry()
    shared = Order()
    registry.register_all({"class": Order, "instance": shared, "function": double})
    first, second = registry.resolve("class"), registry.resolve("class")
    assert isinstance(first, Order)
    assert first is not second
    assert registry.resolve("instance") is shared
    wrapped = registry.resolve("function")
    assert isinstance(wrapped, FunctionHandler)
    assert wrapped.call(make_context()) == 2
    assert registry.resolve("unknown") is None


def test_one_name_cannot_lead_to_two_handlers_unless_that_is_said() -> None:
    registry = HandlerRegistry()
    registry.register("order", Order)
    registry.register("order", Order)
    with pytest.raises(ConfigurationError, match=r"the handler name 'order' is used by .*Order and by .*Refund"):
        registry.register("order", Refund)
    registry.register("order", Refund, replace=True)
    assert isinstance(registry.resolve("order"), Refund)


@pytest.mark.parametrize(
    ("name", "handler", "reason"),
    [
        ("", Order, "a handler's name may not be empty"),
        ("x", 5, "the handler 'x' is neither a function nor a StepHandler"),
        ("x", dict, "the handler 'x' is neither a function nor a StepHandler"),
    ],
)
def test_what_is_no_handler_is_refused(name: str, handler: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        HandlerRegistry().register(name, handler)


@pytest.mark.parametrize("wrong", [Order, 5, None])
def test_register_fn_is_for_functions(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^register_fn\('x'\) takes a function, not "):
        HandlerRegistry().register_fn("x", wrong)


def test_a_handler_without_a_name_cannot_be_registered_without_one() -> None:
    with pytest.raises(ConfigurationError, match="does not say its name"):
        HandlerRegistry().register_all([lambda context: None])


def test_the_method_of_the_template_is_honoured() -> None:
    registry = HandlerRegistry()
    registry.register_all({"order": Order, "double": double})
    assert registry.invocation("order").is_async
    refund = registry.invocation("order", "refund")
    assert not refund.is_async
    assert refund.run(make_context()).result == "refunded"
    for method in ("missing", "_private", "handler_name"):
        with pytest.raises(ConfigurationError, match=rf"^the handler 'order' has no method '{method}'$"):
            registry.invocation("order", method)
    with pytest.raises(ConfigurationError, match=r"^the handler 'double' is a function and has no method 'refund'$"):
        registry.invocation("double", "refund")


def test_resolvers_are_asked_in_the_order_of_their_priority() -> None:
    registry = HandlerRegistry()
    asked: list[str] = []

    def late(name: str) -> Any:
        asked.append(name)
        return Refund if name in ("order", "custom") else None

    registry.add_resolver("custom", late, priority=60)
    registry.register("order", Order)
    assert isinstance(registry.resolve("order"), Order)
    assert asked == []
    assert isinstance(registry.resolve("custom"), Refund)
    with pytest.raises(ConfigurationError, match="there is a resolver 'custom' already"):
        registry.add_resolver("custom", late)


def test_a_resolver_stands_beside_what_was_discovered_when_nothing_else_is_said(package: Any) -> None:
    name = package(handlers="def order(context):\n    return 'dotted'")
    registry = HandlerRegistry()
    registry.add_resolver("custom", {"order": Order, f"{name}.handlers.order": Refund}.get)
    assert isinstance(registry.resolve("order"), Order)
    assert isinstance(registry.resolve(f"{name}.handlers.order"), Refund)
    registry.register("order", Refund)
    assert isinstance(registry.resolve("order"), Refund)


def test_what_a_program_registers_itself_wins_over_what_was_discovered(package: Any) -> None:
    name = package(
        handlers="""
        from tasker_worker import step_handler

        @step_handler("order")
        def order(context):
            return "discovered"
        """
    )
    registry = HandlerRegistry()
    registry.discover(name)
    registry.register("order", Order)
    assert isinstance(registry.resolve("order"), Order)
    forced = registry.resolve("order", resolver="registry")
    assert forced is not None
    assert forced.call(make_context()) == "discovered"


def test_the_template_can_force_one_resolver() -> None:
    registry = HandlerRegistry()
    registry.register("order", Order)
    registry.invocation("order", resolver="explicit")
    with pytest.raises(
        ConfigurationError, match=r"^no handler is registered for the callable 'order' by the resolver 'registry'$"
    ):
        registry.invocation("order", resolver="registry")
    with pytest.raises(ConfigurationError) as refusal:
        registry.invocation("order", resolver="magic")
    assert str(refusal.value) == (
        "there is no resolver 'magic' for the callable 'order' (there are: explicit, registry, dotted_path)"
    )


def test_dotted_paths_lead_to_functions_and_classes(package: Any) -> None:
    name = package(
        work="""
        from tasker_worker import StepHandler

        def plain(context):
            return "plain"

        class Holder:
            class Inner(StepHandler):
                def call(self, context):
                    return "inner"

        number = 5
        """,
        broken="raise RuntimeError('no')",
        needy="import surely_not_installed",
    )
    registry = HandlerRegistry()
    for path, result in ((f"{name}.work.plain", "plain"), (f"{name}.work:Holder.Inner", "inner")):
        handler = registry.resolve(path)
        assert handler is not None
        assert handler.call(make_context()) == result
    assert registry.resolve(f"{name}.work.missing") is None
    assert registry.resolve(f"{name}.missing.plain") is None
    assert registry.resolve("surely_not_installed.plain") is None
    with pytest.raises(ConfigurationError, match="is neither a function nor a StepHandler"):
        registry.resolve(f"{name}.work.number")
    with pytest.raises(ConfigurationError, match=r"cannot be imported: .*broken\.py:1: RuntimeError: no"):
        registry.resolve(f"{name}.broken.plain")
    with pytest.raises(ConfigurationError, match=r"needy\.py:1: ModuleNotFoundError: No module named 'surely_not"):
        registry.resolve(f"{name}.needy.plain")


def test_discovery_finds_decorated_functions_and_named_classes_in_all_submodules(package: Any) -> None:
    name = package(
        cart="""
        from tasker_worker import StepHandler, step_handler

        @step_handler("validate_cart")
        def validate_cart(context): ...

        class Base(StepHandler):
            pass

        class Pay(Base):
            handler_name = "pay"
            def call(self, context): ...

        class Inherits(Pay):
            pass
        """,
        again="from .cart import Pay, validate_cart",
        __main__="raise AssertionError('a program is not imported')",
        **{
            "deep/inner/ship": """
            from tasker_worker import step_handler

            @step_handler("ship")
            async def ship(context): ...
            """
        },
    )
    registry = HandlerRegistry()
    assert registry.discover(name) == ["pay", "ship", "validate_cart"]
    assert registry.list_handlers() == ["pay", "ship", "validate_cart"]


def test_two_handlers_of_one_name_are_found_out_at_discovery(package: Any) -> None:
    text = """
        from tasker_worker import step_handler

        @step_handler("same")
        def handler(context): ...
        """
    name = package(one=text, two=text)
    with pytest.raises(ConfigurationError, match=r"the handler name 'same' is used by .*one\.handler and by .*two\."):
        HandlerRegistry().discover(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_the_kind", r"bad\.py:1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("x = (", r"bad\.py:1: SyntaxError: '\(' was never closed"),
        ("\nraise SystemExit(4)", r"bad\.py:2: it calls sys\.exit\(4\)"),
        ("\n\n1 / 0", r"bad\.py:3: ZeroDivisionError: division by zero"),
        ("\nassert False", r"bad\.py:2: AssertionError$"),
        ("\nraise GeneratorExit", r"bad\.py:2: GeneratorExit$"),
        ("if 1:\n\tx = 1\n        y = 2", r"bad\.py:3: TabError: inconsistent use of tabs and spaces"),
        # what fails inside of the standard library, of an installed library, of this SDK, is told at the user's line
        ("\nimport json\njson.loads('{')", r"bad\.py:3: JSONDecodeError: Expecting property name"),
        ("\nimport ast\nast.parse('x = (')", r"bad\.py:3: SyntaxError: '\(' was never closed \(<unknown>, line 1\)$"),
        ("\nfrom installed_library import broken", r"bad\.py:2: RuntimeError: of the library"),
        ("\nfrom installed_library import no_python", r"bad\.py:2: SyntaxError: .*\(no_python\.py, line 2\)$"),
        (
            "from tasker_worker import step_handler\n\n\n@step_handler('x')\nclass Wrong: ...",
            r"bad\.py:4: @step_handler\('x'\) is for functions",
        ),
        (
            "from tasker_worker import depends_on\n\n@depends_on(cart='')\ndef pay(cart): ...",
            r"bad\.py:3: depends_on\(cart=…\) takes a step's name",
        ),
        (
            "from tasker_worker import depends_on\n\n@depends_on(basket='x')\ndef pay(cart): ...",
            r"bad\.py:3: pay has no parameter 'basket' for the dependency 'x'$",
        ),
        (
            "from tasker_worker import depends_on\n\n@depends_on('x')\ndef pay(cart): ...",
            r"bad\.py:3: TypeError: depends_on\(\) takes 0 positional",
        ),
        ("from .helper import helped\n\nhelped()", r"helper\.py:2: ValueError: of the helper$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_line_and_reason(
    package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    library = tmp_path / "site-packages" / "installed_library"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    (library / "broken.py").write_text("raise RuntimeError('of the library')")
    (library / "no_python.py").write_text("\nx = (")
    monkeypatch.syspath_prepend(library.parent)
    name = package(bad=text, helper="def helped():\n    raise ValueError('of the helper')")
    with pytest.raises(ConfigurationError, match=rf"the handlers module '{name}\.bad' cannot be imported: .*{reason}"):
        HandlerRegistry().discover(name)


def test_a_package_that_is_installed_is_the_user_s_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages" / "installed_shop"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "handlers.py").write_text("\nimport json\njson.loads('{')")
    monkeypatch.syspath_prepend(folder.parent)
    with pytest.raises(ConfigurationError, match=r"installed_shop/handlers\.py:3: JSONDecodeError"):
        HandlerRegistry().discover("installed_shop")


def test_a_file_that_cannot_even_be_compiled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "null_handlers.py").write_bytes(b"x = 1\0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"null_handlers\.py: \w+Error: source code string cannot contain null"
    ):
        HandlerRegistry().discover("null_handlers")


def test_an_interrupt_during_an_import_is_no_fault_of_the_module(package: Any) -> None:
    name = package(interrupted="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        HandlerRegistry().discover(name)
    with pytest.raises(KeyboardInterrupt):
        HandlerRegistry().resolve(f"{name}.interrupted.handler")


def test_a_worker_offers_names_and_the_dotted_paths_of_the_same_handlers() -> None:
    registry = HandlerRegistry()
    registry.register_all({"order": Order, "double": double, "shared": Refund()})
    registry.register("nameless", lambda context: None)
    assert registry.callables() == sorted(
        [
            "double",
            "nameless",
            "order",
            "shared",
            f"{__name__}.Order",
            f"{__name__}:Order",
            f"{__name__}.double",
            f"{__name__}:double",
        ]
    )


def test_versions_are_told_for_classes() -> None:
    registry = HandlerRegistry()
    registry.register_all({"order": Order, "refund": Refund, "double": double})
    assert registry.versions() == {"order": "2.1.0", "refund": "1.0.0", "double": None}


@pytest.mark.parametrize(
    ("change", "result"),
    [
        (lambda registry: registry.register("order", Refund, replace=True), "refund"),
        (lambda registry: registry.unregister("order"), None),
        (lambda registry: registry.add_resolver("first", {"order": Refund}.get, priority=1), "refund"),
    ],
    ids=["replace", "unregister", "resolver"],
)
def test_every_change_is_noticed_and_takes_effect_at_once(change: Any, result: str | None) -> None:
    registry = HandlerRegistry()
    registry.register("order", Order)
    before = registry.revision
    registry.invocation("order")
    change(registry)
    assert (before, registry.revision) == (1, 2)
    if result is None:
        with pytest.raises(ConfigurationError, match="no handler is registered for the callable 'order'"):
            registry.invocation("order")
    else:
        assert registry.invocation("order").run(make_context()) == result


def test_what_changes_nothing_is_no_change() -> None:
    registry = HandlerRegistry()
    registry.register("order", Order)
    before = registry.revision
    registry.register("order", Order)
    with pytest.raises(ConfigurationError):
        registry.register("order", Refund)
    assert not registry.unregister("unknown")
    assert registry.revision == before


def test_a_change_in_the_middle_of_a_look_up_is_not_forgotten() -> None:
    registry = HandlerRegistry()
    registry.register("order", Order)
    asked: list[str] = []

    def changes(name: str) -> Any:
        """Gives what was true before the change that it makes, once: so it is for a thread that looks up meanwhile."""
        asked.append(name)
        if len(asked) > 1:
            return None
        registry.register("order", Refund, replace=True)
        return Order

    registry.add_resolver("changes", changes, priority=1)
    assert registry.invocation("order").is_async
    assert registry.invocation("order").run(make_context()) == "refund"


def test_threads_may_register_and_resolve_at_once() -> None:
    registry = HandlerRegistry()
    failures: list[BaseException] = []

    def work(own: int) -> None:
        try:
            for place in range(100):
                registry.register(f"{own}-{place}", Order)
                assert registry.resolve(f"{own}-{place}") is not None
                registry.invocation(f"{own}-{place}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert registry.handler_count() == 800


def test_the_step_handler_decorator_is_for_functions() -> None:
    with pytest.raises(ConfigurationError, match="is for functions"):
        step_handler("x")(Order)
    with pytest.raises(ConfigurationError, match="needs the callable's name"):
        step_handler(" ")


def test_a_module_whose_place_cannot_be_told_is_told_without_it() -> None:
    assert places.fault_of_import(ValueError("wrong"), "no_such_package.handlers") == "ValueError: wrong"
    assert places.fault_of_import(ValueError(), "sys") == "ValueError"


def test_what_was_not_written_in_python_has_no_place() -> None:
    assert places.place_of(len) is None
    assert (places.place_of(places.place_of) or "").rpartition(":")[0] == places.__file__


ORDER = "from tasker_worker import step_handler\n\n@step_handler('order')\ndef order(context): ..."


@pytest.mark.parametrize(("built_in", "priority"), [("explicit", 10), ("registry", 50), ("dotted_path", 100)])
def test_the_resolvers_of_the_sdk_have_the_priorities_that_are_documented(
    package: Any, built_in: str, priority: int
) -> None:
    """Of resolvers with one priority, the name decides: `a` comes before all of the SDK's, `z` after them."""
    name = package(handlers=ORDER)
    for mine, first in (("a", True), ("z", False)):
        registry = HandlerRegistry()
        registry.add_resolver(mine, lambda path: Refund, priority=priority)
        path = f"{name}.handlers.order" if built_in == "dotted_path" else "order"
        if built_in == "explicit":
            registry.register("order", Order)
        elif built_in == "registry":
            registry.discover(name)
        assert (registry.find(path) is Refund) is first


def test_a_resolver_of_no_said_priority_stands_beside_what_was_discovered(package: Any) -> None:
    name = package(handlers=ORDER)
    for mine, first in (("a", True), ("z", False)):
        registry = HandlerRegistry()
        registry.discover(name)
        registry.add_resolver(mine, {"order": Order}.get)
        assert (registry.find("order") is Order) is first


def test_a_function_takes_the_place_of_another_only_when_that_is_said() -> None:
    registry = HandlerRegistry()
    registry.register_fn("double", double)
    with pytest.raises(ConfigurationError, match="the handler name 'double' is used by"):
        registry.register_fn("double", lambda context: 3)
    registry.register_fn("double", lambda context: 3, replace=True)
    assert registry.invocation("double").run(make_context()) == 3


def test_what_was_discovered_can_be_forgotten_too(package: Any) -> None:
    name = package(handlers=ORDER)
    registry = HandlerRegistry()
    registry.discover(name)
    assert registry.is_registered("order")
    assert registry.unregister("order")
    assert not registry.is_registered("order")
    assert registry.list_handlers() == []


def test_a_method_of_the_handler_s_own_is_not_for_templates() -> None:
    class Own(Refund):
        def _settle(self, context: StepContext) -> Any: ...

    for handler in (Own, Own()):
        registry = HandlerRegistry()
        registry.register("own", handler)
        with pytest.raises(ConfigurationError, match=r"^the handler 'own' has no method '_settle'$"):
            registry.invocation("own", "_settle")


@pytest.mark.parametrize("bound", [False, True])
def test_an_object_that_is_called_and_awaited_is_an_async_handler(bound: bool) -> None:
    class Called:
        async def __call__(self, context: StepContext, factor: int = 1) -> int:
            return context.attempt * factor

    registry = HandlerRegistry()
    registry.register("called", functools.partial(Called(), factor=2) if bound else Called())
    assert registry.invocation("called").is_async


@pytest.mark.parametrize("path", ["", "order", ".order", ":order", "json.", "json:"])
def test_a_path_without_a_module_or_a_name_leads_to_nothing(path: str) -> None:
    assert HandlerRegistry().resolve(path) is None
