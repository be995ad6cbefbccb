"""A cluster with the product running on it, for tests that only use kubectl; each test has a namespace of its own.

By default a cluster of this process: embedded Postgres, API server and node, and the operator beside them. The
variables of tests/cluster/README.md put a cluster of somebody else's in its place; what is made there is removed in
the end.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.kubectl import find_kubectl
from support.apiserver import Api, api_of
from support.bare_cluster import OPERATOR_KUBECONFIG, OPERATOR_USER
from support.chart import MATRIX
from support.cluster_settings import ClusterSettings, WrongVariables, another_name
from support.helm import find_helm
from support.installation import ChartInstallation, Installation, OutsideInstallation, Place
from support.postgres import TestServer
from support.rbac import Call, grants_of
from support.suite_database import suite_database
from support.waiting import PATIENCE, eventually

RUN_LABEL = "tasker.dev/test-run"
OUR_KINDS = ("tasks", "tasktemplates", "workerpools")

HANDLERS = textwrap.dedent(
    '''
    """Handlers of the cluster tests."""

    import time

    from tasker_worker import PermanentError, step_handler


    @step_handler("succeed")
    def succeed(context):
        return {"done": context.step_name}


    @step_handler("sleep")
    def sleep(context):
        end = time.monotonic() + context.get_config("seconds", 1.0)
        while time.monotonic() < end and not context.cancelled:
            time.sleep(0.05)
        return {"slept": True}


    @step_handler("refuse")
    def refuse(context):
        raise PermanentError("the card was declined")


    @step_handler("flaky")
    def flaky(context):
        if context.attempt < 3:
            raise ConnectionError(f"attempt {context.attempt}")
        return {"attempts": context.attempt}
    '''
)


class KubectlFailed(AssertionError):
    """kubectl ended with an error; its message is what the API server said."""


class Namespace:
    """kubectl in one namespace."""

    def __init__(self, kubeconfig: Path, name: str) -> None:
        self.kubeconfig = kubeconfig
        self.name = name

    def kubectl(self, *arguments: str, given: str | None = None, timeout: float = 60.0) -> str:
        """What the command printed. Raises `KubectlFailed`."""
        command = [str(find_kubectl()), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.name}", *arguments]
        # What kubectl knows of a server's kinds is kept for hours under its address: another run's may be another's.
        cache = {**os.environ, "KUBECACHEDIR": str(self.kubeconfig.parent / "kubectl-cache")}
        ended = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=timeout, check=False, env=cache
        )
        if ended.returncode:
            raise KubectlFailed(ended.stderr.strip())
        return ended.stdout

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(manifests))

    def refused(self, *manifests: Mapping[str, Any]) -> str:
        """What the API server says against the manifests."""
        with pytest.raises(KubectlFailed) as caught:
            self.apply(*manifests)
        return str(caught.value)

    def patch(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "--patch", json.dumps(patch))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return found

    def list(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *arguments, "--output=json"))["items"]
        return items

    def exists(self, kind: str, name: str) -> bool:
        return bool(self.kubectl("get", kind, name, "--ignore-not-found", "--output=name").strip())

    def status(self, kind: str, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get(kind, name).get("status") or {}
        return status

    def wait(self, condition: str, *what: str, seconds: float = 30.0) -> None:
        """`kubectl wait --for=…`, for `seconds` times `PATIENCE`. Raises `KubectlFailed` when it did not come."""
        seconds *= PATIENCE
        self.kubectl("wait", f"--for={condition}", f"--timeout={seconds:.0f}s", *what, timeout=seconds + 10)

    def condition(self, kind: str, name: str, condition: str) -> tuple[str, str, str]:
        """Status, reason and message; empty strings while it is not there."""
        for found in self.status(kind, name).get("conditions") or ():
            if found["type"] == condition:
                return found["status"], found["reason"], found["message"]
        return "", "", ""

    def eventually_condition(
        self, kind: str, name: str, condition: str, status: str, reason: str, *, seconds: float = 20.0
    ) -> str:
        """The message of the condition once it has that status and reason."""

        def probe() -> str:
            found = self.condition(kind, name, condition)
            assert found[:2] == (status, reason), found
            return found[2] or "-"

        return eventually(probe, timeout=seconds, interval=0.1)

    def event_reasons(self, name: str) -> set[str]:
        """The reasons of the Events about the objects of that name."""
        events = self.list("events", f"--field-selector=involvedObject.name={name}")
        return {str(event["reason"]) for event in events}


class ClusterUnderTest:
    """One cluster for all tests of the process, with the product on it as far as the tests have asked for it."""

    def __init__(self, installation: Installation, run: str) -> None:
        self.installation = installation
        self.settings = installation.place.settings
        self.kubeconfig = installation.place.kubeconfig
        self._run = run
        self._count = 0
        self._is_installed = False

    @property
    def selector(self) -> str:
        """Of everything that the suite makes outside of its namespaces, and of those."""
        return f"{RUN_LABEL}={self._run}"

    def serve(self, *, operator: bool) -> None:
        """The definitions are there, and an operator runs or none does."""
        if not self._is_installed:
            self.installation.install()
            self._is_installed = True
        if operator and not self.installation.is_running:
            self.installation.resume()
        elif not operator and self.installation.is_running:
            self.installation.pause()

    def uninstall(self) -> None:
        """The next test that needs the product installs it again."""
        self.installation.uninstall()
        self._is_installed = False

    @contextmanager
    def namespace(self, **labels: str) -> Iterator[Namespace]:
        """A new namespace where only restricted pods may run, deleted afterwards."""
        self._count += 1
        namespace = Namespace(self.kubeconfig, f"{namespace_prefix(self._run)}{self._count}")
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": namespace.name, "labels": {RUN_LABEL: self._run, **restricted, **labels}}
        namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        try:
            yield namespace
        finally:
            namespace.kubectl("delete", "namespace", namespace.name, "--wait=false", "--ignore-not-found")

    def second_worker_image(self, first: str) -> str | None:
        """An image that is not called `first`, with the workers in it; None when nodes know none."""
        if self.settings.second_worker_image is not None:
            return self.settings.second_worker_image
        return another_name(first, self.installation.kubectl.get("nodes")["items"])

    def leave(self) -> None:
        """Takes everything of ours off the cluster."""
        kubectl = self.installation.kubectl
        system = self.installation.place.system_namespace
        eventually(lambda: self._left() <= {system}, timeout=60, interval=0.5, what="our namespaces are gone")
        self.installation.uninstall()
        kubectl("delete", "namespaces", "--selector", self.selector, "--timeout=120s", timeout=150)
        self.installation.remove_definitions()

    def _left(self) -> set[str]:
        """The names of our namespaces. What a failed test's finalizer holds in them is let go."""
        kubectl = self.installation.kubectl
        names = kubectl("get", "namespaces", "--selector", self.selector, "--output=jsonpath={.items[*].metadata.name}")
        for name in names.split():
            for kind in OUR_KINDS:
                held = kubectl.run("get", kind, "--namespace", name, "--output=name").out.split()
                for each in held:
                    free = '{"metadata":{"finalizers":null}}'
                    kubectl.run("patch", each, "--namespace", name, "--type=merge", "--patch", free)
        return set(names.split())


