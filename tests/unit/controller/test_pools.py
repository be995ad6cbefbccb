"""What is applied for a pool and when, and when its status is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, make_demand, pool
from support.fake_cluster import FakeCluster
from tasker.controller.kube.client import SECRET, WORKER_POOL, ClusterError, Manifest, Resource
from tasker.controller.kube.conditions import find
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.pools.manifests import DATABASE_SECRET


def meanwhile(cluster: FakeCluster, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens while the handlers are being read."""
    read = cluster.get

    async def get(resource: Resource, namespace: str | None, name: str) -> Manifest | None:
        happens()
        return await read(resource, namespace, name)

    monkeypatch.setattr(cluster, "get", get)


async def test_the_secret_of_a_pool_that_is_deleted_meanwhile_has_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = ControllerKit()
    handlers = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "handlers", "namespace": "default"}}
    kit.cluster.store(handlers)
    manifest = pool(handlersFrom={"configMapRef": {"name": "handlers"}})
    stored = kit.give(manifest)

    def is_deleted() -> None:
        kit.cluster.objects.pop((WORKER_POOL.kind, "default", "default"), None)
        kit.router.pool(stored, "DELETED")

    meanwhile(kit.cluster, is_deleted, monkeypatch)
    await kit.pool_reconciler().reconcile(key_of(stored))
    assert list(kit.caches.pools.in_namespace("default")) == []
    secret = kit.cluster.objects[SECRET.kind, "default", DATABASE_SECRET]
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == [stored["metadata"]["uid"]]


NAME = "tasker-worker-default"
EVERYTHING = [
    ("apply", "ServiceAccount", NAME),
    ("apply", "Secret", "tasker-database"),
    ("apply", "PodDisruptionBudget", NAME),
    ("apply", "NetworkPolicy", NAME),
    ("apply", "Deployment", NAME),
]
KEY = ObjectKey(namespace="default", name="default")


