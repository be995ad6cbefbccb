"""One suite for the operator's client on a real API server and on the one in memory that tests of decisions use.

What the fake lets pass here and the real one refuses would hide a fault of the operator's from every other test.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from support.apiserver import REPOSITORY, Api, RunningApiServer, api_server
from support.controller_fakes import pool, task
from support.fake_cluster import FakeCluster, Fault
from tasker.controller.kube.access import client_configuration
from tasker.controller.kube.client import (
    CONFIG_MAP,
    LIST_CHUNK,
    NAMESPACE,
    TASK,
    WORKER_POOL,
    Cluster,
    ClusterError,
    Manifest,
    Resource,
)
from tasker.controller.kube.events import CORE_EVENT, Reason, render_event
from tasker.controller.kube.status_writer import StatusWriter
from tasker.controller.runtime.metrics import OperatorMetrics

SNAPSHOTS = 64
"""So many lists the embedded API server keeps for those who read them page by page."""
REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass
class Subject:
    """A client, the namespace of the test, and the switches of the server behind it."""

    cluster: Cluster
    namespace: str
    api: Api | None = None
    told: list[Manifest] = field(default_factory=list)

    async def refuse(self, verb: str, resource: Resource, code: int, *, retry_after: int | None = None) -> None:
        """The next request of that kind is answered with an error."""
        if isinstance(self.cluster, FakeCluster):
            fault = Fault(verb=verb, kind=resource.kind, code=code, reason=REASONS[code], retry_after=retry_after)
            self.cluster.faults.append(fault)
            return
        qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        rule = {"action": "error", "verb": verb, "resource": qualified, "status": code, "count": 1}
        if retry_after is not None:
            rule["retryAfterSeconds"] = retry_after
        assert self.api is not None
        assert self.api.request("PUT", "/debug/faults", {"rules": [rule]}).code == 200

    async def forget_lists(self, resource: Resource) -> None:
        """What is being read page by page cannot be read on."""
        if isinstance(self.cluster, FakeCluster):
            self.cluster.forget_lists()
            return
        for _ in range(SNAPSHOTS + 1):
            await self.cluster._request("GET", resource.path(self.namespace), query={"limit": "1"})

    async def apply_as(self, manager: str, resource: Resource, manifest: Manifest) -> Manifest:
        """Somebody else's server-side apply."""
        return await self.cluster._request(
            "PATCH",
            resource.path(self.namespace, manifest["metadata"]["name"]),
            query={"fieldManager": manager, "force": "true"},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    def config_map(self, name: str, **data: str) -> Manifest:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    def task(self, name: str = "t", **spec: Any) -> Manifest:
        made = task(name, **spec)
        return {**made, "metadata": {"name": name, "namespace": self.namespace}}

    def pool(self, name: str = "p", **spec: Any) -> Manifest:
        made = pool(name, **spec)
        return {**made, "metadata": {"name": name, "namespace": self.namespace}}

    async def make_config_maps(self, *names: str) -> None:
        gate = asyncio.Semaphore(16)

        async def make(name: str) -> None:
            async with gate:
                await self.cluster.create(CONFIG_MAP, self.config_map(name))

        await asyncio.gather(*(make(name) for name in names))

    async def delete(self, resource: Resource, manifest: Manifest) -> bool:
        name, uid = manifest["metadata"]["name"], manifest["metadata"]["uid"]
        return await self.cluster.delete(resource, self.namespace, name, uid=uid)

    async def read(self, resource: Resource, name: str) -> Manifest:
        found = await self.cluster.get(resource, self.namespace, name)
        assert found is not None
        return found

    def statuses(self) -> StatusWriter:
        """Writes statuses; `told` gets the newest object after each write or conflict."""
        return StatusWriter(self.cluster, OperatorMetrics(), newest=lambda _, manifest: self.told.append(manifest))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        running.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
        yield running


@pytest.fixture(params=["embedded", "fake"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    if request.param == "fake":
        fake = FakeCluster()
        await fake.create(NAMESPACE, made)
        yield Subject(fake, namespace)
        return
    server: RunningApiServer = request.getfixturevalue("server")
    cluster = await Cluster.connect(await client_configuration({"KUBECONFIG": str(server.kubeconfig)}))
    try:
        await cluster.create(NAMESPACE, made)
        yield Subject(cluster, namespace, server.api)
    finally:
        await cluster.close()
        server.api.request("DELETE", "/debug/faults")


async def names(subject: Subject, *, label_selector: str = "") -> list[str]:
    listing = subject.cluster.list(CONFIG_MAP, subject.namespace, label_selector=label_selector)
    return [manifest["metadata"]["name"] async for manifest in listing]


async def test_a_list_of_several_pages_is_whole_and_shows_one_state(subject: Subject) -> None:
    made = [f"c{number:04}" for number in range(1200)]
    await subject.make_config_maps(*made)
    assert await names(subject) == made

    listing = subject.cluster.list(CONFIG_MAP, subject.namespace)
    listed: list[str] = []
    async for manifest in listing:
        listed.append(manifest["metadata"]["name"])
        if len(listed) == 1:
            # Behind the first page: one that comes, and one that goes.
            await subject.make_config_maps("c0900-new")
            await subject.delete(CONFIG_MAP, await subject.read(CONFIG_MAP, "c0901"))
    assert listed == made
    late = await subject.read(CONFIG_MAP, "c0900-new")
    assert int(listing.version) < int(late["metadata"]["resourceVersion"])
    assert await names(subject) == sorted({*made, "c0900-new"} - {"c0901"})


async def test_a_list_whose_rest_was_forgotten_is_begun_again(subject: Subject) -> None:
    made = [f"c{number:04}" for number in range(LIST_CHUNK + 1)]
    await subject.make_config_maps(*made)
    listed = []
    async for manifest in subject.cluster.list(CONFIG_MAP, subject.namespace):
        listed.append(manifest["metadata"]["name"])
        if len(listed) == 1:
            await subject.forget_lists(CONFIG_MAP)
    assert listed == [*made[:LIST_CHUNK], *made]


@pytest.mark.parametrize("code", [429, 500])
async def test_a_list_that_breaks_off_fails(subject: Subject, code: int) -> None:
    await subject.make_config_maps(*(f"c{number:04}" for number in range(LIST_CHUNK + 1)))
    listed: list[Manifest] = []

    async def read() -> None:
        async for manifest in subject.cluster.list(CONFIG_MAP, subject.namespace):
            listed.append(manifest)
            if len(listed) == 1:
                await subject.refuse("list", CONFIG_MAP, code)

    with pytest.raises(ClusterError) as failed:
        await read()
    assert failed.value.status == code
    assert len(listed) == LIST_CHUNK


async def test_an_empty_list_has_a_version_and_items_say_what_they_are(subject: Subject) -> None:
    listing = subject.cluster.list(CONFIG_MAP, subject.namespace)
    assert [each async for each in listing] == []
    assert listing.version
    await subject.make_config_maps("a")
    [found] = [each async for each in subject.cluster.list(CONFIG_MAP, subject.namespace)]
    assert (found["apiVersion"], found["kind"]) == ("v1", "ConfigMap")


async def test_a_list_is_of_a_namespace_and_of_what_the_labels_select(subject: Subject) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "2"}), ("c", {"x": "1", "y": "1"})):
        manifest = subject.config_map(name)
        manifest["metadata"]["labels"] = labels
        await subject.cluster.create(CONFIG_MAP, manifest)
    assert await names(subject, label_selector="x=1") == ["a", "c"]
    assert await names(subject, label_selector="x=1,y=1") == ["c"]
    everywhere = [found async for found in subject.cluster.list(CONFIG_MAP)]
    assert {"a", "b", "c"} <= {found["metadata"]["name"] for found in everywhere}
    assert [found async for found in subject.cluster.list(CONFIG_MAP, "elsewhere")] == []


