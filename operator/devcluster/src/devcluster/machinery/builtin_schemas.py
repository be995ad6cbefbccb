"""The schemas of built-in types, read from ``builtin_schemas.json`` (made by `cut_builtin_schemas`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources as package_files
from typing import Any


@lru_cache(maxsize=1)
def builtin_definitions() -> Mapping[str, Mapping[str, Any]]:
    """The schemas by their full names, ``io.k8s.api.core.v1.Pod``."""
    text = package_files.files(__package__).joinpath("builtin_schemas.json").read_text(encoding="utf-8")
    definitions: dict[str, Any] = json.loads(text)["definitions"]
    return definitions
