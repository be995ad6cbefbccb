"""Watches: a stream of events from a resourceVersion on, with bookmarks, selectors and tables.

`watch_stream` yields the JSON lines of one watch; the dispatcher writes them to the client. A selector makes its own
events: an object that begins to match is ADDED, one that ceases to is DELETED.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.registry import Served
from devcluster.apiserver.requests import QueryOptions
from devcluster.apiserver.selection import Selection
from devcluster.apiserver.storage import Change, ChangeKind, Compacted, Stored, encode
from devcluster.apiserver.views import View, partial_metadata, table

BOOKMARK_SECONDS = 30.0
MIN_TIMEOUT_SECONDS = 1800.0
MAX_WAITING = 20_000
"""A client that lets more events than this pile up is cut off, and lists again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchRequest:
    served: Served
    selection: Selection
    options: QueryOptions
    view: View
    bookmark_seconds: float = BOOKMARK_SECONDS


@dataclass(kw_only=True, slots=True)
class _Feed:
    """The changes that a watch has not sent yet."""

    waiting: deque[Change] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    overrun: bool = False

    def hear(self, change: Change) -> None:
        if len(self.waiting) >= MAX_WAITING:
            self.overrun = True
        else:
            self.waiting.append(change)
        self.arrived.set()


def check_watch(options: QueryOptions) -> None:
    """Raises ApiError for options that contradict each other."""
    match = options.resource_version_match
    faults = []
    if options.send_initial_events is None and match:
        faults.append(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
            "provided"
        )
    if options.send_initial_events is not None and match != "NotOlderThan":
        faults.append(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    if faults:
        raise errors.ApiError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {faults[0]}')


async def watch_stream(cluster: Cluster, request: WatchRequest) -> AsyncGenerator[bytes, None]:
    """The lines of a watch until its time is over. The options have been checked by `check_watch`."""
    feed = _Feed()
    # From here to the first wait nothing else runs: what is not in the beginning comes through the feed.
    unsubscribe = cluster.storage.subscribe(request.served.storage, feed.hear)
    try:
        writer = _EventWriter(cluster, request)
        try:
            for line in _beginning(cluster, request, writer):
                yield line
        except Compacted as error:
            yield writer.error(errors.expired(str(error)))
            return
        async for line in _follow(cluster, request, feed, writer):
            yield line
    finally:
        unsubscribe()


def _beginning(cluster: Cluster, request: WatchRequest, writer: _EventWriter) -> Iterable[bytes]:
    """What is sent at once: the objects that are there, or the changes since the resourceVersion."""
    options = request.options
    version = int(options.resource_version or 0)
    newest = cluster.storage.resource_version
    if options.send_initial_events or (not version and options.send_initial_events is None):
        lines = [writer.event(ChangeKind.ADDED, stored) for stored in request.selection.objects()]
        if options.send_initial_events and options.allow_watch_bookmarks:
            lines.append(writer.bookmark(newest, initial_events_end=True))
        return lines
    if not version:
        return []
    changes = cluster.storage.changes_since(request.served.storage, version)
    return [line for change in changes if (line := writer.change(change)) is not None]


async def _follow(
    cluster: Cluster, request: WatchRequest, feed: _Feed, writer: _EventWriter
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    timeout = request.options.timeout_seconds
    if timeout is None:
        timeout = MIN_TIMEOUT_SECONDS * (1 + random.random())  # noqa: S311 - spreads reconnections, no secret
    ends_at = loop.time() + timeout
    bookmark_at = loop.time() + request.bookmark_seconds
    info = request.served.info
    while not feed.overrun and cluster.registry.lookup(info.group, info.version, info.plural) is not None:
        feed.arrived.clear()
        while feed.waiting:
            change = feed.waiting.popleft()
            if (line := writer.change(change)) is not None:
                yield line
        now = loop.time()
        if now >= ends_at:
            if request.options.allow_watch_bookmarks:
                yield writer.bookmark(cluster.storage.resource_version)
            return
        if now >= bookmark_at:
            bookmark_at = now + request.bookmark_seconds
            if request.options.allow_watch_bookmarks:
                yield writer.bookmark(cluster.storage.resource_version)
                continue
        try:
            await asyncio.wait_for(feed.arrived.wait(), max(min(ends_at, bookmark_at) - now, 0))
        except TimeoutError:
            continue


class _EventWriter:
    """Makes the lines of one watch."""

    def __init__(self, cluster: Cluster, request: WatchRequest) -> None:
        self._cluster = cluster
        self._served = request.served
        self._view = request.view
        self._selection = request.selection
        self._sent_columns = False

    def change(self, change: Change) -> bytes | None:
        """The event for a change as this watch's selection sees it; None when it does not see it."""
        if change.kind is ChangeKind.DELETED:
            matched = change.old is not None and self._selection.matches(change.old)
            return self.event(ChangeKind.DELETED, change.new) if matched else None
        matches = self._selection.matches(change.new)
        matched = change.old is not None and self._selection.matches(change.old)
        if matches:
            return self.event(ChangeKind.MODIFIED if matched else ChangeKind.ADDED, change.new)
        if matched:
            return self._left(change)
        return None

    def _left(self, change: Change) -> bytes:
        """DELETED for an object that no longer matches: its last matching state, with the change's resourceVersion."""
        assert change.old is not None
        obj = self._cluster.load(self._served, change.old)
        obj["metadata"]["resourceVersion"] = str(change.new.resource_version)
        return self._line(ChangeKind.DELETED, encode(self._form(obj)))

    def event(self, kind: ChangeKind, stored: Stored) -> bytes:
        if self._view.form == "object":
            return self._line(kind, self._cluster.render(self._served, stored))
        return self._line(kind, encode(self._form(self._cluster.load(self._served, stored))))

    def bookmark(self, version: int, *, initial_events_end: bool = False) -> bytes:
        """Tells the client how far it has got."""
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if initial_events_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj: dict[str, Any]
        match self._view.form:
            case "object":
                obj = {"kind": self._served.info.kind, "apiVersion": self._served.api_version, "metadata": metadata}
            case "table":
                obj = table(
                    self._served, [], now=self._cluster.clock(), view=self._view, metadata=metadata, with_columns=False
                )
                obj["rows"] = [{"cells": [], "object": partial_metadata({"metadata": metadata})}]
            case "metadata":
                obj = partial_metadata({"metadata": metadata})
        return self._line("BOOKMARK", encode(obj))

    def error(self, error: errors.ApiError) -> bytes:
        return self._line("ERROR", encode(error.status()))

    def _form(self, obj: dict[str, Any]) -> dict[str, Any]:
        match self._view.form:
            case "object":
                return obj
            case "metadata":
                return partial_metadata(obj)
            case "table":
                metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
                first, self._sent_columns = not self._sent_columns, True
                return table(
                    self._served,
                    [obj],
                    now=self._cluster.clock(),
                    view=self._view,
                    metadata=metadata,
                    with_columns=first,
                )

    def _line(self, kind: str, obj: bytes) -> bytes:
        return b'{"type":"' + kind.encode() + b'","object":' + obj + b"}\n"
