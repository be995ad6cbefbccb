"""Creating, replacing and patching objects: the order in which a real API server takes a write.

Decode and check identity, lay the part that may be written over the stored object, prune and default, fill in what the
server owns, validate, note who owns which field, and store unless nothing changed. Nothing here waits, so a write sees
and replaces one state.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devcluster.apiserver import errors, kinds
from devcluster.apiserver.bodies import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    Body,
    check_kind,
    expect_object,
)
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.deleting import Deleter
from devcluster.apiserver.object_meta import generate_name, metadata_faults, name_faults, tidy_metadata
from devcluster.apiserver.registry import NAMESPACES, Served
from devcluster.apiserver.requests import QueryOptions
from devcluster.apiserver.storage import Stored, encode
from devcluster.machinery import managed_fields
from devcluster.machinery.field_errors import FieldError, forbidden, invalid, required
from devcluster.machinery.go_values import copy_json
from devcluster.machinery.patch import (
    PatchError,
    PatchTestFailed,
    json_patch,
    merge_patch,
    strategic_merge_patch,
)

_GENERATED_NAME_TRIES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteTarget:
    """What is written, and on whose behalf. `name` is empty for a create; `manager` names the field owner."""

    served: Served
    namespace: str
    name: str = ""
    subresource: str = ""
    options: QueryOptions
    manager: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The object as it is now, in the version of the request, and what the client is warned of."""

    obj: dict[str, Any]
    created: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class _Write:
    """One write on its way; `stored` is what it replaces, `old` the same in the request's version."""

    target: WriteTarget
    stored: Stored | None
    old: dict[str, Any] | None
    warnings: list[str] = field(default_factory=list)


