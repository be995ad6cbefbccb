"""A cluster with the product running on it, for tests that only use kubectl.

By default a real `tasker dev` process: embedded Postgres, API server, node, and the unmodified operator. With
``TASKER_TEST_KUBECONFIG`` a cluster on which the product is installed; tests that stop the operator are skipped there.
Each test has a namespace of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.dev_session import Dev, processes_of
from support.waiting import eventually
from tasker.devcluster.kubectl import find_kubectl

KUBECONFIG_VARIABLE = "TASKER_TEST_KUBECONFIG"

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
        ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, check=False)
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
        """`kubectl wait --for=…`. Raises `KubectlFailed` when it did not come."""
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
    """One cluster for all tests of the process."""

    def __init__(self, kubeconfig: Path, session: DevProcess | None) -> None:
        self.kubeconfig = kubeconfig
        self._session = session
        self._count = 0

    @contextmanager
    def namespace(self) -> Iterator[Namespace]:
        """A new namespace, deleted afterwards."""
        self._count += 1
        name = f"test-{os.getpid()}-{self._count}-{int(time.time()) % 100_000}"
        namespace = Namespace(self.kubeconfig, name)
        namespace.kubectl("create", "namespace", name)
        try:
            yield namespace
        finally:
            namespace.kubectl("delete", "namespace", name, "--wait=false")

    @property
    def session(self) -> DevProcess:
        """The embedded session; skips the test where the cluster is somebody else's."""
        if self._session is None:
            pytest.skip(f"needs an operator of its own, which {KUBECONFIG_VARIABLE} does not give")
        return self._session


class DevProcess:
    """A `tasker dev` process of the tests' own, whose operator they may take down."""

    def __init__(self, folder: Path) -> None:
        self.dev = Dev(folder)
        self.kubeconfig = self.dev.kubeconfig

    def freeze_operator(self) -> int:
        """Nothing sees events or writes until it is killed. Its pid."""
        pid = self._await_operator()
        os.kill(pid, signal.SIGSTOP)
        return pid

    def kill_operator(self, pid: int | None = None) -> None:
        """SIGKILL; the session starts another one, as a Deployment would."""
        killed = pid if pid is not None else self._await_operator()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: self._find_operator() not in (None, killed), timeout=20, what="a new operator runs")

    def _await_operator(self) -> int:
        pid = eventually(self._find_operator, timeout=20, what="the operator runs")
        assert pid is not None
        return pid

    def _find_operator(self) -> int | None:
        """Of the processes that have to do with the session's folder, the operator."""
        for pid, command in processes_of(self.dev.data).items():
            if "-m tasker.controller" in command and "bound.py" not in command:
                return pid
        return None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    """The cluster that `TASKER_TEST_KUBECONFIG` names, or an embedded one started for this process."""
    given = os.environ.get(KUBECONFIG_VARIABLE)
    if given:
        yield ClusterUnderTest(Path(given), None)
        return
    session = DevProcess(tmp_path_factory.mktemp("cluster") / "data")
    try:
        session.dev.await_ready()
        yield ClusterUnderTest(session.kubeconfig, session)
        session.dev.interrupt()
    finally:
        session.dev.kill()


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
