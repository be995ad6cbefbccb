"""Scaling takes work from nobody: idle workers are drained, made the cheapest to delete, then the number is lowered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.controller_fakes import ControllerKit, make_demand, make_run, make_worker, pool, template
from tasker.controller.kube.client import WORKER_POOL, ClusterError, Manifest
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.worker_pool import MANAGED_POOL_LABEL, WorkerPool
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.pools.manifests import DELETION_COST_ANNOTATION, START_SECONDS
from tasker.controller.pools.state import PoolState, initial_replicas
from tasker.model.workers import WorkerInfo

KEY = ObjectKey(namespace="default", name="default")
NAMESPACE = ObjectKey(namespace="default", name="default")


class Setting:
    def __init__(self, **settings: Any) -> None:
        self.kit = ControllerKit(**settings)
        self.clock = 1000.0
        self.scaler = self.kit.scaler(lambda: self.clock)
        self.namespaces = self.kit.namespace_reconciler()

    def with_pool(self, *, replicas: int = 0, pods: int | None = None, **spec: Any) -> Manifest:
        made = self.kit.give(pool(**spec))
        self.with_replicas(replicas, pods)
        return made

    def with_replicas(self, replicas: int, pods: int | None = None) -> None:
        """The pool's Deployment and its pods, for a pool that is there already."""
        deployment = {
            "kind": "Deployment",
            "metadata": {"name": "tasker-worker-default", "namespace": "default", "labels": {}},
            "spec": {"replicas": replicas},
        }
        self.kit.router.deployment(self.kit.cluster.store(deployment), "ADDED")
        for number in range(replicas if pods is None else pods):
            self.add_pod(f"p{number}")

    def remove_pod(self, name: str) -> None:
        gone = self.kit.cluster.objects.pop(("Pod", "default", name))
        self.kit.router.pod(gone, "DELETED")
        self.kit.engine.registered_workers.pop(name, None)

    def add_pod(self, name: str, *, running: int = 0, registered: bool = True) -> None:
        self.show_pod(name, ready=registered)
        if registered:
            self.kit.engine.registered_workers[name] = make_worker(name, running=running)

    def show_pod(self, name: str, *, ready: bool, phase: str = "Pending", waiting: str | None = None) -> None:
        state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
        pod = {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"tasker.dev/pool": "default"}},
            "status": {
                "phase": phase,
                "conditions": [{"type": "Ready", "status": str(ready)}],
                "containerStatuses": [{"state": state}],
            },
        }
        self.kit.router.pod(self.kit.cluster.store(pod), "MODIFIED")

    def busy(self, **running: int) -> None:
        for name, steps in running.items():
            self.kit.engine.registered_workers[name] = make_worker(name, running=steps)

    async def scale(self, *, queued: int = 0, running: int = 0, seconds: float = 0.0, draining: int = 0) -> PoolState:
        self.clock += seconds
        demand = make_demand("default", "default", queued=queued, running=running, draining=draining)
        self.kit.engine.demand["default", "default"] = demand
        await self.scaler.reconcile_scale()
        state = self.kit.states.get(KEY)
        assert state is not None
        return state

    def cheapest_to_delete(self) -> set[str]:
        return {
            name
            for (kind, _, name), found in self.kit.cluster.objects.items()
            if kind == "Pod" and (found["metadata"].get("annotations") or {}).get(DELETION_COST_ANNOTATION) == "-1000"
        }

    def drained(self) -> set[str]:
        return {name for name, worker in self.kit.engine.registered_workers.items() if worker.draining}


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_the_first_queued_step_brings_a_worker_from_zero_in_one_round(setting: Setting) -> None:
    setting.with_pool()
    state = await setting.scale(queued=1)
    assert state.desired == 1
    assert KEY in setting.kit.queue("pools").take()


async def test_after_a_restart_the_number_is_the_live_deployments(setting: Setting) -> None:
    setting.with_pool(replicas=4)
    assert (await setting.scale(running=35)).desired == 4


async def test_only_idle_workers_go_and_they_are_drained_and_made_the_cheapest_first(setting: Setting) -> None:
    setting.with_pool(replicas=4)
    setting.busy(p0=3, p1=0, p2=7, p3=0)
    await setting.scale(running=10)
    state = await setting.scale(running=10, seconds=31)
    assert state.desired == 2
    assert setting.drained() == {"p1", "p3"} == setting.cheapest_to_delete()


async def test_nobody_goes_while_all_are_busy_and_the_next_idle_one_goes_at_once(setting: Setting) -> None:
    setting.with_pool(replicas=3)
    setting.busy(p0=1, p1=1, p2=1)
    await setting.scale(running=3)
    state = await setting.scale(running=3, seconds=31)
    assert state.desired == 3
    assert "to become idle" in state.reason
    setting.busy(p1=0)
    state = await setting.scale(running=2, seconds=1)
    assert state.desired == 2
    assert setting.drained() == {"p1"}


