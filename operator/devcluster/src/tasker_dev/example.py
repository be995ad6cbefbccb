"""A folder of manifests that says what its Tasks should end as: what `tasker dev --run` takes.

Each Task may carry the annotation `tasker.dev/expected-state`, ``complete`` (the default) or ``error``. Nothing but
`tasker dev --run` looks at it: it decides the exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasker.errors import ConfigurationError

EXPECTED_STATE = "tasker.dev/expected-state"
EXPECTED_STATES = ("complete", "error")

# What `kubectl apply -f FOLDER` reads.
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


@dataclass(frozen=True, kw_only=True)
class ExampleTask:
    """A Task of the folder and the state that it should end in."""

    name: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a folder holds, as far as a run of it needs to know."""

    folder: Path
    tasks: tuple[ExampleTask, ...]
    pools: tuple[str, ...]


def read_example(folder: Path) -> Example:
    """Read a folder's manifests. Raises `ConfigurationError` naming the file when it cannot be run."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder; give one with manifests, like examples/01-linear")
    tasks: list[ExampleTask] = []
    pools: list[str] = []
    for file in sorted(each for each in folder.iterdir() if each.suffix in _SUFFIXES):
        for document in _documents(file):
            match document.get("kind"):
                case "Task":
                    tasks.append(_task(file, document))
                case "WorkerPool":
                    pools.append(_name(file, document))
    if not tasks:
        raise ConfigurationError(f"{folder}: none of its manifests is a Task, so there is nothing to run")
    return Example(folder=folder, tasks=tuple(tasks), pools=tuple(pools))


def _documents(file: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: cannot be read as YAML: {error}") from error
    for document in documents:
        if document is not None and not isinstance(document, dict):
            raise ConfigurationError(f"{file}: holds something other than Kubernetes objects")
    return [document for document in documents if document]


def _task(file: Path, document: dict[str, Any]) -> ExampleTask:
    name = _name(file, document)
    annotations = (document.get("metadata") or {}).get("annotations") or {}
    expected = annotations.get(EXPECTED_STATE, EXPECTED_STATES[0])
    if expected not in EXPECTED_STATES:
        raise ConfigurationError(
            f"{file}: the annotation {EXPECTED_STATE} of Task {name} is {expected!r}, "
            f"not {' or '.join(EXPECTED_STATES)}"
        )
    return ExampleTask(name=name, expected=expected)


def _name(file: Path, document: dict[str, Any]) -> str:
    name = (document.get("metadata") or {}).get("name")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{file}: a {document.get('kind')} has no metadata.name")
    return name
