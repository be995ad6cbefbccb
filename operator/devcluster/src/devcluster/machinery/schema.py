"""A schema as one object: defaulting, pruning, validation. Made by `resources`, called by the HTTP server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from devcluster.machinery import field_errors
from devcluster.machinery.cel import RuleSet
from devcluster.machinery.defaulting import default_value, find_unknown_fields, prune_value
from devcluster.machinery.field_errors import FieldError
from devcluster.machinery.schema_node import SchemaNode
from devcluster.machinery.validation import (
    ABSENT,
    BLOCKING_REASONS,
    WHOLE_OBJECT,
    check_unique_items,
    check_value,
)

__all__ = ["FieldError", "SchemaNode", "StructuralSchema"]

Completion = Callable[[dict[str, Any]], None]
"""Fills in, in place, the defaults of a built-in kind that depend on other fields."""

ExtraCheck = Callable[[dict[str, Any], dict[str, Any] | None], Iterable[FieldError]]
"""What a built-in kind demands beyond its schema: called with the new and the old object."""

_RULES_SKIPPED = (
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


class StructuralSchema:
    """The schema of one version of one kind.

    `root` is its top node; `complete` and `extra_check` are what a built-in kind needs beyond a schema.
    """

    def __init__(
        self,
        root: SchemaNode,
        *,
        complete: Completion | None = None,
        extra_check: ExtraCheck | None = None,
    ) -> None:
        self.root = root
        self._complete = complete
        self._extra_check = extra_check
        self._rules = RuleSet.of_schema(root)

    @property
    def raw(self) -> Mapping[str, Any]:
        """The schema as JSON."""
        return self.root.raw

    def default(self, obj: dict[str, Any]) -> dict[str, Any]:
        """A copy of `obj` with defaults filled in and forbidden nulls taken away."""
        filled: dict[str, Any] = default_value(self.root, obj)
        if self._complete is not None:
            self._complete(filled)
        return filled

    def prune(self, obj: dict[str, Any]) -> dict[str, Any]:
        """A copy of `obj` without the fields that the schema does not know."""
        kept: dict[str, Any] = prune_value(self.root, obj)
        return kept

    def unknown_fields(self, obj: dict[str, Any]) -> list[str]:
        """What strict field validation complains of: ``unknown field "spec.foo"``, sorted by path."""
        return [f'unknown field "{path}"' for path in sorted(find_unknown_fields(self.root, obj))]

    def validate(self, obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[FieldError]:
        """The faults of `obj`, which `default` has completed; empty when it is valid.

        With `old` (the object as it is stored) parts that did not change are accepted as they are, and transition
        rules are evaluated.
        """
        errors = list(check_value(self.root, obj, "", ABSENT if old is None else old))
        if old is None or not any(check_unique_items(self.root, old, "")):
            errors.extend(check_unique_items(self.root, obj, ""))
        if self._extra_check is not None and not errors:
            errors.extend(self._extra_check(obj, old))
        if self._rules is not None:
            if any(error.reason in BLOCKING_REASONS for error in errors):
                errors.append(field_errors.invalid(WHOLE_OBJECT, None, _RULES_SKIPPED))
            else:
                errors.extend(self._rules.check(obj, old))
        return errors
