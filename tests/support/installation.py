"""The product on a cluster, as the cluster suite puts it there and takes it away: two ways, one face.

`OutsideInstallation`: the definitions applied from crds/, the operator a process of this machine. `ChartInstallation`:
everything by the real helm from charts/tasker, the operator a pod. `support.cluster` chooses and drives one of them.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from psycopg.conninfo import conninfo_to_dict

from support.apiserver import REPOSITORY, Kubectl
from support.cluster_settings import ClusterSettings, image_values
from support.helm import CHARTS, Helm
from support.operator_process import OperatorProcess
from support.waiting import eventually

DEFINITIONS = ("tasks.tasker.dev", "tasktemplates.tasker.dev", "workerpools.tasker.dev")
RELEASE = "tasker"
DATABASE_SECRET = "postgres"
READY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an installation goes and what it is made of."""

    settings: ClusterSettings
    kubeconfig: Path
    """Of somebody who may do everything."""
    operator_kubeconfig: Path
    """Of an operator outside."""
    database_url: str = field(repr=False)
    folder: Path
    """For logs and helm's own files."""
    system_namespace: str
    """Of the operator's pod; made and removed by the installation."""
    labels: Mapping[str, str]
    """Of what the installation makes."""

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(kubeconfig=self.kubeconfig)


class Installation(ABC):
    """The definitions and, unless it is paused, an operator."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kubectl = place.kubectl
        self.is_running = False
        self.worker_image = place.settings.worker_image
        """The image of pools that name none, None for the release's own; a change counts with the next `upgrade`."""
        self._found_definitions = bool(self._definitions_there())

    def _definitions_there(self) -> list[str]:
        return self.kubectl("get", "crd", *DEFINITIONS, "--ignore-not-found", "--output=name").split()

    def _definitions_are_served(self) -> bool:
        served = self.kubectl("api-resources", "--api-group=tasker.dev", "--cached=false", "--output=name").split()
        return sorted(served) == list(DEFINITIONS)

    @abstractmethod
    def install(self) -> None:
        """Brings the definitions and the schema. The operator may run afterwards or not: see `is_running`."""

    @abstractmethod
    def pause(self) -> None:
        """Ends the operator, in order; nothing is reconciled until `resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Starts the operator; it is ready when this returns."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL of the operator; another one follows by itself or is started."""

    @abstractmethod
    def upgrade(self) -> None:
        """Replaces the operator while it is at work, by one with the present settings."""

    @abstractmethod
    def uninstall(self) -> None:
        """Takes away what the installation made, but for the definitions and what is kept with them."""

    def remove_definitions(self) -> None:
        """Unless they were there before. Goes on when every resource of the kinds has gone."""
        if not self._found_definitions:
            self.kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found", "--timeout=120s", timeout=150)


