"""Which handler a callable's name leads to.

Three resolvers are asked in the order of their priority, unless a template's `handler.resolver` names one of them:

    explicit     10   what the program registered itself
    registry     50   what `discover` found in modules (custom resolvers stand here too)
    dotted_path 100   ``package.module.function`` or ``package.module:Class``
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, cast

from .binding import bind
from .context import StepContext
from .errors import ConfigurationError
from .handler import StepHandler, declared_name
from .places import fault_of_import

#: A function, a StepHandler class (instantiated for every attempt) or a StepHandler instance (shared).
Target = Any
Lookup = Callable[[str], "Target | None"]


class FunctionHandler(StepHandler):
    """A plain function in the shape of a handler, so that `resolve` always gives one."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.function = function
        self._binding = bind(function, name)

    def call(self, context: StepContext) -> Any:
        return self._binding.call(self.function, context)


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """A resolved handler, ready to be run for any number of attempts."""

    run: Callable[[StepContext], Any]
    is_async: bool


class _Resolver(NamedTuple):
    priority: int
    name: str
    lookup: Lookup


class HandlerRegistry:
    """Handlers by the name that templates use. May be read and changed from any thread."""

    def __init__(self) -> None:
        self._explicit: dict[str, Target] = {}
        self._discovered: dict[str, Target] = {}
        self._lock = threading.Lock()
        self._resolvers = [
            _Resolver(10, "explicit", lambda name: self._explicit.get(name)),
            _Resolver(50, "registry", lambda name: self._discovered.get(name)),
            _Resolver(100, "dotted_path", import_target),
        ]
        self._invocations: dict[tuple[str, str, str | None], Invocation] = {}
        #: Grows with every change, so that a worker knows when to tell the database about it.
        self.revision = 0

    def register(self, name: str, handler: Target, *, replace: bool = False) -> None:
        """Lead `name` to a handler: a StepHandler class or instance, or a function.

        Raises ConfigurationError when the name leads elsewhere already (unless `replace`), when the handler is none,
        or when its signature asks for something unknown.
        """
        self._add(self._explicit, name, handler, replace)

    def register_fn(self, name: str, function: Callable[..., Any], *, replace: bool = False) -> None:
        """Lead `name` to a plain function of the context, of the dependency results, or of both."""
        if inspect.isclass(function) or not callable(function):
            raise ConfigurationError(f"register_fn({name!r}) takes a function, not {function!r}")
        self.register(name, function, replace=replace)

    def register_all(self, handlers: Mapping[str, Target] | Iterable[Target]) -> None:
        """Register many: a mapping from names, or handlers that know their own."""
        if not isinstance(handlers, Mapping):
            handlers = {_own_name(handler): handler for handler in handlers}
        for name, handler in handlers.items():
            self.register(name, handler)

    def unregister(self, name: str) -> bool:
        """Forget a name; False when it was not known."""
        with self._lock:
            known = name in self._explicit or name in self._discovered
            self._explicit.pop(name, None)
            self._discovered.pop(name, None)
            if known:
                self._changed()
        return known

    def is_registered(self, name: str) -> bool:
        return name in self._explicit or name in self._discovered

    def list_handlers(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._explicit.keys() | self._discovered.keys())

    def handler_count(self) -> int:
        return len(self._explicit.keys() | self._discovered.keys())

    def callables(self) -> list[str]:
        """What a worker offers to run: every name, and the dotted paths under which the same handlers are importable.

        A dotted path outside of what is registered is not offered, for nobody could tell beforehand that it exists.
        """
        offered = set(self.list_handlers())
        for target in (*self._explicit.values(), *self._discovered.values()):
            named = target if inspect.isclass(target) or inspect.isfunction(target) else None
            if named is not None and "<" not in named.__qualname__ and named.__module__ != "__main__":
                offered |= {f"{named.__module__}.{named.__qualname__}", f"{named.__module__}:{named.__qualname__}"}
        return sorted(offered)

    def versions(self) -> dict[str, str | None]:
        """`handler_version` by name; None for functions, which have none."""
        return {name: getattr(self.find(name), "handler_version", None) for name in self.list_handlers()}

    def add_resolver(self, name: str, lookup: Lookup, priority: int = 50) -> None:
        """Ask `lookup` for handlers too; it gives None for names that it does not know."""
        with self._lock:
            if any(resolver.name == name for resolver in self._resolvers):
                raise ConfigurationError(f"there is a resolver {name!r} already")
            self._resolvers = sorted([*self._resolvers, _Resolver(priority, name, lookup)])
            self._changed()

    def find(self, name: str, resolver: str | None = None) -> Target | None:
        """What a name leads to, as it was registered; None when no resolver knows it."""
        chain = self._resolvers if resolver is None else [each for each in self._resolvers if each.name == resolver]
        if not chain:
            known = ", ".join(each.name for each in self._resolvers)
            raise ConfigurationError(
                f"there is no resolver {resolver!r} for the callable {name!r} (there are: {known})"
            )
        return next((target for each in chain if (target := each.lookup(name)) is not None), None)

    def resolve(self, name: str, *, resolver: str | None = None) -> StepHandler | None:
        """A handler instance for a name, or None when no resolver knows it."""
        target = self.find(name, resolver)
        if target is None or isinstance(target, StepHandler):
            return target
        if inspect.isclass(target):
            return cast("StepHandler", target())
        return FunctionHandler(name, target)

    def invocation(self, name: str, method: str = "call", resolver: str | None = None) -> Invocation:
        """How to run a callable; raises ConfigurationError when it, its resolver or its method does not exist."""
        key = (name, method, resolver)
        # The table as it is before looking: when a change comes between, what was found goes into the one thrown away.
        invocations = self._invocations
        known = invocations.get(key)
        if known is None:
            target = self.find(name, resolver)
            if target is None:
                by = "" if resolver is None else f" by the resolver {resolver!r}"
                raise ConfigurationError(f"no handler is registered for the callable {name!r}{by}")
            known = invocations[key] = _invocation(target, name, method)
        return known

    def discover(self, package: str | ModuleType) -> list[str]:
        """Import a module, or a package with all its submodules, and register every handler in it.

        Handlers are functions under `@step_handler` and StepHandler classes with a `handler_name` of their own.
        Returns their names. Raises ConfigurationError when a module cannot be imported, naming the file and reason, or
        when two handlers have one name.
        """
        root = package if isinstance(package, ModuleType) else import_module(package)
        found: list[str] = []
        for module in _with_submodules(root):
            for value in list(vars(module).values()):
                name = _discoverable_name(value)
                if name is not None:
                    self._add(self._discovered, name, value, replace=False)
                    found.append(name)
        return sorted(set(found))

    def _add(self, table: dict[str, Target], name: str, handler: Target, replace: bool) -> None:
        if not name.strip():
            raise ConfigurationError("a handler's name may not be empty")
        _invocation(handler, name, "call")  # a handler that could never run is refused now
        with self._lock:
            known = table.get(name)
            if known is handler:
                return
            if known is not None and not replace:
                raise ConfigurationError(f"the handler name {name!r} is used by {_tell(known)} and by {_tell(handler)}")
            table[name] = handler
            self._changed()

    def _changed(self) -> None:
        self._invocations = {}
        self.revision += 1