async def test_no_ready_worker_goes_while_a_busy_one_is_not_ready_and_would_go_first(setting: Setting) -> None:
    setting.with_pool(replicas=3)
    setting.busy(p0=1, p1=0, p2=0)
    setting.show_pod("p0", ready=False)
    await setting.scale(running=1)
    state = await setting.scale(running=1, seconds=31)
    assert (state.desired, setting.drained(), setting.cheapest_to_delete()) == (3, set(), set())
    assert state.reason == "1 running; waiting for busy worker p0 to be ready: Kubernetes would delete it first"
    setting.show_pod("p0", ready=True)
    state = await setting.scale(running=1, seconds=1)
    assert state.desired == 1
    assert setting.drained() == {"p1", "p2"}


async def test_an_unready_idle_worker_goes_beside_a_busy_unready_one(setting: Setting) -> None:
    """Both are not ready, so the deletion cost decides between them."""
    setting.with_pool(replicas=3)
    setting.busy(p0=1, p1=0, p2=0)
    setting.show_pod("p0", ready=False)
    setting.show_pod("p1", ready=False)
    await setting.scale(running=1)
    state = await setting.scale(running=1, seconds=31)
    assert (state.desired, setting.drained()) == (2, {"p1"})


async def test_pods_chosen_a_moment_ago_are_not_counted_a_second_time(setting: Setting) -> None:
    """The number is 2 already but 5 pods are still there: three of them are spoken for."""
    setting.with_pool(replicas=2, pods=5)
    setting.busy(p0=1, p1=1, p2=0, p3=0, p4=0)
    await setting.scale(running=2)
    state = await setting.scale(running=2, seconds=31)
    assert state.desired == 2, "lowering it further would take a busy pod"
    assert setting.drained() == {"p2", "p3", "p4"}


async def test_pods_without_a_worker_go_before_any_worker_is_drained(setting: Setting) -> None:
    setting.with_pool(replicas=3, pods=1)
    setting.add_pod("starting-1", registered=False)
    setting.add_pod("starting-2", registered=False)
    await setting.scale(running=1)
    state = await setting.scale(running=1, seconds=31)
    assert state.desired == 1
    assert setting.drained() == set()
    assert setting.cheapest_to_delete() == {"starting-1", "starting-2"}


async def test_beside_pods_without_a_worker_only_as_many_workers_go_as_are_too_many(setting: Setting) -> None:
    setting.with_pool(replicas=4, pods=3)
    setting.add_pod("empty", registered=False)
    await setting.scale(running=15)
    state = await setting.scale(running=15, seconds=31)
    assert state.desired == 2
    assert len(setting.drained()) == 1
    assert setting.cheapest_to_delete() == {"empty", *setting.drained()}


async def test_a_worker_that_starts_does_not_count_as_idle(setting: Setting) -> None:
    """Kubernetes deletes pods that are not ready first: the one that starts, which may just have claimed steps."""
    setting.with_pool(replicas=2, pods=1)
    setting.show_pod("starting", ready=False, phase="Running")
    await setting.scale()
    state = await setting.scale(seconds=100)
    assert state.desired == 2
    assert "waiting for starting worker starting to be ready" in state.reason
    assert setting.drained() == setting.cheapest_to_delete() == set()
    # One that has not registered in all the time that it may take to start never will.
    setting.kit.pass_time(START_SECONDS)
    assert (await setting.scale(seconds=1)).desired == 0


async def test_a_worker_that_cannot_run_is_no_reason_to_wait(setting: Setting) -> None:
    setting.with_pool(replicas=2, pods=1)
    setting.show_pod("crashing", ready=False, phase="Running", waiting="CrashLoopBackOff")
    await setting.scale()
    assert (await setting.scale(seconds=100)).desired == 0


async def test_demand_is_asked_for_under_the_current_pod_template(setting: Setting) -> None:
    manifest = setting.kit.give(pool())
    await setting.scale()
    assert setting.kit.engine.template_hashes == {}, "nothing was applied yet"
    await setting.kit.pool_reconciler().reconcile(key_of(manifest))
    await setting.scale()
    environment = setting.kit.cluster.objects["Deployment", "default", "tasker-worker-default"]["spec"]["template"][
        "spec"
    ]["containers"][0]["env"]
    [applied] = [variable["value"] for variable in environment if variable["name"] == "TASKER_POD_TEMPLATE_HASH"]
    assert setting.kit.engine.template_hashes == {("default", "default"): applied}


async def test_the_age_of_the_oldest_step_moves_on_while_nothing_else_does(setting: Setting) -> None:
    """As it is when no pod can be made."""
    setting.with_pool(replicas=1, pods=0)
    pools = setting.kit.queue("pools")
    queued = make_demand("default", "default", queued=1)
    for age, shown_anew in ((59.0, True), (59.5, False), (61.0, True), (61.5, False), (130.0, True)):
        setting.kit.engine.demand["default", "default"] = replace(queued, oldest_ready_seconds=age)
        pools.take()
        await setting.scaler.reconcile_scale()
        assert (pools.take() != []) is shown_anew, age


