"""From a handler's signature to a call: which parameter gets the context, an input, or a dependency's result.

`@inputs` and `@depends_on` note what they want on the function; `bind` reads that together with the signature once,
when the handler is resolved, so that an attempt only looks values up. A parameter's annotation is its contract: the
value is validated against it, and a misfit names the step, the parameter and the field. One that cannot be read or held
to is refused when the handler is registered, at the line of the user's: nothing is let through unvalidated unsaid.
"""

from __future__ import annotations

import builtins
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pydantic

from .context import StepContext
from .errors import ConfigurationError, ValidationError
from .places import place_of, underlying

_WANTS = "__tasker_wants__"
_ANSWER_BEFORE = "__tasker_answer_before__"
_CONTEXT_NAME = "context"
_RESULTS_NAME = "dependency_results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """A value that a parameter asks for."""

    kind: typing.Literal["input", "dependency"]
    key: str  # of the input, or the step's name
    model: Any = None  # in place of the annotation; None leaves it to that


def add_wants(function: Callable[..., Any], wants: dict[str, Want]) -> None:
    """Note what parameters of `function` ask for; raises ConfigurationError when it has no such parameter."""
    if inspect.isclass(function):
        raise ConfigurationError(
            f"@inputs and @depends_on are for functions and methods: decorate `call` of {function.__qualname__}"
        )
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


Answer = Callable[[StepContext], Any]
"""Gives what a handler would return, or None when the handler is to be called."""


def answer_before(function: Callable[..., Any], answer: Answer) -> None:
    """Have `answer` asked before anything that `function` wants is read, and in its place when it has one."""
    setattr(function, _ANSWER_BEFORE, answer)


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
    faults = error.errors()
    listed = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}" for fault in faults[:shown]
    )
    return listed if len(faults) <= shown else f"{listed}; and {len(faults) - shown} more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """How to call one signature with a context."""

    contexts: tuple[str, ...]  # parameters that get the context
    results: tuple[str, ...]  # parameters that get all dependency results
    arguments: tuple[_Argument, ...]
    plain: bool  # the context is the first parameter and all there is to give
    before: Answer | None = None  # asked first; never of a plain one

    def call(self, function: Callable[..., Any], context: StepContext) -> Any:
        """What the function returns, which an async one does with an awaitable; or what was answered before it."""
        if self.plain:
            return function(context)
        if self.before is not None and (answer := self.before(context)) is not None:
            return answer
        values: dict[str, Any] = dict.fromkeys(self.contexts, context)
        for argument in self.arguments:
            values[argument.name] = argument.read(context)
        for each in self.results:
            values[each] = context.dependency_results
        return function(**values)


def bind(function: Callable[..., Any], name: str, *, owner: type | None = None) -> Binding:
    """Read what `function` asks for; `owner` for a method taken from its class, `name` for errors.

    A parameter that nothing is known of gets the context when it is the only such one; otherwise ConfigurationError
    names it. So it does an annotation that cannot be resolved or validated against, each with the function's place.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"handler {name!r}: the signature of {function!r} cannot be read") from error
    if owner is not None:
        del parameters[:1]
    hints = _Hints(function, name, owner)
    wants: dict[str, Want] = getattr(function, _WANTS, {})
    contexts: list[str] = []
    results: list[str] = []
    unknown: list[str] = []
    arguments: list[_Argument] = []
    for parameter in parameters:
        if parameter.name in wants:
            want = wants[parameter.name]
            arguments.append(_Argument(parameter.name, want, hints.adapter(parameter, want), parameter.default))
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif parameter.name == _RESULTS_NAME:
            results.append(parameter.name)
        elif parameter.name == _CONTEXT_NAME or hints.is_context(parameter):
            contexts.append(parameter.name)
        elif parameter.default is parameter.empty:
            unknown.append(parameter.name)
    named = {parameter.name for parameter in parameters}
    for keyword in wants.keys() - named:  # for **keywords; add_wants has refused them where there is none
        parameter = inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY)
        arguments.append(_Argument(keyword, wants[keyword], hints.adapter(parameter, wants[keyword]), parameter.empty))
    if len(unknown) == 1 and not contexts:
        contexts, unknown = unknown, []
    if unknown:
        raise hints.refusal(
            f"nothing says what its parameter {unknown[0]!r} is for;"
            " name it in @inputs or @depends_on, or give it a default"
        )
    first = parameters[0] if parameters else None
    before: Answer | None = getattr(function, _ANSWER_BEFORE, None)
    plain = (
        first is not None
        and before is None
        and first.kind is not inspect.Parameter.KEYWORD_ONLY
        and contexts == [first.name]
        and not results
        and not arguments
    )
    by_place_only = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
    if by_place_only and not plain:
        raise hints.refusal(f"its parameter {by_place_only[0]!r} cannot be given by name; drop the '/'")
    return Binding(
        contexts=tuple(contexts), results=tuple(results), arguments=tuple(arguments), plain=plain, before=before
    )


