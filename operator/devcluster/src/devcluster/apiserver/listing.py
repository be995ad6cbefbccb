"""Lists, whole or page by page.

A page after the first comes from the same snapshot as the first: objects are immutable once stored, so a snapshot is a
list of references, kept for a while under a random id that the continue token carries.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.registry import Served
from devcluster.apiserver.requests import ContinueToken, QueryOptions
from devcluster.apiserver.selection import Selection, select
from devcluster.apiserver.storage import Stored, encode
from devcluster.apiserver.views import View, metadata_list, table

SNAPSHOT_LIFETIME = timedelta(minutes=5)
MAX_SNAPSHOTS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Snapshot:
    resource_version: int
    objects: tuple[Stored, ...]
    taken_at: datetime


class Lister:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()

    def answer(self, served: Served, namespace: str, options: QueryOptions, view: View) -> bytes:
        """The list as JSON in the form of `view`."""
        self._check(options)
        selection = select(self._cluster, served, namespace, "", options)
        objects, metadata = self._page(selection, options)
        return self.render(served, objects, metadata, view)

    def render(self, served: Served, objects: list[Stored], metadata: Mapping[str, Any], view: View) -> bytes:
        cluster = self._cluster
        match view.form:
            case "object":
                head = {"kind": served.info.list_kind, "apiVersion": served.api_version, "metadata": metadata}
                items = b",".join(cluster.render(served, stored) for stored in objects)
                return encode(head)[:-1] + b',"items":[' + items + b"]}"
            case "table":
                loaded = [cluster.load(served, stored) for stored in objects]
                return encode(table(served, loaded, now=cluster.clock(), view=view, metadata=metadata))
            case "metadata":
                return encode(metadata_list((stored.load() for stored in objects), metadata))

    def _page(self, selection: Selection, options: QueryOptions) -> tuple[list[Stored], dict[str, Any]]:
        if options.continue_token:
            return self._next_page(selection, options)
        objects, version = selection.objects(), self._cluster.storage.resource_version
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if options.limit and len(objects) > options.limit:
            snapshot = _Snapshot(resource_version=version, objects=tuple(objects), taken_at=self._cluster.clock())
            identity = self._keep(snapshot)
            return self._cut(objects, options.limit, version, identity, metadata, selection)
        return objects, metadata

    def _next_page(self, selection: Selection, options: QueryOptions) -> tuple[list[Stored], dict[str, Any]]:
        token = ContinueToken.decode(options.continue_token)
        self._forget_old()
        snapshot = self._snapshots.get(token.snapshot)
        if snapshot is None:
            newest = self._cluster.storage.resource_version
            if token.snapshot == "":  # the client accepted to go on in the newest state
                left = [stored for stored in selection.objects() if stored.key > token.after]
                snapshot = _Snapshot(resource_version=newest, objects=tuple(left), taken_at=self._cluster.clock())
                token = ContinueToken(resource_version=newest, snapshot=self._keep(snapshot), after=token.after)
            else:
                inconsistent = ContinueToken(resource_version=newest, snapshot="", after=token.after)
                raise errors.expired(
                    "The provided continue parameter is too old to display a consistent list result: start a new list, "
                    "or take the rest as it is now with the continue token of this response.",
                    continue_token=inconsistent.encode(),
                )
        left = [stored for stored in snapshot.objects if stored.key > token.after]
        version = snapshot.resource_version
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if options.limit and len(left) > options.limit:
            return self._cut(left, options.limit, version, token.snapshot, metadata, selection)
        return left, metadata

    def _cut(
        self,
        objects: list[Stored],
        limit: int,
        version: int,
        snapshot: str,
        metadata: dict[str, Any],
        selection: Selection,
    ) -> tuple[list[Stored], dict[str, Any]]:
        page = objects[:limit]
        token = ContinueToken(resource_version=version, snapshot=snapshot, after=page[-1].key)
        metadata["continue"] = token.encode()
        if selection.selects_all:
            metadata["remainingItemCount"] = len(objects) - limit
        return page, metadata

    def _keep(self, snapshot: _Snapshot) -> str:
        identity = secrets.token_urlsafe(9)
        self._snapshots[identity] = snapshot
        self._forget_old()
        return identity

    def _forget_old(self) -> None:
        before = self._cluster.clock() - SNAPSHOT_LIFETIME
        while self._snapshots:
            oldest = next(iter(self._snapshots.values()))
            if oldest.taken_at >= before and len(self._snapshots) <= MAX_SNAPSHOTS:
                break
            self._snapshots.popitem(last=False)

    def _check(self, options: QueryOptions) -> None:
        version, match = options.resource_version, options.resource_version_match
        if options.send_initial_events is not None:
            raise _invalid_options("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")
        if match and match not in ("Exact", "NotOlderThan"):
            raise _invalid_options(
                f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
            )
        if match and not version:
            raise _invalid_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        if match and options.continue_token:
            raise _invalid_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
            )
        if version and version != "0" and options.continue_token:
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        newest = self._cluster.storage.resource_version
        if version and int(version) > newest:
            raise too_large_version(int(version), newest)
        if match == "Exact" and version == "0":
            raise _invalid_options(
                'resourceVersionMatch: Forbidden: resourceVersionMatch "Exact" is forbidden for resourceVersion "0"'
            )
        if match == "Exact" and int(version) != newest:
            raise errors.expired(f"The resourceVersion for the provided list is too old: {version}")


def _invalid_options(message: str) -> errors.ApiError:
    return errors.ApiError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {message}')


def too_large_version(asked: int, newest: int) -> errors.ApiError:
    """504: the server has not got that far; the client should ask again."""
    return errors.ApiError(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {newest}",
        details={
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
        headers={"Retry-After": "1"},
    )