@pytest.mark.parametrize(
    ("spec", "conflict"),
    [
        ({}, False),
        ({"handlersFrom": {"configMapRef": {"name": "shop"}}}, True),
    ],
    ids=["nothing in common", "a conflict"],
)
@pytest.mark.parametrize("unseen_by", ["the event", "the read before the apply"])
async def test_a_pool_that_a_person_writes_at_that_moment_is_left_as_it_is(
    setting: Setting, spec: dict[str, Any], conflict: bool, unseen_by: str
) -> None:
    kit = setting.kit
    kit.give(template())
    kit.cluster.store({"kind": "Namespace", "metadata": {"name": "default"}})
    kit.pass_time(60)
    written = pool(labels={"team": "shop"}, slots=3, **spec)
    path = WORKER_POOL.path("default")
    own = await kit.cluster._request("POST", path, query={"fieldManager": "kubectl-create"}, body=written)
    if unseen_by != "the event":
        get = kit.cluster.get

        async def too_early(resource: Any, namespace: str | None, name: str) -> Manifest | None:
            return None if resource is WORKER_POOL else await get(resource, namespace, name)

        kit.cluster.get = too_early  # type: ignore[method-assign]
        if conflict:
            with pytest.raises(ClusterError, match="conflict"):
                await setting.namespaces.reconcile(NAMESPACE)
    if not (conflict and unseen_by != "the event"):
        await setting.namespaces.reconcile(NAMESPACE)
    live = kit.live(own)
    assert live["spec"] == own["spec"]
    assert live["metadata"]["labels"] == {"team": "shop"}


async def test_an_idle_pool_goes_to_zero_after_its_idle_time(setting: Setting) -> None:
    setting.with_pool(replicas=2, scaling={"idleSeconds": 5})
    await setting.scale()
    assert (await setting.scale(seconds=4)).desired == 2
    assert (await setting.scale(seconds=1)).desired == 0


async def test_workers_that_were_to_go_are_kept_when_work_comes_back(setting: Setting) -> None:
    setting.with_pool(replicas=1, pods=3)
    setting.busy(p0=10)
    for name in ("p1", "p2"):
        setting.kit.engine.registered_workers[name] = make_worker(name, draining=True)
    state = await setting.scale(queued=5, running=10, draining=2)
    assert state.desired == 2
    assert len(setting.drained()) == 1, "one of the two is wanted after all"


async def test_an_external_pool_without_a_number_is_never_touched(setting: Setting) -> None:
    setting.with_pool(replicas=7, scaling={"mode": "external"})
    state = await setting.scale(queued=500)
    assert state.desired is None
    assert setting.kit.queue("pools").take()
    assert (await setting.scale(queued=500, seconds=300)).desired is None


async def test_a_number_set_through_the_scale_subresource_is_followed(setting: Setting) -> None:
    setting.with_pool(replicas=2, scaling={"mode": "external"})
    setting.kit.give(pool(scaling={"mode": "external"}, replicas=5))
    assert (await setting.scale()).desired == 5
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=1))
    assert (await setting.scale()).desired == 1


async def test_a_manual_pool_without_a_number_has_its_minimum(setting: Setting) -> None:
    setting.with_pool(scaling={"mode": "manual"}, minReplicas=2)
    assert (await setting.scale(queued=100)).desired == 2


async def test_a_change_is_counted(setting: Setting) -> None:
    setting.with_pool()
    await setting.scale(queued=11)
    sample = setting.kit.metrics.registry.get_sample_value
    assert sample("tasker_operator_scale_decisions_total", {"direction": "up", "mode": "operator"}) == 1


async def test_a_namespace_with_templates_gets_a_pool_after_a_moment_of_grace(setting: Setting) -> None:
    setting.kit.cluster.store({"kind": "Namespace", "metadata": {"name": "default"}})
    setting.kit.give(template())
    assert await setting.namespaces.reconcile(NAMESPACE) == 5.0
    setting.kit.pass_time(5)
    await setting.namespaces.reconcile(NAMESPACE)
    made = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    assert made["metadata"]["labels"][MANAGED_POOL_LABEL] == "true"
    assert made["spec"]["handlersFrom"] == {"configMapRef": {"name": "tasker-handlers"}}


async def test_a_namespace_whose_person_wrote_a_pool_gets_none(setting: Setting) -> None:
    setting.kit.cluster.store({"kind": "Namespace", "metadata": {"name": "default"}})
    setting.kit.give(template())
    setting.kit.give(pool("mine"))
    setting.kit.pass_time(60)
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") not in setting.kit.cluster.objects


async def test_the_managed_pool_goes_only_when_its_workers_are_idle(setting: Setting) -> None:
    setting.kit.give(template())
    managed = setting.kit.give(pool(labels={MANAGED_POOL_LABEL: "true"}))
    setting.with_replicas(2)
    setting.busy(p0=1, p1=0)
    setting.kit.give(pool("mine"))
    assert await setting.namespaces.reconcile(NAMESPACE) is not None
    await setting.scale(running=1, queued=30)
    await setting.namespaces.reconcile(NAMESPACE)
    state = await setting.scale(running=1, queued=30)
    assert state.retiring
    assert setting.drained() == {"p0", "p1"}, "busy workers take nothing more"
    assert state.desired == 1, "but only the idle one goes"
    assert await setting.namespaces.reconcile(NAMESPACE) is not None
    setting.remove_pod("p1")
    setting.kit.engine.registered_workers["p0"] = make_worker("p0", draining=True)
    assert (await setting.scale(queued=30)).desired == 0
    await setting.namespaces.reconcile(NAMESPACE)
    assert setting.kit.cluster.objects.get((WORKER_POOL.kind, "default", managed["metadata"]["name"])) is None