def _invocation(target: Target, name: str, method: str) -> Invocation:
    if inspect.isclass(target) and issubclass(target, StepHandler):
        function = _method_of(target, name, method)
        binding = bind(function, name, owner=target)
        if binding.plain:
            return Invocation(run=lambda context: getattr(target(), method)(context), is_async=_is_async(function))
        return Invocation(
            run=lambda context: binding.call(getattr(target(), method), context), is_async=_is_async(function)
        )
    if isinstance(target, StepHandler):
        function = _method_of(target, name, method)
    elif callable(target) and not inspect.isclass(target):
        if method != "call":
            raise ConfigurationError(f"the handler {name!r} is a function and has no method {method!r}")
        function = target
    else:
        raise ConfigurationError(f"the handler {name!r} is neither a function nor a StepHandler: {_tell(target)}")
    binding = bind(function, name)
    run = function if binding.plain else functools.partial(binding.call, function)
    return Invocation(run=run, is_async=_is_async(function))


def _method_of(owner: Any, name: str, method: str) -> Callable[..., Any]:
    function = getattr(owner, method, None)
    if method.startswith("_") or not callable(function):
        raise ConfigurationError(f"the handler {name!r} has no method {method!r}")
    checked: Callable[..., Any] = function
    return checked


def _is_async(function: Callable[..., Any]) -> bool:
    if isinstance(function, functools.partial):
        return _is_async(function.func)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async, not whether it has one
    )


def _own_name(handler: Target) -> str:
    name = declared_name(handler) or getattr(handler, "handler_name", None)
    if not name:
        raise ConfigurationError(
            f"{_tell(handler)} does not say its name; give it a handler_name or register it by one"
        )
    return str(name)


def _discoverable_name(value: object) -> str | None:
    if inspect.isclass(value):
        return vars(value).get("handler_name") or None if issubclass(value, StepHandler) else None
    return declared_name(value)


def _tell(target: Target) -> str:
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}.{named.__qualname__}"


def import_module(name: str) -> ModuleType:
    """Import a module; ConfigurationError names it, the user's line at fault and the reason when that fails."""
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fault = fault_of_import(error, name)
        raise ConfigurationError(f"the handlers module {name!r} cannot be imported: {fault}") from error


def _with_submodules(module: ModuleType) -> Iterable[ModuleType]:
    yield module
    for each in pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}."):
        if each.name.rpartition(".")[2] != "__main__":
            yield from _with_submodules(import_module(each.name))


def import_target(path: str) -> Target | None:
    """The function or StepHandler class at ``package.module.name`` or ``package.module:Name``; None when there is none.

    Raises ConfigurationError when the module is there and fails, or when the path leads to something else.
    """
    module_name, colon, attributes = path.partition(":")
    if not colon:
        module_name, _, attributes = path.rpartition(".")
    if not module_name:
        return None
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise _unimportable(path, module_name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _unimportable(path, module_name, error) from error
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    handler_class = inspect.isclass(found) and issubclass(found, StepHandler)
    if found is None or handler_class or inspect.isroutine(found) or isinstance(found, StepHandler):
        return found
    raise ConfigurationError(f"the callable {path!r} is neither a function nor a StepHandler")


def _unimportable(path: str, module: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"the callable {path!r} cannot be imported: {fault_of_import(error, module)}")