async def test_what_is_not_there_is_none(subject: Subject) -> None:
    assert await subject.cluster.get(TASK, subject.namespace, "absent") is None
    assert await subject.cluster.get(TASK, "absent", "absent") is None
    with pytest.raises(ClusterError) as refused:
        await subject.cluster.merge(CONFIG_MAP, subject.namespace, "absent", {"data": {"a": "1"}})
    assert refused.value.is_not_found
    assert refused.value.about == "absent"


async def test_create_gives_an_identity_and_refuses_a_name_that_is_taken(subject: Subject) -> None:
    made = await subject.cluster.create(CONFIG_MAP, subject.config_map("a", x="1"))
    assert made["metadata"]["uid"]
    assert made["metadata"]["resourceVersion"]
    with pytest.raises(ClusterError) as refused:
        await subject.cluster.create(CONFIG_MAP, subject.config_map("a", x="2"))
    assert refused.value.is_conflict
    assert refused.value.reason == "AlreadyExists"
    assert (await subject.read(CONFIG_MAP, "a"))["data"] == {"x": "1"}


async def test_nothing_is_made_in_a_namespace_that_is_not_there(subject: Subject) -> None:
    manifest = subject.config_map("a")
    manifest["metadata"]["namespace"] = "absent"
    for write in (subject.cluster.create, subject.cluster.apply):
        with pytest.raises(ClusterError) as refused:
            await write(CONFIG_MAP, manifest)
        assert (refused.value.status, refused.value.about) == (404, "absent")


