"""How a person writes a step: a decorated function, or a class with a `call` method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from .binding import Want, add_wants
from .errors import ConfigurationError, ErrorType
from .result import StepResult

Function = TypeVar("Function", bound=Callable[..., Any])

_NAME = "__tasker_handler_name__"


def step_handler(name: str) -> Callable[[Function], Function]:
    """Make a function (sync or async) the handler of the callable `name`, found by `HandlerRegistry.discover`.

    The function itself stays as it is and can be called directly. It gets the context (a parameter called `context`,
    annotated `StepContext`, or the only one that nothing else is known of), `dependency_results` by that name, and what
    `@inputs` and `@depends_on` ask for. What it returns is the step's result; raising is how it fails.
    """
    _check_name(name, "step_handler", "the callable's name")

    def decorate(function: Function) -> Function:
        if inspect.isclass(function) or not callable(function):
            raise ConfigurationError(
                f"@step_handler({name!r}) is for functions; a class says its handler_name and is a StepHandler"
            )
        setattr(function, _NAME, name)
        return function

    return decorate


def declared_name(function: Any) -> str | None:
    """The name that `@step_handler` gave a function."""
    name = getattr(function, _NAME, None)
    return name if isinstance(name, str) else None


def depends_on(**parameters: str | tuple[str, Any]) -> Callable[[Function], Function]:
    """Hand results of earlier steps to parameters: ``cart="validate_cart"`` or ``cart=("validate_cart", CartModel)``.

    The result is validated against the model, or without one against the parameter's annotation. A missing result
    fails the step for good, unless the parameter has a default.
    """
    return _decorator(
        {
            parameter: _want("dependency", f"depends_on({parameter}=…) takes a step's name", source)
            for parameter, source in parameters.items()
        }
    )


def inputs(*names: str, **parameters: str | tuple[str, Any]) -> Callable[[Function], Function]:
    """Hand inputs to parameters: ``"cart_items"`` by its own name, ``items="cart_items"`` by another, or with a model.

    An input is looked up in the step's own inputs, then in the task's context, and validated as in `depends_on`.
    """
    wants = {}
    for name in names:
        _check_name(name, "inputs", "an input's name")
        wants[name] = Want(kind="input", key=name)
    for parameter, source in parameters.items():
        wants[parameter] = _want("input", f"inputs({parameter}=…) takes an input's name", source)
    return _decorator(wants)


def _want(kind: Literal["input", "dependency"], rule: str, source: Any) -> Want:
    match source:
        case str() if source.strip():
            return Want(kind=kind, key=source)
        case (str() as key, model) if key.strip():
            return Want(kind=kind, key=key, model=model)
        case _:
            raise ConfigurationError(f"{rule} or (name, model), not {source!r}")


def _decorator(wants: dict[str, Want]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        add_wants(function, wants)
        return function

    return decorate


def _check_name(name: object, where: str, what: str) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"{where} needs {what}, not {name!r}")


class StepHandler:
    """A step as a class: set `handler_name` and write ``call(self, context)``, plain or async.

    A registered class is instantiated anew for every attempt, so that attempts share nothing; a registered instance is
    shared by all. A template's `handler.method` names another method to run than `call`.
    """

    #: The callable that templates name.
    handler_name: ClassVar[str] = ""
    #: For people: told by `HandlerRegistry.list_handlers` users and logs, and compared by nothing.
    handler_version: ClassVar[str] = "1.0.0"

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work, given the context and what decorators ask for, as a function would be.

        May be async; may return a StepResult or the bare result.
        """
        raise ConfigurationError(f"{type(self).__qualname__} does not say what it does: it has no `call`")

    def success(self, result: Any = None, metadata: Mapping[str, Any] | None = None) -> StepResult:
        return StepResult.succeed(result, metadata)

    def failure(
        self,
        message: str,
        error_type: str = ErrorType.HANDLER_ERROR,
        retryable: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        retry_after: float | None = None,
    ) -> StepResult:
        """A failure; unsaid, `retryable` is false for permanent and validation errors and true for all others."""
        return StepResult.fail(message, error_type, retryable, metadata, retry_after=retry_after)
