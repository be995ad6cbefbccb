"""Where in the user's code a fault is: the file and line that messages about handlers and their modules name.

A person can mend a line of their own; one of this SDK, of the standard library or of an installed one tells little.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from .errors import TaskerError

_SDK = Path(__file__).parent
_STANDARD_LIBRARY = {Path(sysconfig.get_path(each)) for each in ("stdlib", "platstdlib")}
_INSTALLED = {"site-packages", "dist-packages"}


def place_of(function: Callable[..., Any]) -> str | None:
    """``file:line`` of a function, at the first of its decorators; None for what was not written in Python."""
    code: CodeType | None = getattr(underlying(function), "__code__", None)
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def underlying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a user wrote, beneath partial objects, bound methods, wrappers and callable objects."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isroutine(function) or inspect.isclass(function):
            return function
        else:
            function = type(function).__call__


def fault_of_import(error: BaseException, module: str) -> str:
    """Why the import of `module` failed: ``file:line: Type: message``, at the innermost line of the user's."""
    package = module.partition(".")[0]
    own = [
        (frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_of_user(frame, package=package)
    ]
    if isinstance(error, SyntaxError) and error.lineno and _may_be_of_user(error.filename, alone=not own):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    if not own:
        file = None if isinstance(error, ModuleNotFoundError) else _file_of(module)
        return _reason(error) if file is None else f"{file}: {_reason(error)}"
    frame, line = own[-1]
    return f"{frame.f_code.co_filename}:{line}: {_reason(error)}"


def _is_of_user(frame: FrameType, *, package: str) -> bool:
    """Whether code is the user's: of the package that is imported, wherever it lies, or of none that is installed."""
    path = Path(frame.f_code.co_filename)
    name = str(frame.f_globals.get("__name__", ""))
    of_others = frame.f_code.co_filename.startswith("<") or path.is_relative_to(_SDK)
    return not of_others and (name.partition(".")[0] == package or not _is_installed(path))


def _may_be_of_user(filename: str | None, *, alone: bool) -> bool:
    """Whether a file that is no Python is to be named: always when nothing else can be."""
    return filename is not None and not filename.startswith("<") and (alone or not _is_installed(Path(filename)))


def _file_of(module: str) -> str | None:
    """Where the module that cannot even be compiled lies; None when that cannot be told."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # it imports the parents, which may be what fails
        return None
    return None if spec is None or not spec.has_location else spec.origin


def _is_installed(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(each) for each in _STANDARD_LIBRARY)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    if isinstance(error, TaskerError):
        return str(error)
    try:
        text = str(error)
    except Exception:  # a __str__ that raises is the user's
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
