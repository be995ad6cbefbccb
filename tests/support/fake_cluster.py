"""The operator's client on an API server in memory, for tests of decisions.

Everything above the connection is the real client. What answers it keeps to the rules of a real API server as far as
the operator can meet them; `tests/integration/controller/test_cluster_contract.py` runs against both.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast
from uuid import uuid4

from kubernetes.aio.client import ApiClient

from devcluster.machinery import managed_fields
from devcluster.machinery.field_errors import FieldError, describe_invalid
from devcluster.machinery.patch import PatchError, json_patch, merge_patch
from devcluster.machinery.resources import ResourceInfo
from devcluster.machinery.selectors import parse_label_selector
from support.definitions import builtin, project_kind
from tasker.controller.kube import client
from tasker.controller.kube.client import Cluster, Manifest, Resource
from tasker.controller.kube.events import CORE_EVENT

NOW = datetime(2031, 1, 1, tzinfo=UTC)
SERVED = [each for each in vars(client).values() if isinstance(each, Resource)] + [CORE_EVENT]

Answer = tuple[int, Mapping[str, str], bytes]
Place = tuple[str, str | None, str]
"""Kind, namespace and name of an object."""


class Refused(Exception):
    """The server does not do what was asked, and answers with a Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def answer(self) -> Answer:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "reason": self.reason}
        status |= {"message": self.message, "details": self.details}
        return self.code, {}, json.dumps(status).encode()


