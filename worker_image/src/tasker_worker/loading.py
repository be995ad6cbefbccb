"""Finds handlers at the start: modules named on the command line, and a folder of files mounted from a ConfigMap."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from .errors import ConfigurationError
from .registry import HandlerRegistry


def load_handlers(registry: HandlerRegistry, modules: Iterable[str], folder: Path | None) -> None:
    """Register what `modules` and the files of `folder` define.

    Raises ConfigurationError when one cannot be imported, with file and reason, or when there is no handler at all.
    """
    sources = list(modules)
    if folder is not None:
        sources += _modules_in(folder)
    for module in sources:
        registry.discover(module)
    if not registry.handler_count():
        looked_in = ", ".join(sources) or "nothing: name modules on the command line or set TASKER_HANDLERS_PATH"
        raise ConfigurationError(f"there are no handlers to run (looked in {looked_in})")


def _modules_in(folder: Path) -> list[str]:
    """Importable names of the files at the top of a folder, which goes on the import path.

    Skips what begins with ``_`` or ``.``: helpers of the handlers, and the ``..data`` links of a mounted ConfigMap.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"TASKER_HANDLERS_PATH: {folder} is no folder")
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith(("_", ".")))
    for path in files:
        if not path.stem.isidentifier():
            raise ConfigurationError(f"TASKER_HANDLERS_PATH: {path} cannot be imported: its name is no Python name")
        if path.stem in sys.stdlib_module_names:
            raise ConfigurationError(f"TASKER_HANDLERS_PATH: {path} has the name of a standard library module")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return [path.stem for path in files]
