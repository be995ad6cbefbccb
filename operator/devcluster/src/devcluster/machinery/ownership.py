"""Who owns which fields of an object, as ``metadata.managedFields`` tells it. Used by `managed_fields`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from devcluster.machinery.field_sets import EMPTY, FieldSet, InvalidFieldSet, decode_fields

Operation = Literal["Apply", "Update"]
MAX_UPDATE_MANAGERS: Final = 10
ANCIENT_MANAGER: Final = "ancient-changes"


@dataclass(frozen=True, kw_only=True)
class Manager:
    """Who wrote. Two appliers of the same name are the same one in whatever version they apply."""

    name: str
    operation: Operation
    subresource: str = ""
    api_version: str = ""

    def describe(self) -> str:
        """As conflict messages name it."""
        text = json.dumps(self.name, ensure_ascii=False)
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        if self.operation == "Update":
            text += f" using {self.api_version}"
        return text


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a manager owns, since when, in which version's terms."""

    fields: FieldSet
    api_version: str
    time: str | None = None


Ownership = dict[Manager, Entry]


def decode_managed_fields(obj: Mapping[str, Any]) -> Ownership:
    """Who owns what, by ``metadata.managedFields``. Raises `InvalidFieldSet`."""
    owners: Ownership = {}
    for index, item in enumerate(obj.get("metadata", {}).get("managedFields") or ()):
        operation = item.get("operation")
        if operation not in ("Apply", "Update"):
            raise InvalidFieldSet("operation must be `Apply` or `Update`")
        if not item.get("apiVersion"):
            raise InvalidFieldSet("apiVersion must not be empty")
        if item.get("fieldsType") != "FieldsV1":
            raise InvalidFieldSet(f"invalid fieldsType {item.get('fieldsType')!r} in managed fields entry {index}")
        manager = Manager(
            name=item.get("manager", ""),
            operation=operation,
            subresource=item.get("subresource", ""),
            api_version=item["apiVersion"] if operation == "Update" else "",
        )
        owners[manager] = Entry(
            fields=decode_fields(item.get("fieldsV1", {})), api_version=item["apiVersion"], time=item.get("time")
        )
    return owners


def encode_managed_fields(owners: Ownership) -> list[dict[str, Any]]:
    """``metadata.managedFields``: appliers first, then by time and name."""
    ordered = sorted(
        owners.items(),
        key=lambda pair: (
            pair[0].operation,
            pair[1].time or "",
            pair[0].name,
            pair[1].api_version,
            pair[0].subresource,
        ),
    )
    return [_encode_entry(manager, entry) for manager, entry in ordered]


def _encode_entry(manager: Manager, entry: Entry) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields.encode(),
    }
    if entry.time is not None:
        encoded["time"] = entry.time
    if manager.subresource:
        encoded["subresource"] = manager.subresource
    return encoded


def cap_updaters(owners: Ownership) -> Ownership:
    """At most ten updaters; the oldest are thrown together."""
    updaters = sorted(
        (manager for manager in owners if manager.operation == "Update"),
        key=lambda manager: (owners[manager].time or "", manager.name),
    )
    surplus = len(updaters) - MAX_UPDATE_MANAGERS
    if surplus <= 0:
        return owners
    result = dict(owners)
    by_version: dict[str, list[Manager]] = {}
    for manager in updaters[: surplus + 1]:
        by_version.setdefault(owners[manager].api_version, []).append(manager)
    for api_version, crowd in by_version.items():
        if len(crowd) < 2:
            continue
        together = EMPTY
        for manager in crowd:
            together = together.union(result.pop(manager).fields)
        ancient = Manager(name=ANCIENT_MANAGER, operation="Update", api_version=api_version)
        earlier = result[ancient].fields if ancient in result else EMPTY
        result[ancient] = Entry(fields=together.union(earlier), api_version=api_version, time=owners[crowd[-1]].time)
    return result