class Writer:
    """`deleter` ends an object from which an update has taken the last finalizer."""

    def __init__(self, cluster: Cluster, deleter: Deleter) -> None:
        self._cluster = cluster
        self._deleter = deleter

    def create(self, target: WriteTarget, body: Body) -> Written:
        served = target.served
        obj = expect_object(body)
        check_kind(obj, api_version=served.api_version, kind=served.info.kind, implied=not served.crd)
        write = _Write(target=target, stored=None, old=None)
        self._check_fields(write, obj, body.duplicates)
        return self._create(write, obj, managed=None)

    def replace(self, target: WriteTarget, body: Body) -> Written:
        served = target.served
        obj = expect_object(body)
        check_kind(obj, api_version=served.api_version, kind=served.info.kind, implied=not served.crd)
        stored = self._cluster.find(served, target.namespace, target.name)
        write = _Write(target=target, stored=stored, old=self._cluster.load(served, stored))
        self._check_fields(write, obj, body.duplicates)
        return self._update(write, obj, managed=None)

    def modify(self, target: WriteTarget, obj: dict[str, Any]) -> Written:
        """Replaces an object by one the server itself made from it (the scale subresource)."""
        stored = self._cluster.find(target.served, target.namespace, target.name)
        write = _Write(target=target, stored=stored, old=self._cluster.load(target.served, stored))
        return self._update(write, obj, managed=None)

    def patch(self, target: WriteTarget, kind: str, body: Body) -> Written:
        if kind == APPLY_PATCH:
            return self._apply(target, body)
        served = target.served
        stored = self._cluster.find(served, target.namespace, target.name)
        old = self._cluster.load(served, stored)
        write = _Write(target=target, stored=stored, old=old)
        new = patched(served, target.name, old, kind, body)
        validation = target.options.field_validation
        if validation != "Ignore":
            before = set(served.info.schema.unknown_fields(old))
            faults = [f'duplicate field "{path}"' for path in body.duplicates]
            faults += [fault for fault in served.info.schema.unknown_fields(new) if fault not in before]
            if faults and validation == "Strict":
                content = encode(body.value).decode() if isinstance(body.value, Mapping) else str(body.value)
                detail = f"strict decoding error: {', '.join(faults)}"
                raise errors.invalid("", "", "", [invalid("patch", content, detail)])
            write.warnings.extend(faults)
        return self._update(write, new, managed=None)

    def _apply(self, target: WriteTarget, body: Body) -> Written:
        served, cluster = target.served, self._cluster
        config = expect_object(body)
        if not target.options.field_manager:
            fault = required("fieldManager", "is required for apply patch")
            raise errors.invalid("meta.k8s.io", "PatchOptions", "", [fault])
        check_kind(config, api_version=served.api_version, kind=served.info.kind, implied=False)
        metadata = tidy_metadata(config, served)
        if metadata.get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        metadata.setdefault("name", target.name)
        if served.info.namespaced:
            metadata.setdefault("namespace", target.namespace)
        if unknown := served.info.schema.unknown_fields(config):
            paths = ", ".join(f".{fault.split(chr(34))[1]}: field not declared in schema" for fault in unknown)
            raise self._untyped(target, paths)
        stored = cluster.storage.get(served.storage, target.namespace, target.name)
        if stored is None and (target.subresource or metadata.get("uid")):
            raise errors.not_found(served.info.group, served.info.plural, target.name)
        old = cluster.load(served, stored) if stored is not None else None
        write = _Write(target=target, stored=stored, old=old)
        faults = [f'duplicate field "{path}"' for path in body.duplicates]
        if faults and target.options.field_validation == "Strict":
            raise errors.bad_request(f"strict decoding error: {', '.join(faults)}")
        write.warnings.extend(faults if target.options.field_validation == "Warn" else ())
        try:
            new = managed_fields.apply(
                old,
                config,
                manager=target.options.field_manager,
                force=target.options.force,
                schema=served.info.schema,
                subresource=target.subresource,
                api_version=served.api_version,
                now=cluster.clock(),
                reset_fields=("status",) if served.info.has_status and not target.subresource else (),
            )
        except managed_fields.ApplyConflict as conflict:
            causes = [
                errors.Cause(reason="FieldManagerConflict", message=f"conflict with {manager}", field=path)
                for path, manager in conflict.causes
            ]
            raise errors.apply_conflict(str(conflict), causes) from conflict
        except managed_fields.InvalidApplyConfiguration as error:
            raise self._untyped(target, str(error)) from error
        managed = new["metadata"].pop("managedFields", [])
        if old is None:
            return self._create(write, new, managed=managed)
        return self._update(write, new, managed=managed)

    def _untyped(self, target: WriteTarget, why: str) -> errors.ApiError:
        """An applied configuration that does not fit the schema; a real server gives it no reason either."""
        place = f"{target.namespace}/{target.name}; {target.served.api_version}, Kind={target.served.info.kind}"
        return errors.ApiError(500, "", f"failed to create typed patch object ({place.lstrip('/')}): {why}")

    def _check_fields(self, write: _Write, obj: dict[str, Any], duplicates: Sequence[str]) -> None:
        """Unknown and duplicate fields: refused, warned of or let pass, as the request says."""
        info, validation = write.target.served.info, write.target.options.field_validation
        if validation == "Ignore":
            return
        faults = [f'duplicate field "{path}"' for path in duplicates] + info.schema.unknown_fields(obj)
        if faults and validation == "Strict":
            raise errors.bad_request(
                f'{info.kind} in version "{info.version}" cannot be handled as a {info.kind}: '
                f"strict decoding error: {', '.join(faults)}"
            )
        write.warnings.extend(faults)

    def _create(self, write: _Write, obj: dict[str, Any], *, managed: list[Any] | None) -> Written:
        target, cluster = write.target, self._cluster
        served = target.served
        if served.terminating:
            raise errors.method_not_allowed("create not allowed while custom resource definition is terminating")
        metadata = tidy_metadata(obj, served)
        self._check_namespace(target, metadata)
        if metadata.pop("resourceVersion", ""):
            raise errors.ApiError(500, "", "resourceVersion should not be set on objects to be created")
        self._name(target, metadata)
        for server_owned in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"):
            metadata.pop(server_owned, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = cluster.now()
        if kinds.counts_generations(served):
            metadata["generation"] = 1
        else:
            metadata.pop("generation", None)
        if served.info.has_status and served.storage not in kinds.KEEPS_STATUS_ON_CREATE:
            obj.pop("status", None)
        obj = served.info.schema.default(served.info.schema.prune(obj))
        kinds.prepare_create(served, obj, registry=cluster.registry, now=cluster.clock())
        if refusal := kinds.refuse_admission(served, obj, cluster.storage):
            raise errors.forbidden(served.info.group, served.info.plural, metadata["name"], refusal)
        self._validate(target, obj, None)
        if cluster.storage.get(served.storage, target.namespace, metadata["name"]) is not None:
            raise errors.already_exists(served.info.group, served.info.plural, metadata["name"])
        if managed is None:
            obj = self._record(target, None, obj)
        elif managed:
            obj["metadata"]["managedFields"] = managed
        return self._store(write, obj, created=True)

    def _name(self, target: WriteTarget, metadata: dict[str, Any]) -> None:
        served = target.served
        if not metadata.get("name"):
            prefix = metadata.get("generateName")
            if not prefix:
                fault = required("metadata.name", "name or generateName is required")
                raise errors.invalid(served.info.group, served.info.kind, "", [fault])
            for _ in range(_GENERATED_NAME_TRIES):
                metadata["name"] = generate_name(prefix)
                if self._cluster.storage.get(served.storage, target.namespace, metadata["name"]) is None:
                    break
        elif target.name and metadata["name"] != target.name:
            raise _name_mismatch(metadata["name"], target.name)

    def _check_namespace(self, target: WriteTarget, metadata: dict[str, Any]) -> None:
        served = target.served
        if not served.info.namespaced:
            metadata.pop("namespace", None)
            return
        given = metadata.setdefault("namespace", target.namespace)
        if given != target.namespace:
            raise _namespace_mismatch()
        namespace = self._cluster.storage.get(NAMESPACES, "", target.namespace)
        if namespace is None:
            raise errors.not_found("", NAMESPACES, target.namespace)
        if "deletionTimestamp" in namespace.load()["metadata"]:
            why = f"unable to create new content in namespace {target.namespace} because it is being terminated"
            cause = errors.Cause(
                reason="NamespaceTerminating",
                message=f"namespace {target.namespace} is being terminated",
                field="metadata.namespace",
            )
            name = metadata.get("name", "")
            raise errors.forbidden(served.info.group, served.info.plural, name, why, [cause])

    def _update(self, write: _Write, new: dict[str, Any], *, managed: list[Any] | None) -> Written:
        target, cluster = write.target, self._cluster
        served, stored, old = target.served, write.stored, write.old
        assert stored is not None
        assert old is not None
        metadata = tidy_metadata(new, served)
        self._check_identity(target, metadata, old)
        self._check_version(target, metadata, stored)
        new = _confine(target, new, old)
        if served.info.has_status and not target.subresource:
            new.pop("status", None)
            if "status" in old:
                new["status"] = copy_json(old["status"])
        new = served.info.schema.default(served.info.schema.prune(new))
        if not target.subresource:
            kinds.prepare_update(served, new, old, registry=cluster.registry, now=cluster.clock())
        metadata = new["metadata"]
        given_managed = metadata.pop("managedFields", None)
        if kinds.counts_generations(served):
            metadata["generation"] = old["metadata"].get("generation", 1)
            if kinds.generation_content(served, new) != kinds.generation_content(served, old):
                metadata["generation"] += 1
        self._validate(target, new, old)
        owners = old["metadata"].get("managedFields", [])
        if managed is None and given_managed in (None, owners):
            if _same_content(new, old):
                return Written(obj=old, warnings=tuple(write.warnings))
            given_managed = owners
        if given := managed if managed is not None else given_managed:
            metadata["managedFields"] = given
        if managed is None:
            new = self._record(target, old, new)
        if new == old:
            return Written(obj=old, warnings=tuple(write.warnings))
        return self._store(write, new, created=False)

    def _check_identity(self, target: WriteTarget, metadata: dict[str, Any], old: Mapping[str, Any]) -> None:
        """The name, namespace and uid must be the stored ones; what the server owns stays as it is."""
        served, before = target.served, old["metadata"]
        if metadata.setdefault("name", before["name"]) != before["name"]:
            raise _name_mismatch(metadata["name"], before["name"])
        if not served.info.namespaced:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise _namespace_mismatch()
        uid = metadata.setdefault("uid", before["uid"])
        if uid != before["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {before['uid']}"
            raise errors.conflict(served.info.group, served.info.plural, before["name"], why)
        for owned in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"):
            metadata.pop(owned, None)
            if owned in before:
                metadata[owned] = before[owned]

    def _check_version(self, target: WriteTarget, metadata: dict[str, Any], stored: Stored) -> None:
        served = target.served
        given = metadata.get("resourceVersion", "")
        if given and given != str(stored.resource_version):
            raise errors.conflict(served.info.group, served.info.plural, stored.name)
        if not given and (served.crd or served.storage in _NO_BLIND_UPDATES):
            fault = invalid("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(served.info.group, served.info.kind, stored.name, [fault])
        metadata["resourceVersion"] = str(stored.resource_version)

    def _validate(self, target: WriteTarget, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        served = target.served
        metadata = new["metadata"]
        found: list[FieldError] = []
        if old is None:
            found.extend(name_faults(served, metadata))
        found.extend(metadata_faults(metadata, namespaced=served.info.namespaced))
        if old is not None and "deletionTimestamp" in metadata:
            added = [
                name for name in metadata.get("finalizers", []) if name not in old["metadata"].get("finalizers", [])
            ]
            if added:
                listed = ", ".join(f'"{name}"' for name in added)
                found.append(
                    forbidden(
                        "metadata.finalizers",
                        "no new finalizers can be added if the object is being deleted, "
                        f"found new finalizers []string{{{listed}}}",
                    )
                )
        found.extend(served.info.schema.validate(new, old))
        if not found:
            found.extend(kinds.faults(served, new, old))
        if found:
            raise errors.invalid(served.info.group, served.info.kind, metadata["name"], found)

    def _record(self, target: WriteTarget, old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
        return managed_fields.record_update(
            old,
            new,
            manager=target.manager,
            schema=target.served.info.schema,
            subresource=target.subresource,
            api_version=target.served.api_version,
            now=self._cluster.clock(),
        )

    def _store(self, write: _Write, obj: dict[str, Any], *, created: bool) -> Written:
        target, cluster = write.target, self._cluster
        warnings = tuple(write.warnings)
        if target.options.dry_run:
            return Written(obj=obj, created=created, warnings=warnings)
        storage_form = cluster.to_storage(target.served, obj)
        metadata = obj["metadata"]
        if write.stored is not None and "deletionTimestamp" in metadata:
            self._deleter.settle(write.stored, storage_form)
        else:
            cluster.storage.put(target.served.storage, storage_form)
        metadata["resourceVersion"] = storage_form["metadata"]["resourceVersion"]
        return Written(obj=obj, created=created, warnings=warnings)


_NO_BLIND_UPDATES = frozenset({"leases.coordination.k8s.io"})
_STATUS_METADATA = ("managedFields", "resourceVersion")


def patched(served: Served, name: str, old: dict[str, Any], kind: str, body: Body) -> dict[str, Any]:
    """`old` with a patch on it. Raises ApiError when the patch cannot be applied."""
    try:
        if kind == JSON_PATCH:
            new = json_patch(old, body.value)
        elif kind == MERGE_PATCH:
            new = merge_patch(old, expect_object(body))
        elif served.crd:
            raise errors.unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: "
                f"{JSON_PATCH}, {MERGE_PATCH}, {APPLY_PATCH}"
            )
        else:
            assert kind == STRATEGIC_PATCH
            new = strategic_merge_patch(old, expect_object(body), served.info.schema)
    except (PatchTestFailed, PatchError) as error:
        if kind == JSON_PATCH:
            message = f"the server rejected our request due to an error in our request: {error}"
            raise errors.ApiError(422, "Invalid", message) from error
        raise errors.bad_request(str(error)) from error
    if not isinstance(new, dict):
        raise errors.bad_request("the patch would make something else of the object")
    return new


def _confine(target: WriteTarget, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """A write to the status subresource changes nothing but the status."""
    if target.subresource != "status":
        return new
    confined = copy_json({key: value for key, value in old.items() if key != "status"})
    for kept in _STATUS_METADATA:
        confined["metadata"].pop(kept, None)
        if kept in new["metadata"]:
            confined["metadata"][kept] = new["metadata"][kept]
    if "status" in new:
        confined["status"] = new["status"]
    result: dict[str, Any] = confined
    return result


def _same_content(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Equality but for who owns what."""
    if any(new.get(key) != old.get(key) for key in new.keys() | old.keys() if key != "metadata"):
        return False
    left = {key: value for key, value in new["metadata"].items() if key != "managedFields"}
    right = {key: value for key, value in old["metadata"].items() if key != "managedFields"}
    return left == right


def _name_mismatch(given: str, wanted: str) -> errors.ApiError:
    return errors.bad_request(f"the name of the object ({given}) does not match the name on the URL ({wanted})")


def _namespace_mismatch() -> errors.ApiError:
    return errors.bad_request("the namespace of the provided object does not match the namespace sent on the request")
