"""The node runs a pod as a process: what it gets, how it is watched, how it ends."""

from __future__ import annotations

import base64
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster.node.client import CONFIG_MAPS, NODES, PODS, SECRETS
from devcluster.node.objects import Key, find_condition, is_true
from support.node_cluster import NodeCluster, container, is_alive, make_config_map, pod
from support.waiting import eventually_async


def status_of(found: dict[str, Any]) -> dict[str, Any]:
    """The status of the pod's one container; empty while it has none."""
    statuses = (found.get("status") or {}).get("containerStatuses") or [{}]
    return dict(statuses[0])


def waiting(found: dict[str, Any]) -> dict[str, Any]:
    """Why its one container does not run."""
    return dict((status_of(found).get("state") or {}).get("waiting") or {})


async def test_pod_becomes_a_process_with_its_arguments_and_a_port(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("one", container("serve", "--pod", "$(POD)", env=[field("POD", "metadata.name")])))
    found = await cluster.until_ready("one")
    told = await cluster.ask(found)
    assert told["arguments"] == ["serve", "--pod", "one"]
    assert found["spec"]["nodeName"] == "devcluster"
    assert found["status"]["phase"] == "Running"
    assert found["status"]["podIP"] == "127.0.0.1"
    assert {name for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready") if is_true(found, name)} == {
        "PodScheduled",
        "Initialized",
        "ContainersReady",
        "Ready",
    }
    status = status_of(found)
    assert (status["ready"], status["started"], status["restartCount"]) == (True, True, 0)
    assert status["containerID"] == f"process://{told['pid']}"
    for reason in ("Scheduled", "Created", "Started"):
        await cluster.event_of("one", reason)


