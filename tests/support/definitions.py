"""CustomResourceDefinitions for tests: the project's own, and small ones around a schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from devcluster.machinery.resources import ResourceInfo, builtin_resources, from_crd

CRD_FOLDER = Path(__file__).parents[2] / "crds"


def builtin(kind: str, group: str | None = None) -> ResourceInfo:
    """A built-in kind by its name."""
    return next(item for item in builtin_resources() if item.kind == kind and group in (None, item.group))


def definition(spec_schema: dict[str, Any], **version: Any) -> dict[str, Any]:
    """The definition of ``widgets.example.test/v1``, whose spec has this schema."""
    root = {"type": "object", "properties": {"spec": spec_schema, "status": {"type": "object"}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.test"},
        "spec": {
            "group": "example.test",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}, **version}
            ],
        },
    }


def custom(spec_schema: dict[str, Any], **version: Any) -> ResourceInfo:
    """The kind that `definition` adds."""
    return from_crd(definition(spec_schema, **version))[0]


def widget(spec: Any, **rest: Any) -> dict[str, Any]:
    """An object of the kind that `definition` adds."""
    return {
        "apiVersion": "example.test/v1",
        "kind": "Widget",
        "metadata": {"name": "w", "namespace": "default"},
        "spec": spec,
        **rest,
    }


def project_kind(kind: str) -> ResourceInfo:
    """One of the project's own kinds, from ``crds/``."""
    defaults = builtin("CustomResourceDefinition").schema
    for path in sorted(CRD_FOLDER.glob("*.yaml")):
        for resource in from_crd(defaults.default(yaml.safe_load(path.read_text()))):
            if resource.kind == kind:
                return resource
    raise LookupError(kind)
