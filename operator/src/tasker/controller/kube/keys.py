"""How the operator names an object within its kind: by namespace and name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectKey:
    """A namespaced object of the kind that its queue is for. Of a namespace itself, both fields are its name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def key_of(manifest: Mapping[str, Any]) -> ObjectKey:
    """The object's namespace and name."""
    metadata = manifest["metadata"]
    return ObjectKey(namespace=metadata.get("namespace") or metadata["name"], name=metadata["name"])