def field(name: str, path: str) -> dict[str, Any]:
    """A variable from a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def entry(name: str, kind: str, source: str, key: str, **options: Any) -> dict[str, Any]:
    """A variable from a ConfigMap or Secret."""
    return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": source, "key": key, **options}}}


async def test_environment_is_what_the_spec_says_and_nothing_of_the_nodes(
    cluster: NodeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://the-nodes-own")
    await make_config_map(cluster, "colours", warm="red", cold="blue")
    secret = {"metadata": {"name": "keys"}, "data": {"url": base64.b64encode(b"postgresql://pods").decode()}}
    await cluster.create(SECRETS, secret)
    env = [
        {"name": "PLAIN", "value": "text"},
        {"name": "EXPANDED", "value": "$(PLAIN)+$(CFG_warm)+$$(PLAIN)+$(UNKNOWN)"},
        entry("SECRET", "secret", "keys", "url"),
        entry("COLOUR", "configMap", "colours", "cold"),
        entry("ABSENT", "configMap", "colours", "none", optional=True),
        field("WHERE", "metadata.namespace"),
        field("WHO", "metadata.uid"),
        field("LABEL", "metadata.labels['app']"),
        field("ADDRESS", "status.podIP"),
        {"name": "PORT", "value": "8081"},
        {"name": "URL", "value": "http://127.0.0.1:$(PORT)/"},
    ]
    sources = [{"prefix": "CFG_", "configMapRef": {"name": "colours"}}, {"secretRef": {"name": "no", "optional": True}}]
    body = pod("env", container("serve", env=env, envFrom=sources))
    body["metadata"]["labels"] = {"app": "shop"}
    await cluster.create(PODS, body)
    found = await cluster.until_ready("env")
    given = (await cluster.ask(found))["environment"]
    assert given["EXPANDED"] == "text+red+$(PLAIN)+$(UNKNOWN)"
    assert given["SECRET"] == "postgresql://pods"
    assert (given["COLOUR"], given["CFG_cold"]) == ("blue", "blue")
    assert (given["WHERE"], given["WHO"], given["LABEL"]) == ("default", found["metadata"]["uid"], "shop")
    assert (given["ADDRESS"], given["HOSTNAME"]) == ("127.0.0.1", "env")
    assert given["PORT"] != "8081"
    assert given["URL"] == f"http://127.0.0.1:{given['PORT']}/"
    assert "ABSENT" not in given
    assert "DATABASE_URL" not in given
    assert "KUBECONFIG" not in given


def read(file: Path) -> bytes:
    """The content of a small file."""
    return file.read_bytes()


async def test_mounted_volumes_are_found_through_rewritten_paths(cluster: NodeCluster) -> None:
    await make_config_map(cluster, "handlers", **{"orders.py": "print('orders')"})
    secret = {"metadata": {"name": "keys"}, "data": {"token": base64.b64encode(b"\x00\xff").decode()}}
    await cluster.create(SECRETS, secret)
    volumes = [
        {"name": "handlers", "configMap": {"name": "handlers"}},
        {"name": "scratch", "emptyDir": {}},
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"secret": {"name": "keys", "items": [{"key": "token", "path": "deep/token"}]}},
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                ]
            },
        },
    ]
    mounts = [
        {"name": "handlers", "mountPath": "/etc/tasker/handlers"},
        {"name": "scratch", "mountPath": "/scratch", "subPath": "mine"},
        {"name": "all", "mountPath": "/etc/tasker"},
    ]
    env = [
        {"name": "HANDLERS", "value": "/etc/tasker/handlers"},
        {"name": "FILE", "value": "/etc/tasker/handlers/orders.py"},
        {"name": "TOKEN", "value": "/etc/tasker/deep/token"},
        {"name": "SCRATCH", "value": "/scratch"},
        {"name": "OTHER", "value": "/etc/taskers"},
    ]
    found = container("serve", "/scratch/x", env=env, volumeMounts=mounts, workingDir="/scratch")
    await cluster.create(PODS, pod("vol", found, volumes=volumes))
    ready = await cluster.until_ready("vol")
    told = await cluster.ask(ready)
    given = told["environment"]
    assert await cluster.ask(ready, f"/file?{given['FILE']}") == "print('orders')"
    assert Path(given["FILE"]).parent == Path(given["HANDLERS"])
    token = Path(given["TOKEN"])
    assert read(token) == b"\x00\xff"
    assert read(token.parents[1] / "name") == b"vol"
    assert told["folder"] == given["SCRATCH"]
    assert told["arguments"][1] == f"{given['SCRATCH']}/x"
    assert given["OTHER"] == "/etc/taskers"
    assert given["HANDLERS"].startswith(str(cluster.folder / "node"))


async def test_missing_configuration_waits_with_a_reason_and_starts_when_it_comes(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("early", container("serve", env=[entry("A", "configMap", "later", "a")])))
    found = await cluster.until(PODS, "early", lambda pod: waiting(pod).get("reason") == "CreateContainerConfigError")
    assert waiting(found)["message"] == 'configmap "later" not found'
    assert found["status"]["phase"] == "Pending"
    assert "later" in await cluster.event_of("early", "Failed")
    await make_config_map(cluster, "later", a="1")
    ready = await cluster.until_ready("early")
    assert status_of(ready)["restartCount"] == 0


async def test_unknown_image_stays_pending_and_says_what_there_is(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("strange", container(image="docker.io/library/nginx:1.29")))
    found = await cluster.until(PODS, "strange", lambda pod: waiting(pod).get("reason") == "ErrImageNeverPull")
    assert found["status"]["phase"] == "Pending"
    assert "docker.io/library/nginx:1.29" in waiting(found)["message"]
    assert "*tester" in waiting(found)["message"]
    assert await cluster.event_of("strange", "ErrImageNeverPull") == waiting(found)["message"]


async def test_command_of_a_pod_is_never_run(cluster: NodeCluster, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    await cluster.create(PODS, pod("evil", container(command=["/bin/sh", "-c", f"touch {proof}"])))
    found = await cluster.until(PODS, "evil", lambda pod: waiting(pod).get("reason") == "Unsupported")
    assert waiting(found)["message"].startswith(
        "spec.containers[0].command: this node runs only the programs of images"
    )
    await cluster.event_of("evil", "Unsupported")
    assert not proof.exists()


async def test_what_is_not_supported_is_refused_with_its_path(cluster: NodeCluster) -> None:
    odd = container(
        livenessProbe={"exec": {"command": ["true"]}},
        lifecycle={"preStop": {"sleep": {"seconds": 1}}},
        securityContext={"runAsNonRoot": True},
        resources={"limits": {"memory": "1Gi"}},
    )
    volumes = [{"name": "host", "hostPath": {"path": "/etc"}}]
    init = [{"name": "first", "image": "tester"}]
    await cluster.create(PODS, pod("odd", odd, volumes=volumes, initContainers=init))
    found = await cluster.until(PODS, "odd", lambda pod: waiting(pod).get("reason") == "Unsupported")
    paths = {line.partition(":")[0] for line in waiting(found)["message"].split("; ")}
    assert paths == {
        "spec.initContainers",
        "spec.volumes[0].hostPath",
        "spec.containers[0].livenessProbe.exec",
        "spec.containers[0].lifecycle",
    }


async def test_pod_that_selects_another_node_is_not_scheduled(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("picky", nodeSelector={"disk": "ssd"}))
    found = await cluster.until(PODS, "picky", lambda pod: find_condition(pod, "PodScheduled") is not None)
    condition = find_condition(found, "PodScheduled")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    assert "disk=ssd" in condition["message"]
    assert "nodeName" not in found["spec"]


async def test_pod_of_another_node_is_left_alone(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("theirs", nodeName="elsewhere"))
    await cluster.create(PODS, pod("ours"))
    await cluster.until_ready("ours")
    assert (await cluster.get(PODS, "theirs")).get("status", {}).get("phase") in (None, "Pending")
    assert not (cluster.server.logs_folder / "default" / "theirs").exists()


async def test_not_ready_until_the_readiness_probe_succeeds_and_again_when_it_fails(cluster: NodeCluster) -> None:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    await cluster.create(PODS, pod("shy", container(env=[{"name": "READY", "value": "0"}], readinessProbe=probe)))
    found = await cluster.until(PODS, "shy", lambda pod: "running" in (status_of(pod).get("state") or {}))
    assert not is_true(found, "Ready")
    assert "statuscode: 503 (told to say no)" in await cluster.event_of("shy", "Unhealthy")
    await cluster.ask(found, "/set/ready/1")
    await cluster.until_ready("shy")
    await cluster.ask(found, "/set/ready/0")
    found = await cluster.until(PODS, "shy", lambda pod: not is_true(pod, "Ready"))
    assert status_of(found)["restartCount"] == 0


async def test_failed_liveness_restarts_the_container(cluster: NodeCluster) -> None:
    probe = {"httpGet": {"path": "/live", "port": 8081}, "periodSeconds": 1, "failureThreshold": 1}
    await cluster.create(PODS, pod("ill", container(livenessProbe=probe)))
    found = await cluster.until_ready("ill")
    first = (await cluster.ask(found))["pid"]
    await cluster.ask(found, "/set/live/0")
    found = await cluster.until(PODS, "ill", lambda pod: status_of(pod).get("restartCount") == 1)
    assert not is_alive(first)
    assert status_of(found)["lastState"]["terminated"]["exitCode"] == 143
    assert "failed liveness probe" in await cluster.event_of("ill", "Killing")


async def test_startup_probe_holds_back_the_others(cluster: NodeCluster) -> None:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 100}
    live = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    env = [{"name": "READY", "value": "0"}]
    await cluster.create(PODS, pod("slow", container(env=env, startupProbe=probe, livenessProbe=live)))
    found = await cluster.until(PODS, "slow", lambda pod: "running" in (status_of(pod).get("state") or {}))
    assert "Startup probe failed" in await cluster.event_of("slow", "Unhealthy")
    assert (status_of(found)["started"], status_of(found)["ready"]) == (False, False)
    await cluster.ask(found, "/set/ready/1")
    found = await cluster.until_ready("slow")
    assert status_of(found)["restartCount"] == 0


async def test_ended_container_is_restarted_at_once_and_then_with_back_off(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("crash", container("exit", "3")))
    found = await cluster.until(PODS, "crash", lambda pod: waiting(pod).get("reason") == "CrashLoopBackOff")
    assert found["status"]["phase"] == "Running"
    assert status_of(found)["lastState"]["terminated"]["exitCode"] == 3
    assert status_of(found)["restartCount"] >= 1
    assert "back-off 1s restarting failed container=worker" in waiting(found)["message"]
    await cluster.event_of("crash", "BackOff")
    await cluster.until(PODS, "crash", lambda pod: status_of(pod).get("restartCount", 0) >= 2)
    assert cluster.log("crash", "worker.previous").startswith("up ")


async def test_killed_process_is_replaced(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("victim"))
    found = await cluster.until_ready("victim")
    os.kill((await cluster.ask(found))["pid"], signal.SIGKILL)
    found = await cluster.until(
        PODS, "victim", lambda pod: status_of(pod).get("restartCount") == 1 and is_true(pod, "Ready")
    )
    ended = status_of(found)["lastState"]["terminated"]
    assert (ended["exitCode"], ended["signal"], ended["reason"]) == (137, 9, "Error")


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (4, "Failed")])
async def test_pod_that_is_not_restarted_ends(cluster: NodeCluster, code: int, phase: str) -> None:
    await cluster.create(PODS, pod("once", container("exit", str(code)), restartPolicy="Never"))
    found = await cluster.until(PODS, "once", lambda pod: pod["status"].get("phase") == phase)
    assert status_of(found)["state"]["terminated"]["exitCode"] == code
    assert status_of(found)["restartCount"] == 0


async def test_deleted_pod_gets_sigterm_and_is_gone_with_all_it_started(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("family", container("family"), terminationGracePeriodSeconds=30))
    told = await cluster.ask(await cluster.until_ready("family"))
    began = time.monotonic()
    await cluster.client.delete(PODS, Key("default", "family"))
    await cluster.gone(PODS, "family")
    assert time.monotonic() - began < 5
    assert not is_alive(told["pid"])
    assert not is_alive(told["child"])
    assert await cluster.event_of("family", "Killing") == "Stopping container worker"
    assert not list((cluster.folder / "node" / "pods").iterdir())


async def test_stubborn_process_is_killed_when_its_grace_is_over(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("deaf", container("stubborn"), terminationGracePeriodSeconds=1))
    told = await cluster.ask(await cluster.until_ready("deaf"))
    began = time.monotonic()
    await cluster.client.delete(PODS, Key("default", "deaf"))
    await cluster.gone(PODS, "deaf")
    assert time.monotonic() - began >= 0.9
    assert not is_alive(told["pid"])
    assert "not yet" in cluster.log("deaf")


async def ended(pid: int) -> None:
    """Wait until a process is no more."""

    async def probe() -> bool:
        return not is_alive(pid)

    await eventually_async(probe, what=f"process {pid} ends")


async def test_patience_can_be_lost_during_the_grace(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("deaf", container("stubborn"), terminationGracePeriodSeconds=300))
    told = await cluster.ask(await cluster.until_ready("deaf"))
    await cluster.client.delete(PODS, Key("default", "deaf"))
    await cluster.until(PODS, "deaf", lambda pod: not is_true(pod, "Ready"))
    await cluster.client.delete(PODS, Key("default", "deaf"), grace_seconds=0)
    await cluster.gone(PODS, "deaf")
    await ended(told["pid"])


async def test_pod_of_the_same_name_is_another_pod(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("twin", container("stubborn")))
    first = await cluster.ask(await cluster.until_ready("twin"))
    await cluster.client.delete(PODS, Key("default", "twin"), grace_seconds=0)
    again = await cluster.create(PODS, pod("twin"))
    found = await cluster.until_ready("twin")
    assert found["metadata"]["uid"] == again["metadata"]["uid"]
    assert status_of(found)["restartCount"] == 0
    await ended(first["pid"])


async def test_two_containers_have_a_process_and_a_log_each(cluster: NodeCluster) -> None:
    side = {**container("exit", "1"), "name": "side"}
    await cluster.create(PODS, pod("pair", container(), side))
    found = await cluster.until(PODS, "pair", lambda pod: len(pod["status"].get("containerStatuses") or ()) == 2)
    found = await cluster.until(PODS, "pair", lambda pod: "waiting" in pod["status"]["containerStatuses"][1]["state"])
    condition = find_condition(found, "Ready")
    assert condition is not None
    assert condition["message"] == "containers with unready status: [side]"
    assert cluster.log("pair", "side").startswith("up ")


async def test_logs_are_what_kubectl_shows(cluster: NodeCluster) -> None:
    await cluster.create(PODS, pod("talker", container("serve", "hello")))
    await cluster.until_ready("talker")

    async def shown() -> bool:
        # Without a readiness probe a pod is ready as soon as its process is there.
        return (await cluster.kubectl("logs", "talker")).rstrip().endswith("serve hello")

    await eventually_async(shown, what="kubectl logs shows the line")


async def test_configuration_in_a_volume_follows_its_config_map(
    cluster: NodeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devcluster.node.kubelet.REFRESH_SECONDS", 0.0)
    await make_config_map(cluster, "live", a="old", b="kept")
    mounts = [{"name": "live", "mountPath": "/live"}]
    volumes = [{"name": "live", "configMap": {"name": "live"}}]
    found = container(env=[{"name": "LIVE", "value": "/live"}], volumeMounts=mounts)
    await cluster.create(PODS, pod("reader", found, volumes=volumes))
    folder = Path((await cluster.ask(await cluster.until_ready("reader")))["environment"]["LIVE"])
    assert (folder / "a").read_text() == "old"
    await cluster.patch(CONFIG_MAPS, "live", {"data": {"a": "new", "b": None, "c": "more"}})
    await cluster.patch(PODS, "reader", {"metadata": {"labels": {"touched": "yes"}}})

    async def followed() -> bool:
        return (folder / "a").read_text() == "new"

    await eventually_async(followed, what="the file follows")
    assert (folder / "c").read_text() == "more"
    assert not (folder / "b").exists()


async def test_node_object_tells_what_it_is(cluster: NodeCluster) -> None:
    node = await cluster.client.get(NODES, Key("", "devcluster"))
    assert is_true(node, "Ready")
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"] == "process://1"
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "devcluster"


async def test_nothing_is_written_while_nothing_happens(cluster: NodeCluster) -> None:
    async def version(name: str) -> str:
        return str((await cluster.get(PODS, name))["metadata"]["resourceVersion"])

    await cluster.create(PODS, pod("calm"))
    await cluster.create(PODS, pod("strange", container(image="nginx")))
    await cluster.create(PODS, pod("evil", container(command=["true"])))
    await cluster.until_ready("calm")
    await cluster.event_of("evil", "Unsupported")
    await cluster.until(PODS, "strange", lambda pod: bool(waiting(pod)))
    # An unrelated write to each makes the node look again: it must find nothing to do.
    names = ("calm", "strange", "evil")
    for name in names:
        await cluster.patch(PODS, name, {"metadata": {"labels": {"touched": "yes"}}})
    before = [await version(name) for name in names]
    await cluster.create(PODS, pod("marker"))
    await cluster.until_ready("marker")
    assert [await version(name) for name in names] == before


def last_end(pod: dict[str, Any]) -> dict[str, Any]:
    """How the last run of its container last_end."""
    status = status_of(pod)
    state = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
    return dict(state or {})


async def test_the_end_of_the_log_tells_of_an_end_with_an_error_when_asked_to(cluster: NodeCluster) -> None:
    policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    await cluster.create(PODS, pod("told", container("print", "90", "why it stopped", "1", **policy)))
    found = await cluster.until(PODS, "told", last_end)
    lines = last_end(found)["message"].splitlines()
    assert len(lines) == 80
    assert lines[-1] == "why it stopped 89"
    await cluster.create(PODS, pod("long", container("print", "30", "x" * 100, "1", **policy)))
    found = await cluster.until(PODS, "long", last_end)
    assert len(last_end(found)["message"]) == 2048
    once = {"restartPolicy": "Never"}
    await cluster.create(PODS, pod("well", container("print", "1", "all is well", "0", **policy), **once))
    assert "message" not in last_end(await cluster.until(PODS, "well", last_end))
    await cluster.create(PODS, pod("mute", container("print", "1", "why it stopped", "1"), **once))
    assert "message" not in last_end(await cluster.until(PODS, "mute", last_end))


async def test_a_message_left_in_the_termination_file_comes_before_the_log(cluster: NodeCluster) -> None:
    fields = {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "terminationMessagePath": "/run/last-words",
        "env": [{"name": "LAST_WORDS", "value": "/run/last-words"}],
    }
    await cluster.create(PODS, pod("told", container("leave", "the disk is full", **fields), restartPolicy="Never"))
    assert last_end(await cluster.until(PODS, "told", last_end))["message"] == "the disk is full"


async def test_the_command_of_an_image_passes_the_containers_variables_on(cluster: NodeCluster) -> None:
    image = {"image": "registry.example/team/messenger:1.0"}
    leaves = container("leave", "the disk is full", **image)
    await cluster.create(PODS, pod("told", leaves, restartPolicy="Never"))
    assert last_end(await cluster.until(PODS, "told", last_end))["message"] == "the disk is full"
    await cluster.create(PODS, pod("serves", container(**image)))
    assert (await cluster.ask(await cluster.until_ready("serves")))["environment"]["WHO"] == "serves"