@dataclass(kw_only=True)
class Fault:
    """The next so many requests of that verb (get, list, create, patch, delete) and kind are answered so."""

    verb: str
    kind: str
    code: int
    reason: str
    retry_after: int | None = None
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a path names."""

    resource: Resource
    namespace: str | None
    name: str
    is_status: bool

    @property
    def place(self) -> Place:
        return self.resource.kind, self.namespace, self.name

    @property
    def qualified(self) -> str:
        return f"{self.resource.plural}.{self.resource.group}" if self.resource.group else self.resource.plural

    def not_found(self) -> Refused:
        return Refused(404, "NotFound", f'{self.qualified} "{self.name}" not found', name=self.name)

    def conflict(self, why: str) -> Refused:
        message = f'Operation cannot be fulfilled on {self.qualified} "{self.name}": {why}'
        return Refused(409, "Conflict", message, name=self.name)


class FakeCluster(Cluster):
    """Objects by kind, namespace and name. Its tests arrange what a person does with `store` and `remove`.

    `calls` are the writes: apply, merge, status, create or delete, with the object's kind and name. `meanwhile` is
    called after each request has been carried out and before it is answered, with its verb and kind.
    """

    def __init__(self) -> None:
        super().__init__(cast("ApiClient", None))
        self.objects: dict[Place, Manifest] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.meanwhile: Callable[[str, str], None] = lambda verb, kind: None
        self._lists: dict[str, list[Manifest]] = {}
        self._version = 0
        self._tokens = itertools.count(1)
        self.store({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})

    def store(self, manifest: Mapping[str, Any]) -> Manifest:
        """Somebody has written the object, and nobody has asked whether it is valid; the stored one, with defaults."""
        metadata = manifest["metadata"]
        place = (manifest["kind"], metadata.get("namespace"), metadata["name"])
        known = self.objects.get(place)
        stored = deepcopy(dict(manifest))
        if (info := _OURS.get(manifest["kind"])) is not None:
            stored = info.schema.default(stored)
        kept: dict[str, Any] = known["metadata"] if known is not None else {"uid": str(uuid4()), "generation": 1}
        changed = known is not None and known.get("spec") != stored.get("spec")
        stored["metadata"] = {
            "creationTimestamp": "2031-01-01T00:00:00Z",
            "uid": kept["uid"],
            **stored["metadata"],
            "generation": kept.get("generation", 1) + (1 if changed else 0),
            "resourceVersion": self._next_version(),
        }
        if known is not None and "status" in known and "status" not in manifest:
            stored["status"] = known["status"]
        self.objects[place] = stored
        return deepcopy(stored)

    def remove(self, kind: str, namespace: str | None, name: str) -> Manifest:
        """A person has deleted the object; its last state, as a DELETED event gives it."""
        last = self.objects.pop((kind, namespace, name))
        return {**last, "metadata": {**last["metadata"], "resourceVersion": self._next_version()}}

    def forget_lists(self) -> None:
        """Lists that are being read cannot be read to their end."""
        self._lists.clear()

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    async def _send(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str) -> Answer:
        target = _target(path)
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method, "get" if target.name else "list")
        sent = json.loads(json.dumps(body))
        try:
            self._fail(verb, target)
            found = self._serve(verb, target, query, sent, content_type)
        except Refused as refused:
            return refused.answer()
        data = json.dumps(found).encode()
        self.meanwhile(verb, target.resource.kind)
        return 200, {}, data

    def _fail(self, verb: str, target: Target) -> None:
        for fault in self.faults:
            if fault.count and (fault.verb, fault.kind) == (verb, target.resource.kind):
                fault.count -= 1
                details = {} if fault.retry_after is None else {"retryAfterSeconds": fault.retry_after}
                raise Refused(fault.code, fault.reason, "injected", **details)

    def _serve(self, verb: str, target: Target, query: Mapping[str, str], body: Any, content_type: str) -> Manifest:
        kind = target.resource.kind
        match verb:
            case "get":
                return self._find(target)
            case "list":
                return self._list(target, query)
            case "create":
                self.calls.append(("create", kind, body["metadata"]["name"]))
                return self._create(target, body, query["fieldManager"])
            case "delete":
                self.calls.append(("delete", kind, target.name))
                return self._delete(target, body)
        if content_type == "application/apply-patch+yaml":
            self.calls.append(("apply", kind, target.name))
            return self._apply(target, body, query)
        self.calls.append(("status" if target.is_status else "merge", kind, target.name))
        old = self._find(target)
        try:
            new = merge_patch(old, body) if content_type == "application/merge-patch+json" else json_patch(old, body)
        except PatchError as error:
            code, reason = (422, "Invalid") if content_type == "application/json-patch+json" else (400, "BadRequest")
            raise Refused(code, reason, str(error)) from error
        return self._update(target, old, new, query["fieldManager"])

    def _find(self, target: Target) -> Manifest:
        found = self.objects.get(target.place)
        if found is None:
            raise target.not_found()
        return deepcopy(found)

    def _list(self, target: Target, query: Mapping[str, str]) -> Manifest:
        """A page of the state in which the list was begun."""
        token, _, start = query.get("continue", "").partition(":")
        if token and token not in self._lists:
            raise Refused(410, "Expired", "The provided continue parameter is too old")
        if not token:
            token = f"{next(self._tokens)}@{self._version}"
            self._lists[token] = self._select(target, query.get("labelSelector", ""))
        objects, first, limit = self._lists[token], int(start or 0), int(query["limit"])
        metadata = {"resourceVersion": token.partition("@")[2]}
        if first + limit < len(objects):
            metadata["continue"] = f"{token}:{first + limit}"
        kind = f"{target.resource.kind}List"
        api_version, items = target.resource.api_version, objects[first : first + limit]
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "items": items}

    def _select(self, target: Target, label_selector: str) -> list[Manifest]:
        selector = parse_label_selector(label_selector)
        return [
            deepcopy(manifest)
            for (kind, namespace, _), manifest in sorted(
                self.objects.items(), key=lambda item: (item[0][1] or "", item[0][2])
            )
            if kind == target.resource.kind
            and target.namespace in (None, namespace)
            and selector.matches(manifest["metadata"].get("labels") or {})
        ]

    def _create(self, target: Target, body: Manifest, manager: str, managed: Manifest | None = None) -> Manifest:
        resource, name = target.resource, body["metadata"]["name"]
        target = Target(resource=resource, namespace=target.namespace, name=name, is_status=False)
        if target.namespace is not None and ("Namespace", None, target.namespace) not in self.objects:
            message = f'namespaces "{target.namespace}" not found'
            raise Refused(404, "NotFound", message, name=target.namespace, kind="namespaces")
        if target.place in self.objects:
            raise Refused(409, "AlreadyExists", f'{target.qualified} "{name}" already exists', name=name)
        info = _info(resource)
        made = deepcopy(managed if managed is not None else body)
        made["metadata"] |= {"uid": str(uuid4()), "creationTimestamp": "2031-01-01T00:00:00Z", "generation": 1}
        if "status" in info.subresources:
            made.pop("status", None)
        made = info.schema.default(info.schema.prune(made))
        self._validate(target, made, None)
        if managed is None:
            made = managed_fields.record_update(
                None, made, manager=manager, schema=info.schema, api_version=resource.api_version, now=NOW
            )
        return self._keep(target, made)

    def _apply(self, target: Target, body: Manifest, query: Mapping[str, str]) -> Manifest:
        old = self.objects.get(target.place)
        if old is None and body["metadata"].get("uid"):
            raise target.not_found()
        info = _info(target.resource)
        try:
            new = managed_fields.apply(
                old,
                body,
                manager=query["fieldManager"],
                force=query["force"] == "true",
                schema=info.schema,
                api_version=target.resource.api_version,
                now=NOW,
                reset_fields=("status",) if "status" in info.subresources else (),
            )
        except managed_fields.ApplyConflict as conflict:
            raise Refused(409, "Conflict", str(conflict)) from conflict
        if old is None:
            return self._create(target, body, query["fieldManager"], managed=new)
        return self._update(target, old, new, None)

    def _update(self, target: Target, old: Manifest, new: Manifest, manager: str | None) -> Manifest:
        """`manager` None: `new` says already who owns what."""
        info, metadata = _info(target.resource), new["metadata"]
        if metadata.get("resourceVersion", old["metadata"]["resourceVersion"]) != old["metadata"]["resourceVersion"]:
            raise target.conflict("the object has been modified; please apply your changes to the latest version")
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise target.conflict("Precondition failed: UID in precondition")
        if target.is_status:
            new = {**old, "status": new.get("status")}
        elif "status" in info.subresources:
            new = {**new, "status": old.get("status")}
        new = {name: value for name, value in new.items() if value is not None}
        owned = {name: old["metadata"][name] for name in _SERVER_OWNED if name in old["metadata"]}
        new["metadata"] = {**new["metadata"], **owned}
        new = info.schema.default(info.schema.prune(new))
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        self._validate(target, new, old)
        if manager is not None:
            new = managed_fields.record_update(
                old,
                new,
                manager=manager,
                schema=info.schema,
                api_version=target.resource.api_version,
                now=NOW,
                subresource="status" if target.is_status else "",
            )
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            return self.remove(*target.place)
        return old if new == old else self._keep(target, new)

    def _keep(self, target: Target, manifest: Manifest) -> Manifest:
        manifest["metadata"]["resourceVersion"] = self._next_version()
        self.objects[target.place] = manifest
        return manifest

    def _validate(self, target: Target, new: Manifest, old: Manifest | None) -> None:
        """Refuses what is invalid, but for what `store` has let in."""
        schema = _info(target.resource).schema
        faults: list[FieldError] = schema.validate(new, old)
        if faults and old is not None:
            known = schema.validate(old, old)
            faults = [fault for fault in faults if fault not in known]
        if faults:
            group, kind = target.resource.group, target.resource.kind
            message, causes = describe_invalid(group=group, kind=kind, name=target.name, errors=faults)
            raise Refused(422, "Invalid", message, name=target.name, causes=causes)

    def _delete(self, target: Target, options: Mapping[str, Any]) -> Manifest:
        found = self._find(target)
        metadata, uid = found["metadata"], (options.get("preconditions") or {}).get("uid")
        if uid is not None and uid != metadata["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {metadata['uid']}"
            raise target.conflict(why)
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", "2031-01-01T00:00:00Z")
            return self._keep(target, found)
        self.remove(*target.place)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}


_OURS = {each.kind: project_kind(each.kind) for each in (client.TASK_TEMPLATE, client.TASK, client.WORKER_POOL)}
_SERVER_OWNED = ("uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion")


def _target(path: str) -> Target:
    parts = path.strip("/").split("/")
    group, rest = ("", parts[1:]) if parts[0] == "api" else (parts[1], parts[2:])
    version, rest = rest[0], rest[1:]
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    for resource in SERVED:
        if (resource.group, resource.version, resource.plural) == (group, version, plural):
            return Target(resource=resource, namespace=namespace, name=name, is_status=subresource == "status")
    raise AssertionError(f"the operator knows no {path}")


@cache
def _info(resource: Resource) -> ResourceInfo:
    return _OURS[resource.kind] if resource.kind in _OURS else builtin(resource.kind, resource.group)