class _Hints:
    """The annotations of one handler's parameters, each evaluated when it is asked for and by itself."""

    def __init__(self, function: Callable[..., Any], name: str, owner: type | None) -> None:
        written = underlying(function)
        self._handler = name
        self._place = place_of(function)
        self._globals: dict[str, Any] = getattr(written, "__globals__", {})
        self._locals = {each.__name__: each for each in getattr(written, "__type_params__", ())}
        if owner is None:
            bound_to = getattr(function, "__self__", None)
            owner = bound_to if isinstance(bound_to, type) else type(bound_to)
        for each in reversed(owner.__mro__):
            # What the class's body could see too, as far as it hides nothing: attributes are often named like a type.
            self._locals |= {
                key: value
                for key, value in vars(each).items()
                if key not in self._globals and not hasattr(builtins, key)
            }

    def refusal(self, text: str) -> ConfigurationError:
        """`text` behind the place and the name of the handler that it is about."""
        place = "" if self._place is None else f"{self._place}: "
        return ConfigurationError(f"{place}handler {self._handler!r}: {text}")

    def is_context(self, parameter: inspect.Parameter) -> bool:
        """Whether a parameter is annotated as the context, be that imported for type checkers only."""
        annotation = parameter.annotation
        if isinstance(annotation, str) and annotation.rpartition(".")[2] == StepContext.__name__:
            return True
        return self._evaluated(annotation, parameter.name) is StepContext

    def adapter(self, parameter: inspect.Parameter, want: Want) -> pydantic.TypeAdapter[Any] | None:
        """What validates a parameter's value; None where nothing is said of it that a value could be held to."""
        given = parameter.annotation if want.model is None else want.model
        evaluated = self._evaluated(given, parameter.name)
        if evaluated is Any or evaluated is inspect.Parameter.empty:
            return None
        try:
            adapter = pydantic.TypeAdapter(evaluated)
            adapter.rebuild()  # for a model with names in it that did not exist when it was made
        except Exception as error:  # of pydantic, or of the type's own code
            raise self.refusal(
                f"values cannot be validated against {_shown(given)}, which its parameter {parameter.name!r} is to be:"
                f" {_first_line(error)}"
            ) from error
        return adapter

    def _evaluated(self, annotation: Any, parameter: str) -> Any:
        if annotation is inspect.Parameter.empty:
            return annotation
        holder = SimpleNamespace(__annotations__={parameter: annotation})
        try:
            return typing.get_type_hints(holder, self._globals, self._locals, include_extras=True)[parameter]
        except Exception as error:  # evaluating runs the user's expression
            raise self.refusal(
                f"the annotation {_shown(annotation)} of its parameter {parameter!r} cannot be resolved:"
                f" {_first_line(error)}; it is read when the program runs, in the module of the handler"
            ) from error


def _shown(annotation: Any) -> str:
    if isinstance(annotation, str):
        return repr(annotation)
    return repr(annotation.__qualname__) if isinstance(annotation, type) else repr(annotation)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
