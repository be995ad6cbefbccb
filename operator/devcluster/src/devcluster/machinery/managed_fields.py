"""Who owns which field, and server-side apply.

`record_update` is called for every create, update and patch; `apply` for a PATCH of type apply. Both give an object
whose ``metadata.managedFields`` is up to date. The rules are those of Kubernetes: an applier owns what it applies, what
it no longer applies goes unless somebody else owns it, two that apply the same value own it together, and applying
over a value that another manager set is a conflict unless forced.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from devcluster.errors import EmbeddedError
from devcluster.machinery.defaulting import spell_quantities
from devcluster.machinery.field_sets import EMPTY, FieldSet, InvalidFieldSet, format_path
from devcluster.machinery.go_values import copy_json, equal_json
from devcluster.machinery.ownership import (
    Entry,
    Manager,
    Operation,
    Ownership,
    cap_updaters,
    decode_managed_fields,
    encode_managed_fields,
)
from devcluster.machinery.schema import StructuralSchema
from devcluster.machinery.schema_node import SchemaNode
from devcluster.machinery.typed_values import (
    ABSENT,
    InvalidApplyConfiguration,
    check_keys,
    compare,
    fields_of,
    merge,
    remove_fields,
    with_named_fields,
)

__all__ = ["ApplyConflict", "InvalidApplyConfiguration", "apply", "record_update"]

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
FIRST_MANAGER: Final = "before-first-apply"

_UNOWNED: Final = FieldSet(
    {"f:apiVersion", "f:kind", "f:metadata"},
    {
        "f:metadata": FieldSet(
            f"f:{name}"
            for name in (
                "name",
                "namespace",
                "creationTimestamp",
                "selfLink",
                "uid",
                "clusterName",
                "generation",
                "managedFields",
                "resourceVersion",
            )
        )
    },
)


class ApplyConflict(EmbeddedError):
    """An applied value differs from one that another manager set.

    `causes` pairs the path of each field (``.spec.replicas``) with the manager as messages name it.
    """

    def __init__(self, causes: Iterable[tuple[str, str]]) -> None:
        self.causes = list(causes)
        super().__init__(self._describe())

    def _describe(self) -> str:
        if len(self.causes) == 1:
            path, manager = self.causes[0]
            return f"Apply failed with 1 conflict: conflict with {manager}: {path}"
        by_manager: dict[str, list[str]] = {}
        for path, manager in self.causes:
            by_manager.setdefault(manager, []).append(path)
        lines: list[str] = []
        for manager in sorted(by_manager):
            lines.append(f"conflicts with {manager}:")
            lines.extend(f"- {path}" for path in by_manager[manager])
        return f"Apply failed with {len(self.causes)} conflicts: " + "\n".join(lines)


def record_update(
    live: dict[str, Any] | None,
    new: dict[str, Any],
    *,
    manager: str,
    schema: StructuralSchema,
    api_version: str,
    now: datetime,
    subresource: str = "",
    operation: Operation = "Update",
) -> dict[str, Any]:
    """A copy of `new` whose managed fields say who changed what since `live` (None: a create).

    A client may hand in managed fields of its own with `new`; an empty list resets them. When nothing but the time
    would change, the entries of `live` stay as they are.
    """
    result: dict[str, Any] = copy_json(new)
    before = live if live is not None else _identity(new)
    owners = _starting_owners(before, new, subresource)
    _set_entries(result, [])
    if live is not None and not owners:
        return result  # nobody tracks it: it never was, or the client has just reset it
    writer = Manager(name=manager or "unknown", operation=operation, subresource=subresource, api_version=api_version)
    changed = _take_over(schema.root, _bare(before), _bare(result), owners, writer, api_version, now)
    encoded = encode_managed_fields(cap_updaters(changed))
    if live is not None and equal_json(_bare(before), _bare(result)) and _same_but_time(live, encoded):
        encoded = copy_json(live["metadata"].get("managedFields") or [])
    _set_entries(result, encoded)
    return result


def apply(
    live: dict[str, Any] | None,
    config: dict[str, Any],
    *,
    manager: str,
    force: bool,
    schema: StructuralSchema,
    api_version: str,
    now: datetime,
    subresource: str = "",
    reset_fields: Collection[str] = (),
) -> dict[str, Any]:
    """The object that results from applying `config` over `live` (None: it does not exist yet).

    Fields of `reset_fields` (``status`` on the main resource of a kind with a status subresource) are left out of the
    configuration. The result still needs defaults and validation. Raises `ApplyConflict` unless `force`, and
    `InvalidApplyConfiguration`.
    """
    if config.get("metadata", {}).get("managedFields") is not None:
        raise InvalidApplyConfiguration("metadata.managedFields must be nil")
    wanted = spell_quantities(schema.root, {key: value for key, value in config.items() if key not in reset_fields})
    if wanted.get("metadata", {}).get("creationTimestamp", ABSENT) is None:
        del wanted["metadata"]["creationTimestamp"]  # what Go programs write into manifests
    if subresource == "status":
        wanted = _status_only(wanted)
    check_keys(schema.root, wanted)
    identity = _identity(config)
    base = live if live is not None else identity
    owners = decode_managed_fields(base)
    if live is not None and not owners:
        first = Manager(name=FIRST_MANAGER, operation="Update", api_version=api_version)
        owners = _take_over(schema.root, identity, _bare(live), {}, first, api_version, now)
    applier = Manager(name=manager, operation="Apply", subresource=subresource)
    try:
        merged, changed = _apply(schema.root, _bare(base), wanted, owners, applier, api_version, now, force=force)
    except ApplyConflict as conflict:
        allowed = _kept_since_last_apply(schema.root, base, api_version) if manager == "kubectl" else EMPTY
        remaining = [cause for cause in conflict.causes if cause[0] not in {format_path(p) for p in allowed.paths()}]
        if remaining:
            raise ApplyConflict(remaining) from None
        merged, changed = _apply(schema.root, _bare(base), wanted, owners, applier, api_version, now, force=True)
    if manager == "kubectl" and merged.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED):
        merged["metadata"]["annotations"][LAST_APPLIED] = _last_applied_of(config)
    encoded = encode_managed_fields(changed)
    if live is not None and equal_json(schema.default(merged), _bare(live)) and _same_but_time(live, encoded):
        encoded = copy_json(live["metadata"].get("managedFields") or [])
    _set_entries(merged, encoded)
    return merged


def _apply(
    root: SchemaNode,
    live: dict[str, Any],
    config: dict[str, Any],
    owners: Ownership,
    applier: Manager,
    api_version: str,
    now: datetime,
    *,
    force: bool,
) -> tuple[dict[str, Any], Ownership]:
    merged = merge(root, live, config)
    last = owners[applier].fields if applier in owners else EMPTY
    applied = fields_of(root, config)
    owners = {**owners, applier: Entry(fields=applied, api_version=api_version, time=_stamp(now))}
    if last.difference(applied):
        merged = _without_abandoned(root, merged, last, owners)
    change = compare(root, live, merged)
    conflicts = {
        other: common
        for other, entry in owners.items()
        if other != applier and (common := entry.fields.intersection(change.modified.union(change.added)))
    }
    if conflicts and not force:
        raise ApplyConflict(_causes(conflicts))
    result: Ownership = {}
    for other, entry in owners.items():
        fields = entry.fields
        if other != applier:
            fields = fields.difference(conflicts.get(other, EMPTY)).difference(change.removed)
        else:
            fields = fields.difference(_UNOWNED)
        if fields:
            result[other] = replace(entry, fields=fields)
    return merged, result


def _causes(conflicts: Mapping[Manager, FieldSet]) -> list[tuple[str, str]]:
    return [(format_path(path), other.describe()) for other, fields in conflicts.items() for path in fields.paths()]


def _without_abandoned(root: SchemaNode, merged: dict[str, Any], last: FieldSet, owners: Ownership) -> dict[str, Any]:
    """`merged` without what the applier owned last time, applies no longer, and nobody else owns."""
    owned = EMPTY
    for entry in owners.values():
        owned = owned.union(entry.fields)
    everything = with_named_fields(root, fields_of(root, merged))
    last_named = with_named_fields(root, last)
    pruned = _removed(root, merged, last_named)
    left = with_named_fields(root, fields_of(root, pruned))
    pruned = _removed(root, merged, everything.difference(left.union(with_named_fields(root, owned))))
    left = with_named_fields(root, fields_of(root, pruned))
    return _removed(root, merged, everything.difference(left).intersection(last_named))


def _removed(root: SchemaNode, value: dict[str, Any], unwanted: FieldSet) -> dict[str, Any]:
    rest = remove_fields(root, value, unwanted)
    return {} if rest is ABSENT else rest


def _take_over(
    root: SchemaNode,
    before: dict[str, Any],
    after: dict[str, Any],
    owners: Ownership,
    writer: Manager,
    api_version: str,
    now: datetime,
) -> Ownership:
    """Ownership after `writer` wrote `after`: it takes what it changed or added; what went is nobody's."""
    change = compare(root, before, after)
    taken = change.modified.union(change.added)
    result: Ownership = {}
    for other, entry in owners.items():
        fields = entry.fields.difference(taken).difference(change.removed)
        if fields:
            result[other] = replace(entry, fields=fields)
    mine = taken.difference(_UNOWNED)
    if mine:
        previous = result[writer].fields if writer in result else EMPTY
        result[writer] = Entry(fields=mine.union(previous), api_version=api_version, time=_stamp(now))
    return result


