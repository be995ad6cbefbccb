"""What `kubectl get` prints: a ``meta.k8s.io/v1`` Table made by the server.

A kind from a CustomResourceDefinition shows its printer columns; a built-in kind the columns that Kubernetes shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from devcluster.machinery.builtin_columns import BUILTIN_COLUMNS, Column, creation_columns
from devcluster.machinery.durations import age
from devcluster.machinery.go_values import copy_json
from devcluster.machinery.jsonpath import compile_json_path
from devcluster.machinery.resources import PrinterColumn, ResourceInfo

IncludeObject = Literal["None", "Metadata", "Object"]

_NAME_DESCRIPTION = "Name must be unique within a namespace."
_AGE_DESCRIPTION = "The time since the object was created."


def to_table(
    resource: ResourceInfo,
    objects: Iterable[dict[str, Any]],
    now: datetime,
    *,
    include_object: IncludeObject = "Metadata",
) -> dict[str, Any]:
    """The Table of these objects. Each row carries the object in the form that the request asked for.

    The caller sets ``metadata`` (resourceVersion, continue).
    """
    columns = columns_of(resource)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [_definition(column) for column in columns],
        "rows": [
            {
                "cells": [column.cell(obj, now) for column in columns],
                "object": _object(obj, include_object),
            }
            for obj in objects
        ],
    }


def columns_of(resource: ResourceInfo) -> list[Column]:
    """The columns in which this kind is shown."""
    if resource.is_builtin:
        return BUILTIN_COLUMNS.get((resource.group, resource.kind), creation_columns())
    name = Column(
        name="Name",
        type="string",
        format="name",
        description=_NAME_DESCRIPTION,
        cell=lambda obj, _now: obj["metadata"].get("name"),
    )
    own = [_custom(column) for column in resource.printer_columns]
    if not own:
        own = [
            Column(
                name="Age",
                type="date",
                description=_AGE_DESCRIPTION,
                cell=lambda obj, now: age(obj["metadata"].get("creationTimestamp"), now),
            )
        ]
    return [name, *own]


def _custom(column: PrinterColumn) -> Column:
    find = compile_json_path(column.json_path)

    def cell(obj: dict[str, Any], now: datetime) -> Any:
        values = find(obj)
        return _convert(column, values[0], now) if values else None

    return Column(
        name=column.name,
        type=column.type,
        format=column.format,
        description=column.description or f"Custom resource definition column (in JSONPath format): {column.json_path}",
        priority=column.priority,
        cell=cell,
    )


def _convert(column: PrinterColumn, value: Any, now: datetime) -> Any:
    """The value in the column's type; None when it is of another."""
    if value is None:
        return None
    match column.type:
        case "string":
            return _as_text(value)
        case "integer" if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
        case "number" if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        case "boolean" if isinstance(value, bool):
            return value
        case "date" if isinstance(value, str):
            return age(value, now)
        case _:
            return None


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _definition(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    }


def _object(obj: dict[str, Any], include: IncludeObject) -> dict[str, Any] | None:
    match include:
        case "None":
            return None
        case "Object":
            return copy_json(obj)  # type: ignore[no-any-return]
        case _:
            return {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": copy_json(obj.get("metadata", {})),
            }