async def test_a_managed_pool_stays_while_templates_need_it(setting: Setting) -> None:
    setting.kit.give(template())
    setting.kit.give(pool(labels={MANAGED_POOL_LABEL: "true"}))
    await setting.scale()
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") in setting.kit.cluster.objects


async def test_a_namespace_that_goes_has_its_runs_cancelled(setting: Setting) -> None:
    setting.kit.engine.runs["u"] = make_run()
    terminating = {"metadata": {"name": "default", "uid": "1"}, "status": {"phase": "Terminating"}}
    setting.kit.router.namespace(terminating, "MODIFIED")
    assert setting.kit.queue("namespaces").take() == [NAMESPACE]
    await setting.namespaces.reconcile(NAMESPACE)
    assert setting.kit.engine.runs["u"].finished
    assert key_of({"metadata": {"name": "default"}}) == NAMESPACE


@pytest.mark.parametrize(
    ("spec", "live", "expected"),
    [
        ({}, None, 0),
        ({"minReplicas": 2}, None, 2),
        ({"minReplicas": 2}, 5, 5),
        ({"scaling": {"mode": "external"}}, 5, None),
        ({"scaling": {"mode": "external"}, "replicas": 3}, 5, 3),
        ({"scaling": {"mode": "manual"}, "replicas": 3}, 5, 3),
    ],
)
def test_what_is_asked_for_before_the_first_round(spec: dict[str, Any], live: int | None, expected: int | None) -> None:
    given = pool(**spec)
    given["metadata"]["uid"] = "1"
    assert initial_replicas(WorkerPool.parse(given).spec, live) == expected


# What a decision leaves.


async def test_the_scaling_of_the_spec_is_what_decides(setting: Setting) -> None:
    """Each of its numbers, one after the other."""
    setting.with_pool(
        slots=2, maxReplicas=5, scaling={"upSeconds": 10, "downSeconds": 20, "idleSeconds": 40, "maxStep": 2}
    )
    assert (await setting.scale(queued=100)).reason == "100 queued, 0 running, 2 slots each; up within 10 s"
    assert (await setting.scale(queued=100, seconds=10)).desired == 2
    await setting.scale(queued=100, seconds=10)
    assert (await setting.scale(queued=100, seconds=10)).desired == 4
    await setting.scale(queued=100, seconds=10)
    state = await setting.scale(queued=100, seconds=10)
    assert (state.desired, state.reason) == (5, "4 → 5: 100 queued, 0 running, 2 slots each")
    await setting.scale(running=6)
    assert (await setting.scale(running=6, seconds=19)).desired == 5
    assert (await setting.scale(running=6, seconds=1)).desired == 3
    await setting.scale()
    assert (await setting.scale(seconds=20)).desired == 1
    assert (await setting.scale(seconds=20)).desired == 0


async def test_the_minimum_of_the_spec_stays(setting: Setting) -> None:
    setting.with_pool(minReplicas=2)
    assert (await setting.scale()).desired == 2
    assert (await setting.scale(seconds=1000)).desired == 2


async def test_each_change_is_told_counted_and_marked_for_the_status(setting: Setting) -> None:
    setting.with_pool()
    state = await setting.scale(queued=11)
    assert state.scaled
    setting.with_replicas(2)
    await setting.scale()
    await setting.scale(seconds=60)
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=3))
    await setting.scale()
    assert setting.kit.take_events() == [
        ("WorkerPool", "default", "ScaledUp", "0 → 2: 11 queued, 0 running, 10 slots each"),
        ("WorkerPool", "default", "ScaledDown", "2 → 0: idle for 60 s"),
        ("WorkerPool", "default", "ScaledUp", "0 → 3: set by a person"),
    ]
    sample = setting.kit.metrics.registry.get_sample_value
    counted = {
        (direction, mode): sample("tasker_operator_scale_decisions_total", {"direction": direction, "mode": mode})
        for direction, mode in (("up", "operator"), ("down", "operator"), ("up", "manual"))
    }
    assert set(counted.values()) == {1}


async def test_a_round_that_changes_nothing_calls_nobody(setting: Setting) -> None:
    setting.with_pool()
    await setting.scale()
    setting.kit.queue("pools").take()
    state = await setting.scale(seconds=1)
    assert setting.kit.queue("pools").take() == []
    assert not state.scaled
    assert setting.kit.take_events() == []


@pytest.mark.parametrize("demand", [{"queued": 1}, {"running": 1}])
async def test_demand_that_a_status_shows_calls_the_pool(setting: Setting, demand: dict[str, int]) -> None:
    setting.with_pool(scaling={"mode": "manual"}, replicas=0)
    await setting.scale()
    setting.kit.queue("pools").take()
    state = await setting.scale(**demand)
    assert state.reason == "set by a person"
    assert setting.kit.queue("pools").take() == [KEY]


