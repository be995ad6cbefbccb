"""The official Python client: objects with its models, watches, patches, and leader election by Lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes import client, config, watch
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from support.apiserver import Kubectl

GROUP = ("tasker.dev", "v1alpha1")


@pytest.fixture
def api_client(kubectl: Kubectl) -> client.ApiClient:
    found: client.ApiClient = config.new_client_from_config(str(kubectl.kubeconfig))
    return found


@pytest.fixture
async def aio_api_client(kubectl: Kubectl) -> AsyncIterator[Any]:
    configuration = aio_client.Configuration()
    await aio_config.load_kube_config(str(kubectl.kubeconfig), client_configuration=configuration)
    async with aio_client.ApiClient(configuration) as found:
        yield found


def test_typed_objects_round_trip(kubectl: Kubectl, api_client: client.ApiClient) -> None:
    core, apps, namespace = client.CoreV1Api(api_client), client.AppsV1Api(api_client), kubectl.namespace
    created = core.create_namespaced_config_map(
        namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a"), data={"k": "v"})
    )
    assert created.metadata is not None
    assert created.metadata.uid
    assert core.read_namespaced_config_map("a", namespace).data == {"k": "v"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "w"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="main", image="registry.example/none:1")]),
    )
    spec = client.V1DeploymentSpec(
        replicas=0, selector=client.V1LabelSelector(match_labels={"app": "w"}), template=template
    )
    apps.create_namespaced_deployment(namespace, client.V1Deployment(metadata=client.V1ObjectMeta(name="w"), spec=spec))
    scale = apps.patch_namespaced_deployment_scale("w", namespace, {"spec": {"replicas": 2}})
    assert scale.spec is not None
    assert scale.spec.replicas == 2
    assert apps.read_namespaced_deployment("w", namespace).spec.replicas == 2
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a")))
    assert refused.value.status == 409
    core.delete_collection_namespaced_config_map(namespace, field_selector="metadata.name=a")
    with pytest.raises(client.ApiException) as missing:
        core.read_namespaced_config_map("a", namespace)
    assert missing.value.status == 404
    event = client.EventsV1Event(
        metadata=client.V1ObjectMeta(generate_name="a-"),
        event_time=datetime.now(UTC),
        action="Scale",
        reason="ScaledUp",
        note="from 0 to 1",
        type="Normal",
        regarding=client.V1ObjectReference(kind="ConfigMap", name="a", namespace=namespace),
        reporting_controller="tasker.dev/operator",
        reporting_instance="one",
    )
    client.EventsV1Api(api_client).create_namespaced_event(namespace, event)
    (seen,) = core.list_namespaced_event(namespace, field_selector="reason=ScaledUp").items
    assert (seen.message, seen.involved_object.name) == ("from 0 to 1", "a")


def test_watch_streams_from_a_list_on(kubectl: Kubectl, api_client: client.ApiClient) -> None:
    custom, namespace = client.CustomObjectsApi(api_client), kubectl.namespace
    body = {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": "t"},
        "spec": {"templateRef": {"name": "x"}},
    }
    listed: Any = custom.list_namespaced_custom_object(*GROUP, namespace, "tasks")
    custom.create_namespaced_custom_object(*GROUP, namespace, "tasks", body)
    custom.patch_namespaced_custom_object_status(*GROUP, namespace, "tasks", "t", {"status": {"state": "pending"}})
    custom.delete_namespaced_custom_object(*GROUP, namespace, "tasks", "t")
    stream = watch.Watch().stream(
        custom.list_namespaced_custom_object,
        *GROUP,
        namespace,
        "tasks",
        resource_version=listed["metadata"]["resourceVersion"],
        timeout_seconds=2,
    )
    events = [(event["type"], event["object"].get("status", {}).get("state")) for event in stream]
    assert events == [("ADDED", None), ("MODIFIED", "pending"), ("DELETED", "pending")]


async def test_one_of_two_candidates_leads_and_the_other_takes_over(kubectl: Kubectl, aio_api_client: Any) -> None:
    leads: list[str] = []
    changed = asyncio.Event()

    def candidate(name: str) -> asyncio.Task[None]:
        async def started() -> None:
            leads.append(name)
            changed.set()
            await asyncio.Event().wait()

        async def stopped() -> None:
            leads.append(f"{name} stopped")

        lock = LeaseLock("leader", kubectl.namespace, name, aio_api_client)
        settings = Config(
            lock,
            lease_duration=2,
            renew_deadline=1.5,
            retry_period=1,
            onstarted_leading=started,
            onstopped_leading=stopped,
        )
        return asyncio.create_task(LeaderElection(settings).run())

    # The Lease is there before: the client's own creation of one fails in its check of arguments (37.0.2).
    spec = {"holderIdentity": "nobody", "leaseDurationSeconds": 1, "renewTime": "2026-01-01T00:00:00.000000Z"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader"}, "spec": spec}
    kubectl.apply(lease)
    first = candidate("first")
    async with asyncio.timeout(10):
        await changed.wait()
    changed.clear()
    second = candidate("second")
    assert kubectl.get("lease", "leader")["spec"]["holderIdentity"] == "first"
    assert leads == ["first"]
    first.cancel()
    async with asyncio.timeout(15):
        await changed.wait()
    assert leads[-1] == "second"
    assert kubectl.get("lease", "leader")["spec"]["holderIdentity"] == "second"
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