def _kept_since_last_apply(root: SchemaNode, live: dict[str, Any], api_version: str) -> FieldSet:
    """Fields that a client-side apply wrote (its annotation says so) and nobody changed since."""
    annotation = live.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED)
    try:
        last = json.loads(annotation) if annotation else None
    except ValueError:
        return EMPTY
    if not isinstance(last, dict) or last.get("apiVersion") != api_version:
        return EMPTY
    try:
        change = compare(root, last, _bare(live))
        fields = fields_of(root, last)
    except InvalidApplyConfiguration:
        return EMPTY
    return fields.difference(change.modified).difference(change.added).difference(change.removed)


def _last_applied_of(config: dict[str, Any]) -> str:
    bare = copy_json(config)
    bare.get("metadata", {}).get("annotations", {}).pop(LAST_APPLIED, None)
    return json.dumps(bare, separators=(",", ":"), ensure_ascii=False, sort_keys=True) + "\n"


def _status_only(config: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: value for key, value in config.get("metadata", {}).items() if key in names}
    status = {"status": config["status"]} if "status" in config else {}
    return {**_identity(config), **status, "metadata": metadata}


def _identity(obj: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the same kind with nothing in it."""
    return {key: value for key, value in obj.items() if key in ("apiVersion", "kind")}


def _starting_owners(live: dict[str, Any], new: dict[str, Any], subresource: str) -> Ownership:
    if subresource:
        return _decoded_or_empty(live)
    if _is_reset(new):
        return {}
    return _decoded_or_empty(new) or _decoded_or_empty(live)


def _is_reset(new: dict[str, Any]) -> bool:
    return new.get("metadata", {}).get("managedFields") in ([], [{}])


def _decoded_or_empty(obj: dict[str, Any]) -> Ownership:
    try:
        return decode_managed_fields(obj)
    except InvalidFieldSet:
        return {}


def _same_but_time(live: Mapping[str, Any], encoded: list[dict[str, Any]]) -> bool:
    def timeless(entries: Iterable[Mapping[str, Any]]) -> list[str]:
        bare = ({key: value for key, value in entry.items() if key != "time"} for entry in entries)
        return sorted(json.dumps(entry, sort_keys=True) for entry in bare)

    return timeless(live.get("metadata", {}).get("managedFields") or ()) == timeless(encoded)


def _bare(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its managed fields."""
    if "managedFields" not in obj.get("metadata", {}):
        return dict(obj)
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def _set_entries(obj: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    metadata = obj.setdefault("metadata", {})
    if entries:
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
