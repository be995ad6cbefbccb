"""What a request asks for, read from its path and query: `RequestTarget` and `QueryOptions`.

The words are those of Kubernetes' own request info: a path names a group, version, resource, and perhaps a namespace, a
name and a subresource; the HTTP method and the query make a verb of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from devcluster.apiserver import errors

FieldValidation = Literal["Strict", "Warn", "Ignore"]

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False", ""})
_SELF_SUBRESOURCES = frozenset({"status", "finalize"})
_RESOURCE_VERSION = re.compile(r"[0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTarget:
    """`plural` is empty for the discovery document of a group version, `name` for a collection."""

    group: str
    version: str
    plural: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_target(path: str) -> RequestTarget | None:
    """The target of a path below `/api/` or `/apis/`; None when the path has no such shape."""
    parts = path.strip("/").split("/")
    match parts:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    if not all(rest):
        return None
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in _SELF_SUBRESOURCES:
        namespace = rest[1]
        rest = rest[2:]
    match rest:
        case []:
            return RequestTarget(group=group, version=version)
        case [plural]:
            return RequestTarget(group=group, version=version, plural=plural, namespace=namespace)
        case [plural, name]:
            return RequestTarget(group=group, version=version, plural=plural, namespace=namespace, name=name)
        case [plural, name, *sub]:
            return RequestTarget(
                group=group,
                version=version,
                plural=plural,
                namespace=namespace,
                name=name,
                subresource="/".join(sub),
            )
        case _:
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinueToken:
    """Where the next page of a list begins: in the snapshot `snapshot` taken at `resource_version`, after `after`."""

    resource_version: int
    snapshot: str
    after: tuple[str, str]

    def encode(self) -> str:
        content = json.dumps([self.resource_version, self.snapshot, *self.after], separators=(",", ":"))
        return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    @staticmethod
    def decode(token: str) -> ContinueToken:
        try:
            version, snapshot, namespace, name = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        except (ValueError, binascii.Error, TypeError) as error:
            raise errors.bad_request(f"continue key is not valid: {error}") from error
        return ContinueToken(resource_version=int(version), snapshot=str(snapshot), after=(str(namespace), str(name)))


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryOptions:
    """The query of any request. A method's own rules about which may stand together are checked where it is served."""

    watch: bool = False
    label_selector: str = ""
    field_selector: str = ""
    resource_version: str = ""
    resource_version_match: str = ""
    timeout_seconds: float | None = None
    limit: int = 0
    continue_token: str = ""
    allow_watch_bookmarks: bool = False
    send_initial_events: bool | None = None
    dry_run: bool = False
    field_manager: str = ""
    field_validation: FieldValidation = "Warn"
    force: bool = False


def parse_query(query: Mapping[str, str]) -> QueryOptions:
    """Reads the query's parameters. Raises ApiError 400 for a value that is none of its kind."""
    if not query:
        return _DEFAULTS
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise errors.bad_request(
            f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"'
        )
    manager = query.get("fieldManager", "")
    if len(manager) > 128 or not manager.isprintable():
        raise errors.bad_request("fieldManager: Invalid value: must be at most 128 printable characters")
    return QueryOptions(
        watch=read_bool(query, "watch") or False,
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        resource_version=_read_version(query),
        resource_version_match=query.get("resourceVersionMatch", ""),
        timeout_seconds=_read_int(query, "timeoutSeconds"),
        limit=_read_int(query, "limit") or 0,
        continue_token=query.get("continue", ""),
        allow_watch_bookmarks=read_bool(query, "allowWatchBookmarks") or False,
        send_initial_events=read_bool(query, "sendInitialEvents"),
        dry_run=read_dry_run(query.get("dryRun", "")),
        field_manager=manager,
        field_validation=cast("FieldValidation", validation),
        force=read_bool(query, "force") or False,
    )


def read_bool(query: Mapping[str, str], name: str) -> bool | None:
    """A boolean as Go's strconv reads it (`True`, `1`, `t`); None when absent."""
    value = query.get(name)
    if value is None:
        return None
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise errors.bad_request(f'{name}: strconv.ParseBool: parsing "{value}": invalid syntax')


def read_dry_run(value: Any) -> bool:
    """`All` is the only dry run there is."""
    if value in ("", None):
        return False
    if value != "All":
        raise errors.bad_request(f'dryRun: Unsupported value: "{value}": supported values: "All"')
    return True


def _read_int(query: Mapping[str, str], name: str) -> int | None:
    value = query.get(name)
    if not value:
        return None
    try:
        number = int(value)
    except ValueError:
        raise errors.bad_request(f'{name}: strconv.ParseInt: parsing "{value}": invalid syntax') from None
    if number < 0:
        raise errors.bad_request(f"{name}: Invalid value: {number}: must be greater than or equal to 0")
    return number


def _read_version(query: Mapping[str, str]) -> str:
    version = query.get("resourceVersion", "")
    if version and not _RESOURCE_VERSION.fullmatch(version):
        raise errors.bad_request(f'resourceVersion: Invalid value: "{version}": must be a number')
    return version


_DEFAULTS = QueryOptions()