async def test_when_fewer_are_idle_than_may_go_the_idle_ones_go_first(setting: Setting) -> None:
    setting.with_pool(replicas=4)
    setting.busy(p0=1, p1=1, p2=1)
    await setting.scale(running=3)
    state = await setting.scale(running=3, seconds=31)
    assert (state.desired, state.reason) == (3, "4 → 3: the idle ones first")
    assert setting.drained() == {"p3"}
    setting.remove_pod("p3")
    setting.busy(p1=0, p2=0)
    await setting.scale(running=3, seconds=1)
    assert (await setting.scale(running=3, seconds=31)).desired == 1


async def test_what_holds_workers_back_is_said(setting: Setting) -> None:
    setting.with_pool(replicas=2)
    setting.busy(p0=3, p1=4)
    await setting.scale(running=7)
    state = await setting.scale(running=7, seconds=31)
    assert (state.desired, state.reason) == (2, "7 running; waiting for a worker to become idle")


async def test_of_idle_workers_no_more_go_than_have_to_and_those_chosen_earlier_first(setting: Setting) -> None:
    setting.with_pool(replicas=4)
    setting.kit.engine.registered_workers["p3"] = make_worker("p3", draining=True)
    setting.busy(p0=1)
    await setting.scale(running=25)
    state = await setting.scale(running=25, seconds=31)
    assert (state.desired, setting.drained(), setting.cheapest_to_delete()) == (3, {"p3"}, {"p3"})


async def test_a_pod_that_is_being_deleted_does_not_count_as_one_that_stays(setting: Setting) -> None:
    setting.with_pool(replicas=2, pods=3)
    gone = setting.kit.cluster.objects["Pod", "default", "p2"]
    going = {**gone["metadata"], "deletionTimestamp": "2031-01-01T00:00:00Z"}
    setting.kit.router.pod(setting.kit.cluster.store({**gone, "metadata": going}), "MODIFIED")
    await setting.scale(running=1)
    state = await setting.scale(running=1, seconds=31)
    assert state.desired == 1
    assert len(setting.drained()) == 1


async def test_pods_that_go_by_themselves_need_no_draining(setting: Setting) -> None:
    setting.with_pool(replicas=3, pods=1)

    async def read(namespace: str) -> list[WorkerInfo]:
        raise AssertionError("which of them are busy need not be known")

    setting.kit.engine.workers.read = read  # type: ignore[method-assign]
    await setting.scale(running=1)
    assert (await setting.scale(running=1, seconds=31)).desired == 1
    assert setting.drained() == set()


async def test_a_pod_that_cannot_be_marked_does_not_end_the_round(setting: Setting) -> None:
    """It may be gone already."""
    setting.with_pool(replicas=2)
    await setting.scale(running=1)
    for name in ("p0", "p1"):
        setting.kit.cluster.remove("Pod", "default", name)
    assert (await setting.scale(running=1, seconds=31)).desired == 1
    assert len(setting.drained()) == 1


async def test_workers_that_are_wanted_again_lose_their_mark(setting: Setting) -> None:
    setting.with_pool(replicas=3)
    await setting.scale()
    await setting.scale(seconds=61)
    assert setting.cheapest_to_delete() == {"p0", "p1", "p2"}
    state = await setting.scale(queued=11, draining=3)
    assert state.desired == 2
    assert len(setting.drained()) == len(setting.cheapest_to_delete()) == 1
    marked = [
        found["metadata"].get("annotations")
        for (kind, _, name), found in setting.kit.cluster.objects.items()
        if kind == "Pod" and name not in setting.cheapest_to_delete()
    ]
    assert all(not annotations for annotations in marked), "the mark is taken away, not only made dearer"


async def test_only_this_pools_draining_workers_are_wanted_again(setting: Setting) -> None:
    setting.with_pool(replicas=0, pods=1)
    setting.kit.engine.registered_workers = {
        "p0": make_worker("p0"),
        "other": make_worker("other", draining=True, pool="other"),
        "gone": make_worker("gone", draining=True),
    }
    await setting.scale(queued=1, draining=2)
    assert setting.drained() == {"other", "gone"}


async def test_without_draining_workers_nobody_asks_for_them(setting: Setting) -> None:
    setting.with_pool(replicas=0, pods=1)
    setting.kit.engine.registered_workers["p0"] = make_worker("p0", draining=True)
    await setting.scale(queued=1, draining=0)
    assert setting.drained() == {"p0"}


@pytest.mark.parametrize(("draining", "kept"), [(2, 2), (0, 0)])
async def test_a_number_that_somebody_raises_keeps_workers_that_were_to_go(
    setting: Setting, draining: int, kept: int
) -> None:
    setting.with_pool(replicas=1, pods=4, scaling={"mode": "manual"})
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=1))
    for name in ("p1", "p2", "p3"):
        setting.kit.engine.registered_workers[name] = make_worker(name, draining=True)
    await setting.scale()
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=3))
    state = await setting.scale(draining=draining)
    assert state.desired == 3
    assert len(setting.drained()) == 3 - kept


