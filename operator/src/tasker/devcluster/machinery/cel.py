"""Rules of a schema in CEL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasker.devcluster.machinery.field_errors import FieldError
from tasker.devcluster.machinery.schema_node import SchemaNode


class RuleSet:
    """The rules of a schema, compiled."""

    @classmethod
    def of_schema(cls, root: SchemaNode) -> RuleSet | None:
        return None

    def check(self, obj: dict[str, Any], old: dict[str, Any] | None) -> Iterator[FieldError]:
        yield from ()


def check_rules(root: SchemaNode, path: str) -> Iterator[FieldError]:
    yield from ()
