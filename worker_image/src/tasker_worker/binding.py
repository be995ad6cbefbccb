"""From a handler's signature to a call: which parameter gets the context, an input, or a dependency's result.

`@inputs` and `@depends_on` note what they want on the function; `bind` reads that together with the signature once,
when the handler is resolved, so that an attempt only looks values up. A parameter's annotation is its contract: the
value is validated against it, and a misfit names the step, the parameter and the field.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic

from .context import StepContext
from .errors import ConfigurationError, ValidationError

_WANTS = "__tasker_wants__"
_CONTEXT_NAME = "context"
_RESULTS_NAME = "dependency_results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """A value that a parameter asks for."""

    kind: typing.Literal["input", "dependency"]
    key: str  # of the input, or the step's name
    model: Any = None


def add_wants(function: Callable[..., Any], wants: dict[str, Want]) -> None:
    """Note what parameters of `function` ask for; raises ConfigurationError when it has no such parameter."""
    signature = inspect.signature(function)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    known: dict[str, Want] = getattr(function, _WANTS, {})
    for name, want in wants.items():
        if name not in signature.parameters and not takes_any:
            raise ConfigurationError(
                f"{function.__qualname__} has no parameter {name!r} for the {want.kind} {want.key!r}"
            )
        if name in known:
            raise ConfigurationError(f"parameter {name!r} of {function.__qualname__} is asked for twice")
    setattr(function, _WANTS, known | wants)


@dataclass(frozen=True, slots=True)
class _Argument:
    name: str
    want: Want
    adapter: pydantic.TypeAdapter[Any] | None
    default: Any  # inspect.Parameter.empty when the value must be there

    def read(self, context: StepContext) -> Any:
        key = self.want.key
        if self.want.kind == "dependency":
            results = context.dependency_results
            found, value = key in results, results.get(key)
            absent = f"step {context.step_name!r} needs the result of step {key!r}, which it does not have"
        else:
            found = key in context.step_inputs or key in context.task_context
            value = context.get_input(key)
            absent = f"step {context.step_name!r}: input {key!r} is missing"
        if not found:
            if self.default is inspect.Parameter.empty:
                raise ValidationError(absent)
            return self.default
        if self.adapter is None:
            return value
        try:
            return self.adapter.validate_python(value)
        except pydantic.ValidationError as error:
            source = f"result of step {key!r}" if self.want.kind == "dependency" else f"input {key!r}"
            raise ValidationError(
                f"step {context.step_name!r}: {source} does not fit: {_first_faults(error)}"
            ) from error


def _first_faults(error: pydantic.ValidationError, shown: int = 5) -> str:
    faults = error.errors(include_url=False, include_input=False)
    told = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}" for fault in faults[:shown]
    )
    return told if len(faults) <= shown else f"{told}; and {len(faults) - shown} more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """How to call one signature with a context."""

    contexts: tuple[str, ...]  # parameters that get the context
    results: tuple[str, ...]  # parameters that get all dependency results
    arguments: tuple[_Argument, ...]
    plain: bool  # the context is the first parameter and all there is to give

    def call(self, function: Callable[..., Any], context: StepContext) -> Any:
        if self.plain:
            return function(context)
        values: dict[str, Any] = dict.fromkeys(self.contexts, context)
        for argument in self.arguments:
            values[argument.name] = argument.read(context)
        for each in self.results:
            values[each] = context.dependency_results
        return function(**values)


def bind(function: Callable[..., Any], name: str, *, skip_self: bool = False) -> Binding:
    """Read what `function` asks for; `skip_self` for a method taken from its class, `name` for errors.

    A parameter that nothing is known of gets the context when it is the only such one; otherwise ConfigurationError
    names it.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"handler {name!r}: the signature of {function!r} cannot be read") from error
    if skip_self:
        del parameters[:1]
    wants: dict[str, Want] = getattr(function, _WANTS, {})
    hints = _hints(function)
    contexts: list[str] = []
    results: list[str] = []
    unknown: list[str] = []
    arguments: list[_Argument] = []
    for parameter in parameters:
        if parameter.name in wants:
            want = wants[parameter.name]
            annotation = want.model if want.model is not None else hints.get(parameter.name)
            arguments.append(_Argument(parameter.name, want, _adapter(annotation), parameter.default))
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif parameter.name == _CONTEXT_NAME or hints.get(parameter.name) is StepContext:
            contexts.append(parameter.name)
        elif parameter.name == _RESULTS_NAME:
            results.append(parameter.name)
        elif parameter.default is parameter.empty:
            unknown.append(parameter.name)
    named = {parameter.name for parameter in parameters}
    arguments += [  # for **keywords; add_wants has refused them where there is none
        _Argument(wanted, want, _adapter(want.model), inspect.Parameter.empty)
        for wanted, want in wants.items()
        if wanted not in named
    ]
    if len(unknown) == 1 and not contexts:
        contexts, unknown = unknown, []
    if unknown:
        raise ConfigurationError(
            f"handler {name!r}: nothing says what its parameter {unknown[0]!r} is for;"
            " name it in @inputs or @depends_on, or give it a default"
        )
    first = parameters[0] if parameters else None
    plain = (
        first is not None
        and first.kind is not inspect.Parameter.KEYWORD_ONLY
        and contexts == [first.name]
        and not results
        and not arguments
    )
    by_place_only = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
    if by_place_only and not plain:
        raise ConfigurationError(
            f"handler {name!r}: its parameter {by_place_only[0]!r} cannot be given by name; drop the '/'"
        )
    return Binding(contexts=tuple(contexts), results=tuple(results), arguments=tuple(arguments), plain=plain)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Evaluated annotations; none where they cannot be evaluated, for then they are no contract either."""
    target = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any] | None:
    """A validator for the annotation; None where there is nothing to hold a value to."""
    if annotation is None or annotation is Any or annotation is inspect.Parameter.empty:
        return None
    try:
        return pydantic.TypeAdapter(annotation)
    except pydantic.errors.PydanticSchemaGenerationError:
        return None