async def test_a_number_that_somebody_lowers_is_not_held_back_and_idle_workers_go_first(setting: Setting) -> None:
    setting.with_pool(replicas=3, scaling={"mode": "manual"})
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=3))
    setting.busy(p0=1, p1=1, p2=0)
    assert (await setting.scale(running=2)).reason == "set by a person"
    setting.kit.give(pool(scaling={"mode": "manual"}, replicas=1))
    state = await setting.scale(running=2)
    assert (state.desired, state.reason) == (1, "3 → 1: set by a person")
    assert setting.drained() == setting.cheapest_to_delete() == {"p2"}


async def test_a_number_that_comes_from_somebody_else_than_before_is_no_change_of_it(setting: Setting) -> None:
    """The operator's becomes an autoscaler's on the Deployment, then one's that writes it into the pool."""
    setting.with_pool(replicas=3)
    assert (await setting.scale(running=25)).desired == 3
    for desired in (None, 5, None):
        setting.kit.give(pool(scaling={"mode": "external"}, replicas=desired))
        state = await setting.scale(running=25)
        assert (state.desired, state.reason) == (desired, "set by an autoscaler")
    assert setting.kit.take_events() == []


async def test_an_external_pool_says_whose_number_it_is(setting: Setting) -> None:
    setting.with_pool(replicas=2, scaling={"mode": "external"})
    assert (await setting.scale()).reason == "set by an autoscaler"


@pytest.mark.parametrize("why", ["being deleted", "its namespace is"])
async def test_a_pool_that_goes_is_not_scaled(setting: Setting, why: str) -> None:
    made = setting.with_pool()
    if why == "being deleted":
        going = {**made["metadata"], "deletionTimestamp": "2031-01-01T00:00:00Z", "finalizers": ["x"]}
        setting.kit.give({**made, "metadata": going})
    else:
        setting.kit.caches.terminating_namespaces.add("default")
    other = pool("other")
    other["metadata"]["namespace"] = "elsewhere"
    setting.kit.give(other)
    await setting.scaler.reconcile_scale()
    assert setting.kit.states.get(KEY) is None
    assert setting.kit.states.get(ObjectKey(namespace="elsewhere", name="other")) is not None


async def test_an_idle_pool_counts_from_its_live_number_when_nothing_was_decided(setting: Setting) -> None:
    """As after its mode was changed: the number was an autoscaler's until now."""
    setting.with_pool(replicas=3, scaling={"mode": "external"})
    assert (await setting.scale()).desired is None
    setting.kit.give(pool())
    assert (await setting.scale(running=25)).desired == 3
    assert setting.kit.take_events() == []


async def test_without_a_deployment_it_counts_from_its_minimum(setting: Setting) -> None:
    setting.kit.give(pool(scaling={"mode": "external"}, minReplicas=2))
    assert (await setting.scale()).desired is None
    setting.kit.give(pool(minReplicas=2))
    assert (await setting.scale(running=15)).desired == 2
    assert setting.kit.take_events() == []


# Pods that may still register.


async def test_a_pod_may_register_for_as_long_as_a_worker_may_take_to_start(setting: Setting) -> None:
    setting.with_pool(replicas=1, pods=0)
    setting.show_pod("starting", ready=False, phase="Running")
    await setting.scale()
    setting.kit.pass_time(START_SECONDS - 0.001)
    assert (await setting.scale(seconds=100)).desired == 1
    setting.kit.pass_time(0.001)
    assert (await setting.scale(seconds=1)).desired == 0


# Managed pools.


def events_of(setting: Setting) -> list[tuple[str, str, str, str]]:
    return [event for event in setting.kit.take_events() if event[2].startswith("Managed")]


async def test_the_managed_pool_in_full(setting: Setting) -> None:
    setting.kit.give(template())
    setting.kit.pass_time(5)
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    made = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    assert made["metadata"]["labels"] == {"tasker.dev/managed": "true", "app.kubernetes.io/managed-by": "tasker"}
    message = "The namespace has templates and had no WorkerPool. Write one of your own to replace this one."
    assert events_of(setting) == [("WorkerPool", "default", "ManagedPoolCreated", message)]
    assert setting.kit.queue("pools").take() == [KEY]
    assert setting.kit.caches.pools.read(KEY) is not None, "it is known before its event comes"


async def test_the_grace_begins_with_the_oldest_template_and_a_wrong_clock_does_not_count(setting: Setting) -> None:
    later = template("later")
    later["metadata"]["creationTimestamp"] = "2031-01-01T00:00:04Z"
    setting.kit.give(template())
    setting.kit.give(later)
    setting.kit.pass_time(4)
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0
    setting.kit.pass_time(-9)
    assert await setting.namespaces.reconcile(NAMESPACE) == 10.0, "a clock a little ahead of ours"
    setting.kit.pass_time(-0.001)
    assert await setting.namespaces.reconcile(NAMESPACE) is None, "a clock that is wrong"
    assert (WORKER_POOL.kind, "default", "default") in setting.kit.cluster.objects


async def test_a_template_that_does_not_say_since_when_it_is_there_has_the_whole_grace(setting: Setting) -> None:
    undated = setting.kit.cluster.store(template())
    del undated["metadata"]["creationTimestamp"]
    setting.kit.router.template(undated, "ADDED")
    assert await setting.namespaces.reconcile(NAMESPACE) == 5.0


