"""What messages name: the innermost line that the user wrote, whatever of other people's code lies around it."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasker_worker.errors import ConfigurationError
from tasker_worker.places import fault_of_import, place_of

Write = Callable[[dict[str, str | bytes]], None]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules of a user's, by their paths, and of installed libraries in `site-packages`."""
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(files: dict[str, str | bytes]) -> None:
        for name, content in files.items():
            file = tmp_path / f"{name}.py"
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _fault(module: str) -> str:
    """Why the import fails, as for a caller who is none of the user's code."""
    try:
        importlib.import_module(module)
    except BaseException as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        return fault_of_import(error, module)
    raise AssertionError(f"{module} can be imported")


def test_the_innermost_line_of_the_users_is_named(user: Write, tmp_path: Path) -> None:
    user(
        {
            "shop_first": "import shop_second",
            "shop_second": "\nimport shop_third",
            "shop_third": "def load():\n    import json\n    json.loads('{')\n\nload()",
        }
    )
    assert _fault("shop_first").startswith(f"{tmp_path}/shop_third.py:3: JSONDecodeError: Expecting property name")


def test_code_that_is_made_of_a_text_has_no_line_to_mend(user: Write, tmp_path: Path) -> None:
    user({"shop_made": "x = 1\nexec('1 / 0')", "shop_text": "exec('x = = 1')"})
    assert _fault("shop_made") == f"{tmp_path}/shop_made.py:2: ZeroDivisionError: division by zero"
    assert _fault("shop_text") == f"{tmp_path}/shop_text.py:1: SyntaxError: invalid syntax (<string>, line 1)"


def test_what_the_sdk_raises_is_told_in_its_own_words_at_the_users_line(user: Write, tmp_path: Path) -> None:
    user({"shop_calls": "\nfrom tasker_worker.settings import load_settings\nload_settings({}, slotz=1)"})
    assert _fault("shop_calls") == f"{tmp_path}/shop_calls.py:3: slotz is no setting of a worker"


def test_a_library_is_named_only_when_it_is_what_was_to_be_imported(user: Write, tmp_path: Path) -> None:
    user(
        {
            "shop_uses": "import lib.inner",
            "shop_uses_wrong": "\nimport lib.wrong",
            "site-packages/lib/__init__": "",
            "site-packages/lib/inner": "\n\nraise LookupError('no licence')",
            "site-packages/lib/wrong": "x =",
        }
    )
    library = tmp_path / "site-packages" / "lib"
    assert _fault("shop_uses") == f"{tmp_path}/shop_uses.py:1: LookupError: no licence"
    assert _fault("lib.inner") == f"{library}/inner.py:3: LookupError: no licence"
    assert _fault("shop_uses_wrong").startswith(f"{tmp_path}/shop_uses_wrong.py:2: SyntaxError: invalid syntax")
    assert _fault("lib.wrong") == f"{library}/wrong.py:1: SyntaxError: invalid syntax"


def test_a_file_that_is_no_python_is_named_with_its_line(user: Write, tmp_path: Path) -> None:
    user({"shop_imports": "import shop_wrong", "shop_wrong": "x = 1\ny = = 2"})
    for module in ("shop_imports", "shop_wrong"):
        assert _fault(module) == f"{tmp_path}/shop_wrong.py:2: SyntaxError: invalid syntax"


def test_a_syntax_error_that_names_no_place_is_told_at_the_line_that_raised_it(user: Write, tmp_path: Path) -> None:
    user(
        {
            "shop_raises": "\nraise SyntaxError('of a template')",
            "shop_raises_more": "raise SyntaxError('of a template', (None, 7, 1, 'x', 7, 2))",
        }
    )
    assert _fault("shop_raises") == f"{tmp_path}/shop_raises.py:2: SyntaxError: of a template"
    assert _fault("shop_raises_more").startswith(f"{tmp_path}/shop_raises_more.py:1: SyntaxError: of a template")


def test_of_what_cannot_even_be_read_the_file_is_named_where_it_can_be_found(user: Write, tmp_path: Path) -> None:
    user({"shop_binary": b"x = '\0'", "shop_package/__init__": b"x = '\0'", "shop_package/inner": ""})
    assert _fault("shop_binary").startswith(f"{tmp_path}/shop_binary.py: SyntaxError: ")
    assert _fault("shop_package.inner").startswith("SyntaxError: ")
    assert _fault("shop_nowhere") == "ModuleNotFoundError: No module named 'shop_nowhere'"
    assert fault_of_import(LookupError("no licence"), "shop_nowhere") == "LookupError: no licence"
    assert fault_of_import(LookupError("no licence"), "sys") == "LookupError: no licence"


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("a fault of the user's")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(3), "it calls sys.exit(3)"),
        (ConfigurationError("no such setting"), "no such setting"),
        (LookupError("no licence"), "LookupError: no licence"),
        (LookupError(), "LookupError"),
        (_Unspeakable(), "_Unspeakable"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_the_reason_is_told_by_what_says_most(error: BaseException, told: str) -> None:
    assert fault_of_import(error, "shop_nowhere") == told


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


class _Callable:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (_fault, _fault.__code__),
        (functools.partial(_fault, module="x"), _fault.__code__),
        (_decorated(_fault), _fault.__code__),
        (_Callable().method, _Callable.method.__code__),
        (_Callable(), _Callable.__call__.__code__),
        (_Callable, None),
        (print, None),
    ],
    ids=["function", "partial", "decorated", "method", "object", "class", "builtin"],
)
def test_a_function_is_where_the_user_has_written_it(function: Callable[..., Any], code: Any) -> None:
    assert place_of(function) == (None if code is None else f"{__file__}:{code.co_firstlineno}")