class Setting:
    """The reconciler of pools, and a monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.kit = ControllerKit()
        self.clock = 0.0
        self.pools = self.kit.pool_reconciler(lambda: self.clock)

    async def give(self, **spec: Any) -> Manifest:
        """A person writes the pool, and it is reconciled."""
        made = self.kit.give(pool(**spec))
        await self.pools.reconcile(KEY)
        return made

    def applied(self) -> list[tuple[str, str, str]]:
        """What was applied since the last call."""
        calls, self.kit.cluster.calls[:] = [*self.kit.cluster.calls], []
        return [call for call in calls if call[0] == "apply"]

    def status_writes(self) -> int:
        return sum(1 for call in self.kit.cluster.calls if call[0] == "status")

    def live(self) -> Manifest:
        return self.kit.cluster.objects["Deployment", "default", NAME]

    def change_deployment(self, **spec: Any) -> None:
        """Somebody changes the Deployment, and its event arrives."""
        live = self.live()
        stored = self.kit.cluster.store({**live, "spec": {**live["spec"], **spec}})
        self.kit.router.deployment(stored, "MODIFIED")


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_everything_is_applied_once_and_again_after_a_resync(setting: Setting) -> None:
    await setting.give()
    assert setting.applied() == EVERYTHING
    await setting.pools.reconcile(KEY)
    assert setting.applied() == []
    setting.kit.states.forget_applied()
    await setting.pools.reconcile(KEY)
    assert setting.applied() == EVERYTHING


async def test_what_a_pool_brings_itself_is_not_made_for_it(setting: Setting) -> None:
    await setting.give(serviceAccountName="own", database={"secretRef": {"name": "own"}})
    assert setting.applied() == EVERYTHING[2:]


async def test_only_what_has_changed_is_applied(setting: Setting) -> None:
    await setting.give()
    setting.applied()
    await setting.give(slots=3)
    assert setting.applied() == EVERYTHING[-1:]


async def test_the_same_in_another_order_is_no_change(setting: Setting) -> None:
    await setting.give(resources={"limits": {"memory": "1Gi", "cpu": "1"}, "requests": {"cpu": "1"}})
    setting.applied()
    await setting.give(resources={"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}})
    assert setting.applied() == []


async def test_the_secret_belongs_to_the_pools_that_use_it(setting: Setting) -> None:
    shares = setting.kit.give(pool("shares"))
    setting.kit.give(pool("own", database={"secretRef": {"name": "own"}}))
    going = pool("going")
    going["metadata"] |= {"deletionTimestamp": "2031-01-01T00:00:00Z", "finalizers": ["x"]}
    setting.kit.give(going)
    made = await setting.give()
    secret = setting.kit.cluster.objects[SECRET.kind, "default", DATABASE_SECRET]
    owners = {owner["uid"] for owner in secret["metadata"]["ownerReferences"]}
    assert owners == {made["metadata"]["uid"], shares["metadata"]["uid"]}
    assert secret["data"]["DATABASE_URL"] == "cG9zdGdyZXNxbDovLy94"


async def test_what_somebody_changed_of_the_deployment_is_put_back(setting: Setting) -> None:
    await setting.give()
    setting.applied()
    setting.change_deployment(revisionHistoryLimit=99)
    await setting.pools.reconcile(KEY)
    assert setting.applied() == EVERYTHING[-1:]
    assert setting.live()["spec"]["revisionHistoryLimit"] == 3
    await setting.pools.reconcile(KEY)
    assert setting.applied() == [], "its own answer is no change by somebody else"


async def test_a_deployment_that_was_deleted_is_made_again(setting: Setting) -> None:
    await setting.give()
    setting.applied()
    setting.kit.router.deployment(setting.kit.cluster.remove("Deployment", "default", NAME), "DELETED")
    await setting.pools.reconcile(KEY)
    assert setting.applied() == EVERYTHING[-1:]


async def test_the_answer_to_an_apply_is_in_the_status_at_once(setting: Setting) -> None:
    await setting.give(minReplicas=2)
    status = setting.kit.live(pool())["status"]
    assert (status["desiredReplicas"], setting.live()["spec"]["replicas"]) == (2, 2)
    assert setting.kit.caches.deployments.read(ObjectKey(namespace="default", name=NAME)) is not None
    assert status["selector"] == "app.kubernetes.io/name=tasker-worker,tasker.dev/pool=default"


async def test_the_status_shows_the_deployment_that_is_there_when_nothing_is_applied(setting: Setting) -> None:
    await setting.give(minReplicas=2)
    setting.applied()
    progressed = setting.kit.cluster.store({**setting.live(), "status": {"replicas": 2, "readyReplicas": 1}})
    setting.kit.router.deployment(progressed, "MODIFIED")
    setting.clock = 1.0
    assert await setting.pools.reconcile(KEY) is None
    assert setting.applied() == []
    assert setting.kit.live(pool())["status"]["readyReplicas"] == 1


# A number that is an autoscaler's.


async def test_an_autoscalers_pool_begins_with_its_minimum(setting: Setting) -> None:
    await setting.give(scaling={"mode": "external"}, minReplicas=2)
    assert setting.live()["spec"]["replicas"] == 2
    assert setting.kit.live(pool())["status"]["desiredReplicas"] == 2


async def test_the_number_stays_as_it_is_until_an_autoscaler_writes_one(setting: Setting) -> None:
    await setting.give(minReplicas=4)
    [(_, state)] = setting.kit.states.items()
    state.desired = None  # the scaler's answer to the mode
    for slots in (1, 2):
        await setting.give(scaling={"mode": "external"}, minReplicas=1, slots=slots)
        assert setting.live()["spec"]["replicas"] == 4


async def test_once_an_autoscaler_has_written_the_number_it_is_given_up(setting: Setting) -> None:
    await setting.give(scaling={"mode": "external"}, minReplicas=1)
    live = setting.live()
    autoscaler = {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    metadata = {**live["metadata"], "managedFields": [*live["metadata"]["managedFields"], autoscaler]}
    stored = setting.kit.cluster.store({**live, "metadata": metadata, "spec": {**live["spec"], "replicas": 7}})
    setting.kit.router.deployment(stored, "MODIFIED")
    await setting.pools.reconcile(KEY)
    assert setting.live()["spec"]["replicas"] == 7
    ours = [each for each in setting.live()["metadata"]["managedFields"] if each["manager"] == "tasker-operator"]
    assert "f:replicas" not in ours[0]["fieldsV1"]["f:spec"]


async def test_a_number_that_changed_since_it_was_read_is_not_overwritten(setting: Setting) -> None:
    await setting.give(scaling={"mode": "external"}, minReplicas=1)

    def autoscaler_writes(verb: str, kind: str) -> None:
        if (verb, kind) == ("get", "Deployment"):
            live = setting.live()
            setting.kit.cluster.store({**live, "spec": {**live["spec"], "replicas": 9}})

    setting.kit.cluster.meanwhile = autoscaler_writes
    with pytest.raises(ClusterError) as caught:
        await setting.give(scaling={"mode": "external"}, minReplicas=1, slots=3)
    assert caught.value.is_conflict
    assert setting.live()["spec"]["replicas"] == 9


async def test_a_deployment_without_a_number_has_one_worker(setting: Setting) -> None:
    """That is what the API server means by none."""
    await setting.give(scaling={"mode": "external"}, minReplicas=3)
    live = setting.live()
    del live["spec"]["replicas"]
    await setting.give(scaling={"mode": "external"}, minReplicas=3, slots=3)
    assert setting.live()["spec"]["replicas"] == 1


# Statuses.


async def test_a_status_is_written_once_a_second_and_the_last_one_comes(setting: Setting) -> None:
    await setting.give()
    assert setting.status_writes() == 1
    [(_, state)] = setting.kit.states.items()
    state.demand, state.scaled = make_demand("default", "default", queued=3), True
    setting.clock = 0.25
    assert await setting.pools.reconcile(KEY) == 0.75
    assert setting.status_writes() == 1
    assert state.scaled is True, "the status does not show it yet"
    setting.clock = 1.0
    assert await setting.pools.reconcile(KEY) is None
    assert setting.status_writes() == 2
    assert [each.scaled for _, each in setting.kit.states.items()] == [False]
    assert setting.kit.live(pool())["status"]["queued"] == 3
    assert await setting.pools.reconcile(KEY) is None, "nothing is new, so nothing waits"
    state.demand = make_demand("default", "default", queued=4)
    assert await setting.pools.reconcile(KEY) == 1.0


async def test_missing_handlers_are_told_and_nothing_is_applied(setting: Setting) -> None:
    await setting.give(handlersFrom={"configMapRef": {"name": "shop"}})
    for _ in range(2):
        assert await setting.pools.reconcile(KEY) is None
    message = "There is no ConfigMap shop in namespace default."
    assert setting.kit.take_events() == [("WorkerPool", "default", "HandlersNotFound", message)]
    stalled = find(setting.kit.live(pool())["status"], "Stalled")
    assert stalled is not None and stalled["message"] == message
    assert setting.applied() == []


async def test_a_config_map_that_is_missing_is_told_once_for_the_pools_life(setting: Setting) -> None:
    """Its status is written anew with each edit of the pool."""

    async def told(config_map: str, slots: int) -> str:
        await setting.give(handlersFrom={"configMapRef": {"name": config_map}}, slots=slots)
        return setting.kit.take_event_names()["HandlersNotFound"]

    assert await told("shop", 1) == await told("shop", 2)
    assert await told("another", 2) != await told("shop", 3)


async def test_handlers_that_change_roll_the_pods(setting: Setting) -> None:
    shop = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "namespace": "default"}}

    def pods_hash() -> str:
        return str(setting.live()["spec"]["template"]["metadata"]["annotations"]["tasker.dev/handlers-hash"])

    setting.kit.cluster.store({**shop, "data": {"a.py": "1"}})
    await setting.give(handlersFrom={"configMapRef": {"name": "shop"}})
    before = pods_hash()
    setting.kit.router.config_map(setting.kit.cluster.store({**shop, "data": {"a.py": "2"}}), "MODIFIED")
    await setting.pools.reconcile(KEY)
    assert pods_hash() != before


# The end.


@pytest.mark.parametrize("why", ["deleted", "being deleted", "namespace"])
async def test_nothing_is_remembered_of_a_pool_that_goes(setting: Setting, why: str) -> None:
    made = await setting.give()
    setting.applied()
    match why:
        case "deleted":
            setting.kit.router.pool(setting.kit.cluster.remove("WorkerPool", "default", "default"), "DELETED")
        case "being deleted":
            going = {**made["metadata"], "deletionTimestamp": "2031-01-01T00:00:00Z", "finalizers": ["x"]}
            setting.kit.give({**made, "metadata": going})
        case "namespace":
            setting.kit.caches.terminating_namespaces.add("default")
    setting.kit.states.forget_applied()
    assert await setting.pools.reconcile(KEY) is None
    assert setting.kit.states.get(KEY) is None
    assert setting.applied() == []
    assert setting.pools._status_written_at == {}
