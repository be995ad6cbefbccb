"""Handlers are found in modules and in a folder; what cannot be found or imported is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasker_worker import HandlerRegistry
from tasker_worker.errors import ConfigurationError
from tasker_worker.loading import load_handlers

HANDLER = "from tasker_worker import step_handler\n\n@step_handler({name!r})\ndef handler(context): ...\n"


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_every_file_at_the_top_of_the_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "cart_handlers.py").write_text("from _shared_by_cart import NAME\n" + HANDLER.format(name="cart"))
    (tmp_path / "pay_handlers.py").write_text(HANDLER.format(name="pay"))
    (tmp_path / "_shared_by_cart.py").write_text("NAME = 1\n" + HANDLER.format(name="hidden"))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "no_handlers.py").write_text(HANDLER.format(name="deep"))
    (tmp_path / "notes.txt").write_text("no Python")
    registry = HandlerRegistry()
    load_handlers(registry, [], tmp_path)
    assert registry.list_handlers() == ["cart", "pay"]


def test_the_links_of_a_mounted_config_map_are_followed_once(tmp_path: Path) -> None:
    data = tmp_path / "..2026_01_01"
    data.mkdir()
    (data / "mounted_handlers.py").write_text(HANDLER.format(name="mounted"))
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "mounted_handlers.py").symlink_to("..data/mounted_handlers.py")
    registry = HandlerRegistry()
    load_handlers(registry, [], tmp_path)
    assert registry.list_handlers() == ["mounted"]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (
            "bad_handlers.py",
            "import nothing_here",
            r"bad_handlers\.py:1: ModuleNotFoundError: No module named 'nothing",
        ),
        ("my-handlers.py", "", r"my-handlers\.py cannot be imported: its name is no Python name"),
        ("json.py", "", r"json\.py has the name of a standard library module"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, file: str, text: str, reason: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load_handlers(HandlerRegistry(), [], tmp_path)


def test_no_handler_at_all_is_an_error_that_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_handlers(HandlerRegistry(), [], None)
    assert str(refusal.value) == (
        "there are no handlers to run (looked in nothing: name modules on the command line or set TASKER_HANDLERS_PATH)"
    )
    (tmp_path / "empty_of_handlers.py").write_text("x = 1")
    with pytest.raises(ConfigurationError, match=r"no handlers to run \(looked in empty_of_handlers\)"):
        load_handlers(HandlerRegistry(), [], tmp_path)
    with pytest.raises(ConfigurationError, match=r"TASKER_HANDLERS_PATH: .* is no folder"):
        load_handlers(HandlerRegistry(), [], tmp_path / "none")


def test_a_registry_that_a_program_filled_is_enough() -> None:
    registry = HandlerRegistry()
    registry.register("work", lambda context: None)
    load_handlers(registry, [], None)


def test_the_folder_comes_first_on_the_import_path_and_once(tmp_path: Path) -> None:
    (tmp_path / "first_handlers.py").write_text(HANDLER.format(name="first"))
    before = sys.path[:]
    for _ in range(2):
        load_handlers(HandlerRegistry(), [], tmp_path)
        assert sys.path == [str(tmp_path), *before]