class OutsideInstallation(Installation):
    """The operator as a local process."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._process: OperatorProcess | None = None
        self._logs = 0

    def install(self) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
        self.kubectl("wait", "--for=condition=Established", "crd", *DEFINITIONS, "--timeout=60s", timeout=70)
        eventually(self._definitions_are_served, timeout=READY_SECONDS, interval=0.2)
        environment = {**os.environ, "DATABASE_URL": self.place.database_url}
        subprocess.run([sys.executable, "-m", "tasker", "migrate"], env=environment, check=True, capture_output=True)

    def pause(self) -> None:
        if self._process is not None:
            assert self._process.end() == 0, self._process.log[-3000:]
            self._process = None
        self.is_running = False

    def resume(self) -> None:
        variables = {
            "TASKER_WORKER_DATABASE_URL": self.place.database_url,
            "TASKER_WORKER_IMAGE": self.worker_image or "",
            "TASKER_WORKER_IMAGE_PULL_POLICY": self.place.settings.pull_policy or "",
        }
        self._logs += 1
        log = self.place.folder / f"operator-{self._logs}.log"
        self._process = OperatorProcess(self.place.database_url, self.place.operator_kubeconfig, log, **variables)
        self._process.await_ready(timeout=READY_SECONDS)
        self.is_running = True

    def kill(self) -> None:
        assert self._process is not None
        self._process.end(signal.SIGKILL)
        self._process = None
        self.resume()

    def upgrade(self) -> None:
        self.pause()
        self.resume()

    def uninstall(self) -> None:
        self.pause()


class ChartInstallation(Installation):
    """The operator as a pod of the chart's Deployment, with the chart's own rights."""

    def __init__(self, place: Place, helm: Helm) -> None:
        super().__init__(place)
        self._helm = helm
        self._in_namespace = Kubectl(kubeconfig=place.kubeconfig, namespace=place.system_namespace)

    def install(self) -> None:
        labels = {**self.place.labels, "pod-security.kubernetes.io/enforce": "restricted"}
        url = base64.b64encode(self.place.database_url.encode()).decode()
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.place.system_namespace, "labels": labels},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": DATABASE_SECRET, "namespace": self.place.system_namespace},
                "data": {"DATABASE_URL": url},
            },
        )
        self.helm("install", RELEASE, *self._chart())
        self.is_running = True

    def helm(self, *arguments: str) -> str:
        """helm in the release's namespace. Raises `HelmError`."""
        options = ("--namespace", self.place.system_namespace)
        return self._helm.run(*arguments, *options, kubeconfig=self.place.kubeconfig, timeout=400)

    def install_beside(self, release: str, **values: Any) -> None:
        """A second release in the same namespace, of the same images. The database is given to it until `resume`."""
        self._give_database_to(f"{release}-{RELEASE}")
        self.helm("install", release, *self._chart(**values))

    def _give_database_to(self, name: str) -> None:
        """`name` is that of the release's objects."""
        uid = self.kubectl("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}").strip()
        adopt = ["system", "adopt", "--yes", f"{self.place.system_namespace}/{name}@{uid}"]
        environment = {**os.environ, "DATABASE_URL": self.place.database_url}
        subprocess.run([sys.executable, "-m", "tasker", *adopt], env=environment, check=True, capture_output=True)

    def _chart(self, **values: Any) -> tuple[str, ...]:
        file = self.place.folder / "values.yaml"
        file.write_text(yaml.safe_dump(self.values() | values), encoding="utf-8")
        return (str(CHARTS / "tasker"), "--values", str(file), "--wait", "--timeout", "5m")

    def values(self) -> dict[str, Any]:
        settings = self.place.settings
        port = conninfo_to_dict(self.place.database_url).get("port") or 5432
        return {
            "commonLabels": dict(self.place.labels),
            "crds": {"enabled": not self._found_definitions},
            "database": {"existingSecret": DATABASE_SECRET, "ports": [int(port)]},
            "image": image_values(settings.operator_image, settings.pull_policy),
            "networkPolicy": {"apiServerPorts": self._api_server_ports()},
            "worker": {"image": image_values(self.worker_image, settings.pull_policy)},
        }

    def _api_server_ports(self) -> list[int]:
        """The chart's own, and where the API server is reached behind its Service."""
        ports = "--output=jsonpath={.subsets[*].ports[*].port}"
        found = self.kubectl("get", "endpoints", "kubernetes", "--namespace=default", "--ignore-not-found", ports)
        chart = yaml.safe_load((CHARTS / "tasker" / "values.yaml").read_text(encoding="utf-8"))
        return sorted({*map(int, found.split()), *chart["networkPolicy"]["apiServerPorts"]})

    def pause(self) -> None:
        self._scale(0)
        eventually(lambda: not self._pods(), timeout=READY_SECONDS, interval=0.5, what="the operator's pod is gone")
        self.is_running = False

    def resume(self) -> None:
        self._give_database_to(RELEASE)
        self._scale(1)
        self._await_ready()
        self.is_running = True

    def kill(self) -> None:
        killed = self._pods()
        self._in_namespace("delete", *killed, "--force", "--grace-period=0")
        eventually(lambda: set(self._pods()) - set(killed), timeout=READY_SECONDS, interval=0.2)
        self._await_ready()

    def upgrade(self) -> None:
        self.helm("upgrade", RELEASE, *self._chart())

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout", "2m")
        self.is_running = False

    def _scale(self, replicas: int) -> None:
        self._in_namespace("scale", f"deployment/{RELEASE}", f"--replicas={replicas}")

    def _await_ready(self) -> None:
        options = (f"--timeout={READY_SECONDS:.0f}s",)
        self._in_namespace("rollout", "status", f"deployment/{RELEASE}", *options, timeout=READY_SECONDS + 10)

    def _pods(self) -> list[str]:
        selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
        return self._in_namespace("get", "pods", "--selector", selector, "--output=name").split()