def namespace_prefix(run: str) -> str:
    """What the names of all namespaces of one run begin with."""
    return f"tasker-test-{run}-"


@dataclass(frozen=True, kw_only=True)
class EmbeddedCluster:
    """An API server and a node in a process of their own, which writes down the operator's calls."""

    folder: Path
    kubeconfig: Path
    operator_kubeconfig: Path

    @property
    def _api(self) -> Api:
        return api_of(self.kubeconfig)

    def begin_recording(self) -> None:
        assert self._api.request("PUT", "/debug/calls").code == 200

    def operator_calls(self) -> list[Call]:
        """Every different call that the operator has made."""
        calls: list[dict[str, str]] = self._api.get("/debug/calls").json["calls"]
        return [
            Call(
                verb=call["verb"],
                group=call["group"],
                resource=call["resource"],
                namespace=call["namespace"] or None,
                name=call["name"] or None,
            )
            for call in calls
            if call["user"] == OPERATOR_USER
        ]


@contextmanager
def embedded_cluster(folder: Path) -> Iterator[EmbeddedCluster]:
    """The embedded API server and node, without definitions or operator."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("bare_cluster.py")
    with (folder / "cluster.log").open("w") as log:
        command = [sys.executable, str(script), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        kubeconfig = process.stdout.readline().strip()
        assert kubeconfig, (folder / "cluster.log").read_text()
        yield EmbeddedCluster(
            folder=folder, kubeconfig=Path(kubeconfig), operator_kubeconfig=folder / OPERATOR_KUBECONFIG
        )
    finally:
        process.terminate()
        process.wait(timeout=20 * PATIENCE)
        process.stdout.close()


@pytest.fixture(scope="session")
def any_cluster(tmp_path_factory: pytest.TempPathFactory, postgres_server: TestServer) -> Iterator[ClusterUnderTest]:
    """The cluster that the variables name, or an embedded one of this process. Nothing of ours is on it yet."""
    try:
        settings = ClusterSettings.from_environment()
    except WrongVariables as wrong:
        pytest.fail(str(wrong), pytrace=False)
    run, folder = secrets.token_hex(3), tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        url = stack.enter_context(suite_database(postgres_server, f"tasker_test_{run}", namespace_prefix(run)))
        embedded = None
        if settings.kubeconfig is None:
            embedded = stack.enter_context(embedded_cluster(folder / "cluster"))
            embedded.begin_recording()
        kubeconfig = embedded.kubeconfig if embedded is not None else _copy_kubeconfig(settings, folder)
        place = Place(
            settings=settings,
            kubeconfig=kubeconfig,
            operator_kubeconfig=embedded.operator_kubeconfig if embedded is not None else kubeconfig,
            database_url=url,
            folder=folder,
            system_namespace=f"{namespace_prefix(run)}system",
            labels={RUN_LABEL: run},
        )
        installation: Installation
        if settings.operator == "chart":
            installation = ChartInstallation(place, find_helm(folder))
        else:
            installation = OutsideInstallation(place)
        cluster = ClusterUnderTest(installation, run)
        yield cluster
        if embedded is None:
            cluster.leave()
        else:
            installation.uninstall()
            _check_rights(embedded, folder)


def _copy_kubeconfig(settings: ClusterSettings, folder: Path) -> Path:
    """One file of its own, so that nothing is written beside the person's."""
    view = [str(find_kubectl()), f"--kubeconfig={settings.kubeconfig}", "config", "view", "--raw", "--flatten"]
    copy = folder / "kubeconfig"
    copy.touch(mode=0o600)
    copy.write_bytes(subprocess.run(view, capture_output=True, check=True).stdout)
    return copy


