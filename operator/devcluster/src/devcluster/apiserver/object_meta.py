"""What the server itself knows about `metadata`: names, generated names, the shape of labels, finalizers and owners.

Called by the write path before a kind's schema is looked at, because the server reads these fields first.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.registry import NAMESPACES, Served
from devcluster.machinery.field_errors import FieldError, forbidden, invalid, required, too_long

MAX_ANNOTATIONS_BYTES = 256 * 1024
FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_NAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_RANDOM = "bcdfghjklmnpqrstvwxz2456789"
_RANDOM_LENGTH = 5
_LONGEST_BASE = 63 - _RANDOM_LENGTH

_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_LABEL_RE = re.compile(_LABEL)
_SERVICE_RE = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED_NAME_RE = re.compile(_LABEL_NAME)
_LABEL_VALUE_RE = re.compile(f"({_LABEL_NAME})?")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SERVICE_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_NAME_PART_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

_STRINGS = ("name", "generateName", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
_STRING_MAPS = ("labels", "annotations")


def timestamp(now: datetime) -> str:
    """RFC 3339 in whole seconds, as all of Kubernetes' `Time` fields."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    return datetime.fromisoformat(text)


def tidy_metadata(obj: dict[str, Any], served: Served) -> dict[str, Any]:
    """The object's metadata, in place and without empty fields. Raises ApiError 400 for a field of the wrong type."""
    metadata = obj.setdefault("metadata", {})
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise _wrong_type(served, "metadata", metadata, "v1.ObjectMeta")
    for field in [field for field, value in metadata.items() if value in (None, "", {}, [])]:
        del metadata[field]
    for field in _STRINGS:
        if not isinstance(metadata.get(field, ""), str):
            raise _wrong_type(served, f"metadata.{field}", metadata[field], "string")
    for field in _STRING_MAPS:
        mapping = metadata.get(field, {})
        if not isinstance(mapping, dict):
            raise _wrong_type(served, f"metadata.{field}", mapping, "map[string]string")
        for key, value in mapping.items():
            if value is None:
                mapping[key] = ""
            elif not isinstance(value, str):
                raise _wrong_type(served, f"metadata.{field}", value, "string")
    finalizers = metadata.get("finalizers", [])
    if not isinstance(finalizers, list) or not all(isinstance(item, str) for item in finalizers):
        raise _wrong_type(served, "metadata.finalizers", finalizers, "[]string")
    for field in ("ownerReferences", "managedFields"):
        entries = metadata.get(field, [])
        if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
            raise _wrong_type(served, f"metadata.{field}", entries, "[]object")
    return metadata


def _wrong_type(served: Served, path: str, value: Any, wanted: str) -> errors.ApiError:
    found = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]
    info = served.info
    return errors.bad_request(
        f'{info.kind} in version "{info.version}" cannot be handled as a {info.kind}: '
        f"json: cannot unmarshal {found} into Go struct field {info.kind}.{path} of type {wanted}"
    )


def generate_name(prefix: str) -> str:
    """`prefix`, shortened so that it stays a label, and five random letters."""
    return prefix[:_LONGEST_BASE] + "".join(secrets.choice(_RANDOM) for _ in range(_RANDOM_LENGTH))


def name_faults(served: Served, metadata: Mapping[str, Any]) -> Iterator[FieldError]:
    """Why such an object cannot have its name, or not have names made from its prefix."""
    prefix = metadata.get("generateName")
    # Events of the core group are older than the rule for prefixes.
    if prefix and (served.info.group, served.info.plural) != ("", "events"):
        begun = f"{prefix[:-2]}a" if len(prefix) > 1 and prefix.endswith("-") else prefix
        if fault := _name_fault(served, begun):
            yield invalid("metadata.generateName", prefix, fault)
    if fault := _name_fault(served, metadata["name"]):
        yield invalid("metadata.name", metadata["name"], fault)


def _name_fault(served: Served, name: str) -> str | None:
    if served.info.group == "rbac.authorization.k8s.io":
        wrong = name in (".", "..") or "/" in name or "%" in name
        return "may not be '.' or '..' nor contain '/' or '%'" if wrong else None
    longest, pattern, rule = 253, _SUBDOMAIN_RE, _SUBDOMAIN_RULE
    if served.storage == NAMESPACES:
        longest, pattern, rule = 63, _LABEL_RE, _LABEL_RULE
    elif served.storage == "services":
        longest, pattern, rule = 63, _SERVICE_RE, _SERVICE_RULE
    if len(name) > longest:
        return f"must be no more than {longest} bytes"
    return None if pattern.fullmatch(name) else rule


def metadata_faults(metadata: Mapping[str, Any], *, namespaced: bool) -> Iterator[FieldError]:
    """Faults of labels, annotations, finalizers and owners."""
    for key, value in metadata.get("labels", {}).items():
        yield from _key_faults("metadata.labels", key)
        if len(value) > 63:
            yield invalid("metadata.labels", value, "must be no more than 63 bytes")
        elif not _LABEL_VALUE_RE.fullmatch(value):
            yield invalid("metadata.labels", value, _LABEL_VALUE_RULE)
    size = 0
    for key, value in metadata.get("annotations", {}).items():
        yield from _key_faults("metadata.annotations", key.lower())
        size += len(key.encode()) + len(value.encode())
    if size > MAX_ANNOTATIONS_BYTES:
        yield too_long("metadata.annotations", MAX_ANNOTATIONS_BYTES)
    finalizers = metadata.get("finalizers", [])
    for index, finalizer in enumerate(finalizers):
        yield from _key_faults(f"metadata.finalizers[{index}]", finalizer)
    if FOREGROUND in finalizers and ORPHAN in finalizers:
        yield invalid("metadata.finalizers", finalizers, f"finalizer {ORPHAN} and {FOREGROUND} cannot be both set")
    yield from _owner_faults(metadata.get("ownerReferences", []))
    if not namespaced and metadata.get("namespace"):
        yield forbidden("metadata.namespace", "not allowed on this type")


def _owner_faults(references: list[dict[str, Any]]) -> Iterator[FieldError]:
    controllers = []
    for index, reference in enumerate(references):
        path = f"metadata.ownerReferences[{index}]"
        for field in ("apiVersion", "kind", "name", "uid"):
            value = reference.get(field)
            if not isinstance(value, str) or not value:
                yield (
                    required(f"{path}.{field}") if not value else invalid(f"{path}.{field}", value, "must be a string")
                )
        if reference.get("controller"):
            controllers.append(str(reference.get("name")))
    if len(controllers) > 1:
        yield invalid(
            "metadata.ownerReferences",
            references,
            "Only one reference can have Controller set to true. Found "
            f'"true" in references for {controllers[0]} and {controllers[1]}',
        )


def _key_faults(path: str, key: str) -> Iterator[FieldError]:
    prefix, slash, name = key.rpartition("/")
    if slash and not (prefix and len(prefix) <= 253 and _SUBDOMAIN_RE.fullmatch(prefix)):
        yield invalid(path, key, "prefix part " + (_SUBDOMAIN_RULE if prefix else "must be non-empty"))
    if not name:
        yield invalid(path, key, "name part must be non-empty")
    elif len(name) > 63:
        yield invalid(path, key, "name part must be no more than 63 bytes")
    elif not _QUALIFIED_NAME_RE.fullmatch(name):
        yield invalid(path, key, _NAME_PART_RULE)
