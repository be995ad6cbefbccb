"""A status as a JSON patch: what changed, with its nulls, nothing when nothing did; and what becomes of a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devcluster.machinery.patch import json_patch
from support.controller_fakes import task
from support.fake_cluster import FakeCluster, Fault
from tasker.controller.kube.client import TASK, ClusterError, Manifest, Resource
from tasker.controller.kube.status_writer import StatusWriter, status_operations
from tasker.controller.runtime.metrics import OperatorMetrics

json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
statuses = st.dictionaries(st.text("ab~/", max_size=3), json_values, max_size=4)


@settings(deadline=None)
@given(statuses, statuses)
def test_the_operations_make_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    live = {"status": old} if old else {}
    assert json_patch(live, status_operations(old, new)).get("status", {}) == new


@settings(deadline=None)
@given(statuses)
def test_an_equal_status_needs_no_operation(status: dict[str, Any]) -> None:
    assert status_operations(status, status) == []


@settings(deadline=None)
@given(statuses, st.dictionaries(st.text("xyz", min_size=1, max_size=3), json_values, max_size=3))
def test_what_is_not_named_stays(status: dict[str, Any], unknown: dict[str, Any]) -> None:
    """The writer may know less of an object than the server holds."""
    changed = {**status, "phase": "Running"}
    patched = json_patch({"status": {**unknown, **status}}, status_operations(status, changed) if status else [])
    assert patched["status"].items() >= unknown.items()


# Refusals.


class Setting:
    """A Task that was read, and a writer that notes what it was told is the newest."""

    def __init__(self) -> None:
        self.cluster, self.metrics = FakeCluster(), OperatorMetrics()
        self.newest: list[Manifest] = []
        self.writer = StatusWriter(self.cluster, self.metrics, newest=lambda _, manifest: self.newest.append(manifest))
        self.read = self.cluster.store(task())

    async def write(self, status: dict[str, Any]) -> Manifest | None:
        return await self.writer.write(TASK, self.read, status)

    def count(self, outcome: str) -> float | None:
        labels = {"kind": "Task", "outcome": outcome}
        return self.metrics.registry.get_sample_value("tasker_operator_status_writes_total", labels)

    def change(self, **changes: Any) -> Manifest:
        return self.cluster.store({**self.read, **changes})


async def test_a_write_is_counted_and_its_answer_is_the_newest() -> None:
    setting = Setting()
    written = await setting.write({"phase": "Running"})
    assert written is not None and written["status"] == {"phase": "Running"}
    assert setting.newest == [written]
    assert (setting.count("written"), setting.count("conflict")) == (1, None)
    setting.read = written
    assert await setting.write({"phase": "Running"}) is None
    assert (setting.count("written"), len(setting.newest)) == (1, 1)


async def test_a_task_that_is_gone_needs_no_status() -> None:
    setting = Setting()
    setting.cluster.remove("Task", "default", "t")
    assert await setting.write({"phase": "Running"}) is None
    assert (setting.count("written"), setting.newest) == (None, [])


async def test_a_task_that_goes_while_its_newest_state_is_asked_for_needs_none_either() -> None:
    setting = Setting()
    setting.change(metadata={**setting.read["metadata"], "labels": {"a": "b"}})
    setting.cluster.faults.append(Fault(verb="get", kind="Task", code=404, reason="NotFound"))
    get = setting.cluster.get

    async def gone(resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        setting.cluster.remove("Task", "default", "t")
        setting.cluster.faults.clear()
        return await get(resource, namespace, name)

    setting.cluster.get = gone  # type: ignore[method-assign]
    assert await setting.write({"phase": "Running"}) is None
    assert (setting.count("conflict"), setting.newest) == (None, [])


async def test_a_conflict_says_so_and_brings_the_newest() -> None:
    setting = Setting()
    changed = setting.change(metadata={**setting.read["metadata"], "labels": {"a": "b"}})
    with pytest.raises(ClusterError) as refused:
        await setting.write({"phase": "Running"})
    assert (refused.value.status, refused.value.is_conflict, refused.value.about) == (409, True, "t")
    assert "the object has been modified" in str(refused.value)
    assert setting.newest == [changed]
    assert (setting.count("written"), setting.count("conflict")) == (None, 1)


async def test_a_patch_that_no_longer_fits_is_a_conflict() -> None:
    """What it takes away is gone already: refused as invalid, before anybody compares versions."""
    setting = Setting()
    setting.read = setting.change(status={"phase": "Running", "progress": "1/2"})
    changed = setting.change(status={"phase": "Running"})
    with pytest.raises(ClusterError) as refused:
        await setting.write({"phase": "Running"})
    assert refused.value.is_conflict
    assert setting.newest == [changed]


@pytest.mark.parametrize("status", [{"phase": "by the moon"}, {"phase": 7}])
async def test_a_status_that_is_wrong_is_no_conflict(status: dict[str, Any]) -> None:
    setting = Setting()
    with pytest.raises(ClusterError) as refused:
        await setting.write(status)
    assert refused.value.status == 422
    assert (setting.newest, setting.count("conflict")) == ([], None)


async def test_any_other_refusal_is_passed_on() -> None:
    setting = Setting()
    setting.cluster.faults.append(Fault(verb="patch", kind="Task", code=403, reason="Forbidden"))
    with pytest.raises(ClusterError) as refused:
        await setting.write({"phase": "Running"})
    assert refused.value.status == 403
    assert setting.newest == []
