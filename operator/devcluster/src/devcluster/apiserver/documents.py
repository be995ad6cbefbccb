"""What the server says about itself: version, health, discovery and OpenAPI documents, with ETags.

Documents are made when first asked for and kept until a CRD changes what is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.discovery import AGGREGATED_TYPE, Discovery, wants_aggregated
from devcluster.apiserver.registry import ResourceRegistry
from devcluster.apiserver.storage import encode
from devcluster.machinery.openapi import openapi_document, openapi_index

VERSION = {
    "major": "1",
    "minor": "37",
    "gitVersion": "v1.37.0+devcluster",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "python",
}
_HEALTH = frozenset({"/healthz", "/livez", "/readyz"})
_JSON = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": _JSON})


class Documents:
    """`address` gives host and port of the server, `faults` a line for everything that makes it unhealthy."""

    def __init__(
        self, registry: ResourceRegistry, address: Callable[[], str], faults: Callable[[], Sequence[str]]
    ) -> None:
        self._registry = registry
        self._discovery = Discovery(registry)
        self._address = address
        self._faults = faults
        self._made_for = -1
        self._made: dict[tuple[str, bool], Document] = {}

    def find(self, path: str, accept: str, known_etag: str) -> Document:
        """The document at `path`. Raises ApiError 404; 304 when the client has it already."""
        if path in _HEALTH or path.startswith(tuple(f"{prefix}/" for prefix in _HEALTH)):
            return self._health()
        if self._made_for != self._registry.revision:
            self._made.clear()
            self._made_for = self._registry.revision
        aggregated = path in ("/api", "/apis") and wants_aggregated(accept)
        document = self._made.get((path, aggregated))
        if document is None:
            document = self._made[path, aggregated] = self._make(path, aggregated)
        if known_etag and known_etag == document.headers.get("ETag"):
            return Document(body=b"", status=304, headers={"ETag": known_etag})
        return document

    def _health(self) -> Document:
        faults = self._faults()
        body = "".join(f"{fault}\n" for fault in faults) or "ok"
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return Document(body=body.encode(), status=500 if faults else 200, headers=headers)

    def _make(self, path: str, aggregated: bool) -> Document:
        if aggregated:
            return _document(self._discovery.aggregated(core=path == "/api"), AGGREGATED_TYPE)
        content = self._content(path)
        if content is None:
            raise errors.no_such_path()
        return _document(content, _JSON)

    def _content(self, path: str) -> dict[str, Any] | None:
        match path.strip("/").split("/"):
            case [""]:
                return {"paths": self._paths()}
            case ["version"]:
                return VERSION
            case ["api"]:
                return self._discovery.core_versions(self._address())
            case ["apis"]:
                return self._discovery.group_list()
            case ["apis", group]:
                return self._discovery.group(group)
            case ["api", version]:
                return self._discovery.resource_list("", version)
            case ["apis", group, version]:
                return self._discovery.resource_list(group, version)
            case ["openapi", "v3"]:
                return openapi_index([served.info for served in self._registry.all()])
            case ["openapi", "v3", "api", version]:
                return self._openapi("", version)
            case ["openapi", "v3", "apis", group, version]:
                return self._openapi(group, version)
            case _:
                return None

    def _openapi(self, group: str, version: str) -> dict[str, Any] | None:
        resources = [served.info for served in self._registry.of_group_version(group, version)]
        return openapi_document(group, version, resources) if resources else None

    def _paths(self) -> list[str]:
        versions = [
            f"/apis/{group}/{version}" if group else f"/api/{version}"
            for group, all_versions in self._discovery.groups().items()
            for version in all_versions
        ]
        return sorted(["/api", "/apis", "/healthz", "/livez", "/readyz", "/version", "/openapi/v3", *versions])


def _document(content: dict[str, Any], content_type: str) -> Document:
    body = encode(content)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"'
    headers = {"Content-Type": content_type, "ETag": etag, "Vary": "Accept", "Cache-Control": "no-cache, private"}
    return Document(body=body, headers=headers)
