"""The verbs on resources: what each does with a resource, a name and a body. Called by the dispatcher only.

Subresources branch off here: `status` is a write like any other with its own scope, `scale` and `log` have modules of
their own, and what Kubernetes has but this server has not (exec, port-forward, eviction) is refused by name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.apiserver import errors, logs, scaling
from devcluster.apiserver.bodies import APPLY_PATCH, Body, check_kind, expect_object
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.deleting import Deleter, read_delete_options
from devcluster.apiserver.listing import Lister
from devcluster.apiserver.registry import NAMESPACES, PODS, Served
from devcluster.apiserver.requests import QueryOptions, RequestTarget
from devcluster.apiserver.selection import select
from devcluster.apiserver.storage import encode
from devcluster.apiserver.views import PLAIN, View, choose_view, partial_metadata, table
from devcluster.apiserver.watching import BOOKMARK_SECONDS, WatchRequest, check_watch, watch_stream
from devcluster.apiserver.writing import Writer, WriteTarget, Written, patched

_ABSENT_SUBRESOURCES = frozenset(
    {
        "exec",
        "attach",
        "portforward",
        "proxy",
        "eviction",
        "binding",
        "ephemeralcontainers",
        "resize",
        "token",
        "finalize",
        "approval",
    }
)
UNDELETABLE_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
Query = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole response."""

    body: bytes
    code: int = 200
    warnings: tuple[str, ...] = ()
    content_type: str = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A response that goes on for a while."""

    lines: AsyncGenerator[bytes, None]
    content_type: str = "application/json"


class Operations:
    """`logs_folder` is where the node writes what containers print."""

    def __init__(
        self,
        cluster: Cluster,
        deleter: Deleter,
        *,
        logs_folder: Path,
        bookmark_seconds: float = BOOKMARK_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._deleter = deleter
        self._writer = Writer(cluster, deleter)
        self._lister = Lister(cluster)
        self._logs_folder = logs_folder
        self._bookmark_seconds = bookmark_seconds

    def now(self) -> str:
        return self._cluster.now()

    def find_resource(self, target: RequestTarget) -> Served:
        """The resource of a path, if the path makes sense for it. Raises ApiError 404, 405 or 501."""
        served = self._cluster.registry.lookup(target.group, target.version, target.plural)
        if served is None or (target.namespace and not served.info.namespaced):
            raise errors.no_such_path()
        if target.name and served.info.namespaced and not target.namespace:
            raise errors.no_such_path()
        if target.subresource and target.subresource not in served.info.subresources:
            if target.subresource.partition("/")[0] in _ABSENT_SUBRESOURCES:
                raise errors.not_implemented(f"{target.plural}/{target.subresource}")
            raise errors.no_such_path()
        return served

    def get(self, served: Served, target: RequestTarget, query: Query, accept: str) -> Answer | Stream:
        cluster = self._cluster
        stored = cluster.find(served, target.namespace, target.name)
        match target.subresource:
            case "scale":
                return Answer(body=encode(scaling.scale_of(served, cluster.load(served, stored))))
            case "log":
                return self._logs(stored.load(), query)
        view = choose_view(accept, query)
        if view.form == "object":
            return Answer(body=cluster.render(served, stored))
        return Answer(body=encode(self._viewed(served, cluster.load(served, stored), view)))

    def _viewed(self, served: Served, obj: dict[str, Any], view: View) -> dict[str, Any]:
        match view.form:
            case "object":
                return obj
            case "metadata":
                return partial_metadata(obj)
            case "table":
                metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
                return table(served, [obj], now=self._cluster.clock(), view=view, metadata=metadata)

    def _logs(self, pod: dict[str, Any], query: Query) -> Stream:
        options = logs.read_log_options(pod, query, self._cluster.clock())
        path = logs.log_path(self._logs_folder, pod, options)
        logs.check_log_exists(path, pod, options)
        start = logs.start_offset(path, options)
        uid = pod["metadata"]["uid"]

        def has_ended() -> bool:
            newest = self._cluster.storage.by_uid(uid)
            return newest is None or newest.load().get("status", {}).get("phase") in ("Succeeded", "Failed")

        return Stream(lines=logs.log_stream(path, start, options, has_ended), content_type="text/plain")

    def list(self, served: Served, target: RequestTarget, options: QueryOptions, query: Query, accept: str) -> Answer:
        view = choose_view(accept, query)
        return Answer(body=self._lister.answer(served, target.namespace, options, view))

    def watch(self, served: Served, target: RequestTarget, options: QueryOptions, query: Query, accept: str) -> Stream:
        check_watch(options)
        request = WatchRequest(
            served=served,
            selection=select(self._cluster, served, target.namespace, target.name, options),
            options=options,
            view=choose_view(accept, query),
            bookmark_seconds=self._bookmark_seconds,
        )
        return Stream(lines=watch_stream(self._cluster, request))

    def create(self, served: Served, target: RequestTarget, options: QueryOptions, body: Body, manager: str) -> Answer:
        if target.subresource:
            raise errors.method_not_allowed()
        if served.info.namespaced and not target.namespace:
            raise errors.method_not_allowed()
        write = WriteTarget(served=served, namespace=target.namespace, options=options, manager=manager)
        return self._written(served, self._writer.create(write, body))

    def replace(self, served: Served, target: RequestTarget, options: QueryOptions, body: Body, manager: str) -> Answer:
        write = self._write_target(served, target, options, manager)
        if target.subresource == "scale":
            scale = expect_object(body)
            check_kind(scale, api_version=scaling.API_VERSION, kind=scaling.KIND, implied=True)
            return self._scale(write, scale)
        return self._written(served, self._writer.replace(write, body))

    def patch(
        self, served: Served, target: RequestTarget, options: QueryOptions, kind: str, body: Body, manager: str
    ) -> Answer:
        write = self._write_target(served, target, options, manager)
        if target.subresource != "scale":
            return self._written(served, self._writer.patch(write, kind, body))
        if kind == APPLY_PATCH:
            raise errors.not_implemented("server-side apply on the scale subresource")
        stored = self._cluster.find(served, target.namespace, target.name)
        before = scaling.scale_of(served, self._cluster.load(served, stored))
        # A Scale has no lists, so that a strategic merge patch means what a merge patch means.
        kind = kind if kind == "application/json-patch+json" else "application/merge-patch+json"
        return self._scale(write, patched(served, target.name, before, kind, body))

    def _scale(self, write: WriteTarget, scale: Mapping[str, Any]) -> Answer:
        stored = self._cluster.find(write.served, write.namespace, write.name)
        wanted = scaling.with_scale(write.served, self._cluster.load(write.served, stored), scale)
        written = self._writer.modify(write, wanted)
        return Answer(body=encode(scaling.scale_of(write.served, written.obj)))

    def _write_target(self, served: Served, target: RequestTarget, options: QueryOptions, manager: str) -> WriteTarget:
        if target.subresource == "log":
            raise errors.method_not_allowed()
        return WriteTarget(
            served=served,
            namespace=target.namespace,
            name=target.name,
            subresource=target.subresource,
            options=options,
            manager=manager,
        )

    def _written(self, served: Served, written: Written) -> Answer:
        return Answer(body=encode(written.obj), code=201 if written.created else 200, warnings=written.warnings)

    def delete(self, served: Served, target: RequestTarget, body: Mapping[str, Any] | None, query: Query) -> Answer:
        if target.subresource:
            raise errors.method_not_allowed()
        if served.storage == NAMESPACES and target.name in UNDELETABLE_NAMESPACES:
            raise errors.forbidden("", NAMESPACES, target.name, "this namespace may not be deleted")
        options = read_delete_options(body, query)
        stored = self._cluster.find(served, target.namespace, target.name)
        gone, obj = self._deleter.delete(served, stored, options)
        if gone and served.storage != PODS:
            details = {"name": target.name, "kind": served.info.plural, "uid": stored.uid}
            if served.info.group:
                details["group"] = served.info.group
            return Answer(body=encode(errors.success(details)))
        return Answer(body=encode(self._cluster.from_storage(served, obj)))

    def delete_collection(
        self,
        served: Served,
        target: RequestTarget,
        options: QueryOptions,
        body: Mapping[str, Any] | None,
        query: Query,
    ) -> Answer:
        if served.info.namespaced and not target.namespace:
            raise errors.method_not_allowed()
        chosen = select(self._cluster, served, target.namespace, "", options).objects()
        delete_options = read_delete_options(body, query)
        version = self._cluster.storage.resource_version
        for stored in chosen:
            newest = self._cluster.storage.by_uid(stored.uid)
            if newest is not None:
                self._deleter.delete(served, newest, delete_options)
        return Answer(body=self._lister.render(served, chosen, {"resourceVersion": str(version)}, PLAIN))