def _check_rights(embedded: EmbeddedCluster, folder: Path) -> None:
    """A run is also a trial of the chart's roles: each call that the operator has made in it must be granted."""
    grants = grants_of(find_helm(folder).template("tasker", MATRIX["own-database"]), account="tasker")
    refused = [call for call in embedded.operator_calls() if not any(grant.allows(call) for grant in grants)]
    assert refused == [], "calls of the operator that its roles do not grant"


@pytest.fixture
def cluster(any_cluster: ClusterUnderTest) -> ClusterUnderTest:
    """The cluster with the definitions and a running operator."""
    any_cluster.serve(operator=True)
    return any_cluster


@pytest.fixture
def namespace(cluster: ClusterUnderTest) -> Iterator[Namespace]:
    """An empty namespace."""
    with cluster.namespace() as made:
        yield made


def handlers(name: str = "handlers", source: str = HANDLERS) -> dict[str, Any]:
    """A ConfigMap with handlers: succeed, sleep, refuse, flaky."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"handlers.py": source}}


def pool(name: str = "default", **spec: Any) -> dict[str, Any]:
    """A WorkerPool that mounts `handlers` and goes to zero quickly."""
    merged = {
        "handlersFrom": {"configMapRef": {"name": "handlers"}},
        "terminationGracePeriodSeconds": 20,
        "scaling": {"idleSeconds": 3, "downSeconds": 2},
        **spec,
    }
    return {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": {key: value for key, value in merged.items() if value is not None},
    }


def step(name: str, callable_name: str = "succeed", *, after: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """A step of a template; `configuration` becomes the handler's initialization."""
    handler: dict[str, Any] = {"callable": callable_name}
    if "configuration" in fields:
        handler["initialization"] = fields.pop("configuration")
    made: dict[str, Any] = {"name": name, "handler": handler, **fields}
    if after:
        made["dependsOn"] = list(after)
    return made


def template(name: str, *steps: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """A TaskTemplate."""
    return {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "TaskTemplate",
        "metadata": {"name": name},
        "spec": {"steps": list(steps), **spec},
    }


def task(name: str, template_name: str, **spec: Any) -> dict[str, Any]:
    """A Task of that template."""
    return {
        "apiVersion": "tasker.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {"templateRef": {"name": template_name}, **spec},
    }
