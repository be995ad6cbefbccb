"""The examples as tests see them: their folders, manifests, and handlers imported as the worker imports them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(folder for folder in (ROOT / "examples").iterdir() if folder.is_dir())
NAMES = [folder.name for folder in FOLDERS]


def folder_of(name: str) -> Path:
    return ROOT / "examples" / name


def load_handlers(name: str) -> ModuleType:
    """The example's `handlers.py`, freshly imported."""
    spec = importlib.util.spec_from_file_location(f"handlers_of_{name}", folder_of(name) / "handlers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_manifests(name: str, file: str) -> list[dict[str, Any]]:
    """The objects of one of the example's files."""
    text = (folder_of(name) / file).read_text(encoding="utf-8")
    return [document for document in yaml.safe_load_all(text) if document]


def load_templates(name: str) -> list[dict[str, Any]]:
    """The example's TaskTemplates: one in most."""
    return load_manifests(name, "template.yaml")


def load_template(name: str) -> dict[str, Any]:
    (template,) = load_templates(name)
    return template