async def test_a_template_that_is_going_needs_no_pool(setting: Setting) -> None:
    going = template()
    going["metadata"] |= {"deletionTimestamp": "2031-01-01T00:00:00Z", "finalizers": ["x"]}
    setting.kit.give(going)
    setting.kit.pass_time(60)
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") not in setting.kit.cluster.objects


@pytest.mark.parametrize("gone", [True, False])
async def test_a_namespace_that_goes_or_is_gone_gets_no_pool(setting: Setting, gone: bool) -> None:
    """Its event has not come yet."""
    setting.kit.give(template())
    setting.kit.pass_time(60)
    if gone:
        setting.kit.cluster.remove("Namespace", None, "default")
    else:
        metadata = {"name": "default", "deletionTimestamp": "2031-01-01T00:00:00Z"}
        setting.kit.cluster.store({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") not in setting.kit.cluster.objects


async def test_a_pool_that_is_being_deleted_is_none(setting: Setting) -> None:
    setting.kit.give(template())
    going = pool("mine")
    going["metadata"] |= {"deletionTimestamp": "2031-01-01T00:00:00Z", "finalizers": ["x"]}
    setting.kit.give(going)
    setting.kit.pass_time(60)
    await setting.namespaces.reconcile(NAMESPACE)
    assert (WORKER_POOL.kind, "default", "default") in setting.kit.cluster.objects


async def managed(setting: Setting) -> None:
    """The namespace has a template and its managed pool, as the operator made it, observed once."""
    setting.kit.give(template())
    setting.kit.pass_time(5)
    await setting.namespaces.reconcile(NAMESPACE)
    await setting.scale()
    setting.kit.queue("pools").take()
    setting.kit.take_events()


def remove_template(setting: Setting) -> None:
    setting.kit.router.template(setting.kit.cluster.remove("TaskTemplate", "default", "order"), "DELETED")


async def test_the_managed_pool_goes_with_the_last_template_once_nothing_waits(setting: Setting) -> None:
    await managed(setting)
    remove_template(setting)
    state = await setting.scale(queued=1)
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0
    assert not state.retiring, "no other pool would take what is queued"
    state.desired = 0
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0, "its workers are still to come"
    setting.kit.states.forget(KEY)
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0, "nothing is known of its work"
    state = await setting.scale(running=1)
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0
    assert state.retiring
    state.desired = 0
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0, "a step is still running"
    state = await setting.scale()
    state.desired = 1
    assert await setting.namespaces.reconcile(NAMESPACE) == 1.0
    state.desired = 0
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") not in setting.kit.cluster.objects
    assert events_of(setting) == [
        ("WorkerPool", "default", "ManagedPoolRemoved", "The managed pool is no longer needed.")
    ]


async def test_a_removal_that_is_found_done_is_not_told_a_second_time(setting: Setting) -> None:
    """The namespace is looked at again before the deletion's event has come."""
    await managed(setting)
    remove_template(setting)
    await setting.scale()
    told: list[dict[str, str]] = []
    for _ in range(2):
        assert await setting.namespaces.reconcile(NAMESPACE) is None
        told.append(setting.kit.take_event_names())
    assert told[0] == told[1]
    assert told[0].keys() == {"ManagedPoolRemoved"}


async def test_two_operators_that_make_the_managed_pool_at_once_tell_it_once(setting: Setting) -> None:
    kit = setting.kit
    kit.give(template())
    kit.pass_time(5)
    get, told = kit.cluster.get, list[dict[str, str]]()

    async def too_early(resource: Any, namespace: str | None, name: str) -> Manifest | None:
        return None if resource is WORKER_POOL else await get(resource, namespace, name)

    kit.cluster.get = too_early  # type: ignore[method-assign]
    for _ in range(2):
        kit.caches = replace(kit.caches, pools=TypedCache(WorkerPool, kit.metrics))
        await kit.namespace_reconciler().reconcile(NAMESPACE)
        told.append(kit.take_event_names())
    assert told[0] == told[1]
    assert told[0].keys() == {"ManagedPoolCreated"}


async def test_of_two_pools_with_the_operators_mark_the_first_goes_and_then_the_other(setting: Setting) -> None:
    """As when somebody has copied the managed one, labels and all."""
    copy, default = (setting.kit.give(pool(name, labels={MANAGED_POOL_LABEL: "true"})) for name in ("copy", "default"))
    await setting.scale()
    for gone, left in ((copy, ["default"]), (default, [])):
        assert await setting.namespaces.reconcile(NAMESPACE) is None
        assert [name for kind, _, name in setting.kit.cluster.objects if kind == WORKER_POOL.kind] == left
        setting.kit.router.pool(gone, "DELETED")


async def test_a_managed_pool_that_is_needed_again_stays(setting: Setting) -> None:
    await managed(setting)
    remove_template(setting)
    state = await setting.scale(running=1)
    await setting.namespaces.reconcile(NAMESPACE)
    assert state.retiring
    setting.kit.give(template())
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert not state.retiring


async def test_a_retiring_pool_has_no_minimum(setting: Setting) -> None:
    setting.with_pool(minReplicas=2, replicas=2)
    state = await setting.scale()
    state.retiring = True
    assert (await setting.scale()).desired == 0


async def edit_as_a_person(setting: Setting, patch: dict[str, Any]) -> None:
    """Somebody patches the managed pool, and its event arrives."""
    path = WORKER_POOL.path("default", "default")
    live = await setting.kit.cluster._request(
        "PATCH", path, query={"fieldManager": "kubectl"}, body=patch, content_type="application/merge-patch+json"
    )
    setting.kit.router.pool(live, "MODIFIED")


async def test_a_managed_pool_that_a_person_edits_is_theirs(setting: Setting) -> None:
    await managed(setting)
    await edit_as_a_person(setting, {"spec": {"slots": 3}})
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    assert not live["metadata"].get("labels")
    assert live["spec"]["slots"] == 3
    assert live["spec"]["handlersFrom"], "slots alone would be no pool"
    assert setting.kit.queue("pools").take() == [KEY, KEY]
    known = setting.kit.caches.pools.read(KEY)
    assert known is not None and known.metadata.labels == {}
    remove_template(setting)
    await setting.scale()
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") in setting.kit.cluster.objects, "it does not go as ours would"


async def test_a_pool_that_became_a_persons_is_not_removed_in_the_same_breath(setting: Setting) -> None:
    """The last template has just gone, and nothing runs."""
    await managed(setting)
    await edit_as_a_person(setting, {"spec": {"slots": 3}})
    remove_template(setting)
    await setting.scale()
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert (WORKER_POOL.kind, "default", "default") in setting.kit.cluster.objects


@pytest.mark.parametrize("meanwhile", ["deleted", "released"])
async def test_a_managed_pool_that_is_gone_or_theirs_already_is_not_released_again(
    setting: Setting, meanwhile: str
) -> None:
    """The event of the person's edit has come, the next one not yet."""
    await managed(setting)
    await edit_as_a_person(setting, {"spec": {"slots": 3}})
    if meanwhile == "deleted":
        setting.kit.cluster.remove(WORKER_POOL.kind, "default", "default")
    else:
        live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
        setting.kit.cluster.store({**live, "metadata": {**live["metadata"], "labels": {}}})
    setting.kit.cluster.calls.clear()
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert setting.kit.cluster.calls == []


async def test_a_managed_pool_that_nobody_touched_costs_no_request(setting: Setting) -> None:
    await managed(setting)
    asked: list[tuple[str, str]] = []
    setting.kit.cluster.meanwhile = lambda verb, kind: asked.append((verb, kind))
    await setting.namespaces.reconcile(NAMESPACE)
    assert asked == []


async def test_labels_that_a_person_wrote_too_are_taken_from_a_pool_that_is_theirs(setting: Setting) -> None:
    """As with `kubectl apply` of what `kubectl get -o yaml` gave: nothing that is only given up would go."""
    await managed(setting)
    labels = {"tasker.dev/managed": "true", "app.kubernetes.io/managed-by": "tasker", "team": "shop"}
    live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    written = {name: live[name] for name in ("apiVersion", "kind")}
    written |= {
        "metadata": {"name": "default", "namespace": "default", "labels": labels},
        "spec": {"handlers": ["own"]},
    }
    path, query = WORKER_POOL.path("default", "default"), {"fieldManager": "kubectl", "force": "true"}
    applied = await setting.kit.cluster._request(
        "PATCH", path, query=query, body=written, content_type="application/apply-patch+yaml"
    )
    setting.kit.router.pool(applied, "MODIFIED")
    await setting.namespaces.reconcile(NAMESPACE)
    live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    assert live["metadata"]["labels"] == {"team": "shop"}
    assert live["spec"]["handlers"] == ["own"]
    assert "handlersFrom" not in live["spec"], "what the settings gave is gone with us"


async def test_a_managed_pool_whose_spec_only_we_wrote_stays_ours(setting: Setting) -> None:
    """The scale subresource, a label or an annotation change it too, and make it nobody's own."""
    await managed(setting)
    await edit_as_a_person(setting, {"metadata": {"annotations": {"team": "shop"}}})
    live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    live["metadata"]["generation"] = 2
    setting.kit.router.pool(setting.kit.cluster.store(live), "MODIFIED")
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    live = setting.kit.cluster.objects[WORKER_POOL.kind, "default", "default"]
    assert live["metadata"]["labels"][MANAGED_POOL_LABEL] == "true"
    remove_template(setting)
    await setting.scale()
    await setting.namespaces.reconcile(NAMESPACE)
    assert (WORKER_POOL.kind, "default", "default") not in setting.kit.cluster.objects, "it goes as ours does"


async def test_the_runs_of_a_namespace_that_goes_are_cancelled_by_name(setting: Setting) -> None:
    setting.kit.caches.terminating_namespaces.add("default")
    setting.kit.give(template())
    assert await setting.namespaces.reconcile(NAMESPACE) is None
    assert setting.kit.engine.acted == [("cancel_namespace", "default", "operator", "the namespace was deleted")]