async def test_an_event_said_twice_is_written_once(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    event = render_event(made, Reason.TASK_ACCEPTED, "accepted", once_per="x", now=datetime.now(UTC))
    await subject.cluster.create(CORE_EVENT, event)
    with pytest.raises(ClusterError) as refused:
        await subject.cluster.create(CORE_EVENT, event)
    assert refused.value.is_conflict


async def test_what_is_invalid_is_refused_with_its_path(subject: Subject) -> None:
    with pytest.raises(ClusterError, match=r"spec\.priority") as refused:
        await subject.cluster.create(TASK, subject.task(priority="high"))
    assert (refused.value.status, refused.value.reason) == (422, "Invalid")
    made = await subject.cluster.create(TASK, subject.task())
    with pytest.raises(ClusterError, match=r"status\.phase") as refused:
        await patch(subject, made, {"op": "add", "path": "/status", "value": {"phase": "Strange"}})
    assert (refused.value.status, refused.value.reason) == (422, "Invalid")
    assert "status" not in await subject.read(TASK, "t")


async def test_apply_makes_changes_and_takes_away_what_is_no_longer_applied(subject: Subject) -> None:
    first = await subject.cluster.apply(CONFIG_MAP, subject.config_map("a", x="1", y="1"))
    second = await subject.cluster.apply(CONFIG_MAP, subject.config_map("a", x="2"))
    assert second["data"] == {"x": "2"}
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    again = await subject.cluster.apply(CONFIG_MAP, subject.config_map("a", x="2"))
    assert again["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"], "nothing was written"


async def test_apply_by_force_puts_ours_back_and_leaves_the_rest(subject: Subject) -> None:
    await subject.cluster.apply(WORKER_POOL, subject.pool(slots=2))
    await subject.apply_as("person", WORKER_POOL, subject.pool(slots=5, maxReplicas=3))
    applied = await subject.cluster.apply(WORKER_POOL, subject.pool(slots=2))
    assert (applied["spec"]["slots"], applied["spec"]["maxReplicas"]) == (2, 3)


async def test_apply_without_force_is_refused_where_somebody_else_has_decided(subject: Subject) -> None:
    await subject.apply_as("person", WORKER_POOL, subject.pool(slots=5))
    with pytest.raises(ClusterError, match=r"conflict with \"?person.*\.spec\.slots") as refused:
        await subject.cluster.apply(WORKER_POOL, subject.pool(slots=2), force=False)
    assert refused.value.is_conflict
    assert (await subject.read(WORKER_POOL, "p"))["spec"]["slots"] == 5
    agreed = await subject.cluster.apply(WORKER_POOL, subject.pool(slots=5), force=False)
    owners = {entry["manager"] for entry in agreed["metadata"]["managedFields"]}
    assert owners == {"person", "tasker-operator"}


async def test_apply_to_an_object_of_a_uid_or_version_touches_no_other(subject: Subject) -> None:
    old = await subject.cluster.apply(CONFIG_MAP, subject.config_map("a", x="1"))
    await subject.delete(CONFIG_MAP, old)
    precise = subject.config_map("a", x="2")
    precise["metadata"]["uid"] = old["metadata"]["uid"]
    with pytest.raises(ClusterError):
        await subject.cluster.apply(CONFIG_MAP, precise)
    assert await subject.cluster.get(CONFIG_MAP, subject.namespace, "a") is None
    new = await subject.cluster.apply(CONFIG_MAP, subject.config_map("a", x="3"))
    with pytest.raises(ClusterError):
        await subject.cluster.apply(CONFIG_MAP, precise)
    precise["metadata"] = {**new["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}
    del precise["metadata"]["managedFields"]
    with pytest.raises(ClusterError) as refused:
        await subject.cluster.apply(CONFIG_MAP, precise)
    assert refused.value.is_conflict
    assert (await subject.read(CONFIG_MAP, "a"))["data"] == {"x": "3"}


async def test_a_merge_patch_replaces_adds_and_takes_away(subject: Subject) -> None:
    manifest = subject.config_map("a", x="1", y="1")
    manifest["metadata"]["annotations"] = {"keep": "1", "drop": "1"}
    made = await subject.cluster.create(CONFIG_MAP, manifest)
    change = {"metadata": {"annotations": {"drop": None, "absent": None}}, "data": {"x": "2", "y": None, "z": "3"}}
    merged = await subject.cluster.merge(CONFIG_MAP, subject.namespace, "a", change)
    assert merged["metadata"]["annotations"] == {"keep": "1"}
    assert merged["data"] == {"x": "2", "z": "3"}
    assert int(merged["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])


async def test_only_another_spec_is_another_generation(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    assert made["metadata"]["generation"] == 1
    shown = await patch(subject, made, {"op": "add", "path": "/status", "value": {"phase": "Pending"}})
    assert shown["metadata"]["generation"] == 1
    suspended = await subject.cluster.merge(TASK, subject.namespace, "t", {"spec": {"suspend": True}})
    assert suspended["metadata"]["generation"] == 2
    assert suspended["status"] == {"phase": "Pending"}


async def patch(subject: Subject, manifest: Manifest, *operations: Manifest) -> Manifest:
    """The status of the object as it is known, patched."""
    name, version = manifest["metadata"]["name"], manifest["metadata"]["resourceVersion"]
    return await subject.cluster.patch_status(
        TASK, subject.namespace, name, resource_version=version, operations=operations
    )


async def test_a_status_write_changes_nothing_but_the_status(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    operations: list[Manifest] = [
        {"op": "add", "path": "/status", "value": {"phase": "Pending"}},
        {"op": "add", "path": "/spec/suspend", "value": True},
    ]
    shown = await patch(subject, made, *operations)
    assert shown["status"] == {"phase": "Pending"}
    assert not shown["spec"].get("suspend")
    merged = await subject.cluster.merge(TASK, subject.namespace, "t", {"status": {"phase": "Failed"}})
    assert merged["status"] == {"phase": "Pending"}, "and a write of the object does not change the status"


async def test_a_result_is_shown_with_its_nulls(subject: Subject) -> None:
    result = {"a": None, "b": [None], "c": {"d": None}, "e": [{"f": None}], "~g/h": None}
    made = await subject.cluster.create(TASK, subject.task())
    writer = subject.statuses()
    running = await writer.write(TASK, made, {"phase": "Running"})
    assert running is not None
    written = await writer.write(TASK, running, {"phase": "Succeeded", "result": result})
    assert written is not None
    assert written["status"] == {"phase": "Succeeded", "result": result}
    assert (await subject.read(TASK, "t"))["status"] == written["status"]
    assert await writer.write(TASK, written, {"phase": "Succeeded", "result": result}) is None, "it is equal"
    other = await writer.write(TASK, written, {"phase": "Succeeded", "result": {**result, "a": 1}})
    assert other is not None
    assert other["status"]["result"] == {**result, "a": 1}
    none = await writer.write(TASK, other, {"phase": "Succeeded"})
    assert none is not None
    assert none["status"] == {"phase": "Succeeded"}


async def test_a_status_field_that_the_writer_no_longer_holds_is_not_lost(subject: Subject) -> None:
    """The cache keeps no results of finished Tasks."""
    made = await subject.cluster.create(TASK, subject.task())
    writer = subject.statuses()
    full = await writer.write(TASK, made, {"phase": "Succeeded", "result": {"a": None}, "observedGeneration": 1})
    assert full is not None
    slim = {**full, "status": {"phase": "Succeeded", "observedGeneration": 1}}
    written = await writer.write(TASK, slim, {"phase": "Succeeded", "observedGeneration": 2})
    assert written is not None
    assert written["status"] == {"phase": "Succeeded", "observedGeneration": 2, "result": {"a": None}}


async def test_a_status_from_an_old_version_is_a_conflict_and_the_newest_is_told(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    newest = await subject.cluster.merge(TASK, subject.namespace, "t", {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(ClusterError) as refused:
        await subject.statuses().write(TASK, made, {"phase": "Running"})
    assert refused.value.is_conflict
    assert "status" not in await subject.read(TASK, "t")
    [told] = subject.told
    assert told["metadata"]["resourceVersion"] == newest["metadata"]["resourceVersion"]


async def test_a_patch_that_no_longer_fits_is_a_conflict_too(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    writer = subject.statuses()
    old = await writer.write(TASK, made, {"phase": "Pending", "progress": "0/1"})
    assert old is not None
    newest = await writer.write(TASK, old, {"phase": "Pending"})
    subject.told.clear()
    with pytest.raises(ClusterError) as refused:
        await writer.write(TASK, old, {"phase": "Running"})
    assert refused.value.is_conflict
    assert subject.told == [newest]


async def test_an_invalid_status_is_no_conflict(subject: Subject) -> None:
    made = await subject.cluster.create(TASK, subject.task())
    with pytest.raises(ClusterError, match=r"status\.phase") as refused:
        await subject.statuses().write(TASK, made, {"phase": "Strange"})
    assert refused.value.status == 422
    assert subject.told == []


async def test_an_object_made_anew_is_not_touched_by_what_was_meant_for_its_predecessor(subject: Subject) -> None:
    old = await subject.cluster.create(TASK, subject.task())
    assert await subject.delete(TASK, old)
    assert await subject.statuses().write(TASK, old, {"phase": "Running"}) is None, "it is gone"
    new = await subject.cluster.create(TASK, subject.task())
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert int(new["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])
    with pytest.raises(ClusterError) as refused:
        await subject.statuses().write(TASK, old, {"phase": "Succeeded"})
    assert refused.value.is_conflict
    assert [told["metadata"]["uid"] for told in subject.told] == [new["metadata"]["uid"]]
    assert not await subject.delete(TASK, old)
    assert await subject.read(TASK, "t") == new
    assert await subject.delete(TASK, new)
    assert not await subject.delete(TASK, new)


async def test_what_a_finalizer_holds_is_marked_and_stays(subject: Subject) -> None:
    manifest = subject.config_map("a")
    manifest["metadata"]["finalizers"] = ["example.test/hold"]
    made = await subject.cluster.create(CONFIG_MAP, manifest)
    assert await subject.delete(CONFIG_MAP, made)
    assert (await subject.read(CONFIG_MAP, "a"))["metadata"]["deletionTimestamp"]
    free = {"metadata": {"finalizers": None}}
    await subject.cluster.merge(CONFIG_MAP, subject.namespace, "a", free)
    assert await subject.cluster.get(CONFIG_MAP, subject.namespace, "a") is None


@pytest.mark.parametrize("code", [429, 503])
async def test_the_wait_that_a_server_asks_for_is_told(subject: Subject, code: int) -> None:
    await subject.refuse("get", TASK, code, retry_after=7)
    with pytest.raises(ClusterError) as refused:
        await subject.cluster.get(TASK, subject.namespace, "t")
    assert (refused.value.status, refused.value.retry_after) == (code, 7.0)
    assert await subject.cluster.get(TASK, subject.namespace, "t") is None, "nobody has waited for us"
