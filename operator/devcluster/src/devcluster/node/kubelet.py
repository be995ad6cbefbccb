"""Pods to processes: brings what runs on this machine in line with the pods bound to this node. Called by ``node``.

`reconcile` does one pod at a time and never waits for a process: ends of processes, answers of probes and times to wait
for come back as further calls for the same pod.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from devcluster.node.client import PODS, ApiClient, ApiError
from devcluster.node.content import make_reader
from devcluster.node.environment import (
    ConfigError,
    build_arguments,
    build_environment,
    expand,
    place_on_host,
)
from devcluster.node.events import EventRecorder
from devcluster.node.informer import Informer
from devcluster.node.log_files import LogFiles
from devcluster.node.objects import Key, KubeObject, integer, is_deleting, key_of, uid_of
from devcluster.node.pod_runtime import ContainerRuntime, Exit, PodRuntime, Waiting, adopt
from devcluster.node.pod_status import build_pod_status, build_unscheduled_status
from devcluster.node.pod_support import find_refusals, find_unschedulable, program_of
from devcluster.node.ports import free_port
from devcluster.node.probes import HttpProbe, ProbeKind, ProbeReport, watch_container
from devcluster.node.process import ContainerProcess
from devcluster.node.termination import TERMINATION_LOG, prepare_file, read_message
from devcluster.node.volumes import make_subfolders, mounts_of, write_volumes
from devcluster.node.work_queue import RetryLater

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30
ORPHAN_GRACE_SECONDS = 2.0  # for a pod whose object is gone without a farewell
PROBE_AGAIN_SECONDS = 1.0
REFRESH_SECONDS = 45.0  # volumes follow their ConfigMaps and Secrets at least once a minute

_ENDED_PHASES = ("Succeeded", "Failed")


class Kubelet:
    """Runs the pods of one node. `requeue` asks for another `reconcile` of a pod; `labels` are the node's."""

    def __init__(
        self,
        client: ApiClient,
        pods: Informer,
        events: EventRecorder,
        *,
        node_name: str,
        labels: Mapping[str, str],
        images: Mapping[str, Sequence[str]],
        data_folder: Path,
        logs_folder: Path,
        requeue: Callable[[Key], None],
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._pods = pods
        self._events = events
        self._node_name = node_name
        self._labels = labels
        self._images = images
        self._pods_folder = data_folder / "pods"
        self._logs = LogFiles(logs_folder)
        self._requeue = requeue
        self._now = now
        self._runtimes: dict[Key, PodRuntime] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        # What former runs have left behind belongs to nobody: their processes ended with their node.
        shutil.rmtree(self._pods_folder, ignore_errors=True)
        self._probe_session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False, force_close=True, limit=0), trust_env=False
        )

    async def stop(self, grace_seconds: float) -> None:
        """End all processes, in good order as far as the time allows. Pods stay as they are in the API."""
        runtimes = list(self._runtimes.values())
        for runtime in runtimes:
            runtime.ending = True
        await asyncio.gather(*(self._end_processes(runtime, grace_seconds) for runtime in runtimes))
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._probe_session.close()

    async def reconcile(self, key: Key) -> None:
        """Bring one pod's processes and status in line."""
        pod = self._pods.get(key)
        runtime = self._runtimes.get(key)
        if runtime is not None and (pod is None or uid_of(pod) != runtime.uid):
            self._abandon(runtime)
            runtime = None
        if pod is None or pod["spec"].get("nodeName") not in (None, "", self._node_name):
            return
        if is_deleting(pod):
            await self._end(pod, runtime)
            return
        if runtime is None and (pod.get("status") or {}).get("phase") in _ENDED_PHASES:
            return
        if not pod["spec"].get("nodeName"):
            refusal = find_unschedulable(pod, self._labels, self._node_name)
            if refusal is not None:
                await self._refuse_binding(pod, refusal)
                return
            pod = await self._bind(pod)
        if runtime is None:
            runtime = adopt(pod, self._pods_folder / uid_of(pod), self._now())
            self._runtimes[key] = runtime
        await self._run(pod, runtime)
        await self._write_status(pod, runtime)
        if wait := self._next_look(runtime):
            raise RetryLater(wait)

    # Scheduling: there is one node.

    async def _bind(self, pod: KubeObject) -> KubeObject:
        changes = {"metadata": {"uid": uid_of(pod)}, "spec": {"nodeName": self._node_name}}
        bound = await self._client.patch(PODS, key_of(pod), changes)
        self._pods.observe(bound)
        place = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self._tell(
            bound, "Scheduled", f"Successfully assigned {place} to {self._node_name}", component="default-scheduler"
        )
        return bound

    async def _refuse_binding(self, pod: KubeObject, refusal: str) -> None:
        status = build_unscheduled_status(pod, refusal, self._now())
        if any((pod.get("status") or {}).get(name) != value for name, value in status.items()):
            changes = {"metadata": {"uid": uid_of(pod)}, "status": status}
            self._pods.observe(await self._client.patch(PODS, key_of(pod), changes, subresource="status"))
            self._tell(pod, "FailedScheduling", refusal, warning=True, component="default-scheduler")

    # Running.

    async def _run(self, pod: KubeObject, runtime: PodRuntime) -> None:
        refusals = find_refusals(pod)
        if refusals:
            message = "; ".join(refusals)
            for found in runtime.containers.values():
                found.waiting = Waiting(reason="Unsupported", message=message)
            self._tell_once(pod, runtime, "Unsupported", message)
            return
        loop = asyncio.get_running_loop()
        for container in pod["spec"]["containers"]:
            found = runtime.containers[container["name"]]
            if found.process is None and not found.finished and loop.time() >= found.start_after:
                await self._start(pod, runtime, container, found)
        if loop.time() - runtime.volumes_at > REFRESH_SECONDS and runtime.processes:
            runtime.volumes_at = loop.time()
            for name in runtime.containers:
                self._logs.shorten(runtime.key, name)
            with suppress(ConfigError):  # what a running program was given stays
                await write_volumes(pod, runtime.volumes, make_reader(self._client, runtime.key.namespace))

    async def _start(
        self, pod: KubeObject, runtime: PodRuntime, container: Mapping[str, Any], found: ContainerRuntime
    ) -> None:
        program = program_of(container["image"], self._images)
        if program is None:
            known = ", ".join(f"*{ending}" for ending in self._images) or "none"
            message = (
                f'Container image "{container["image"]}" is not present on this node, which runs programs in place of '
                f"images and has: {known}"
            )
            found.waiting = Waiting(reason="ErrImageNeverPull", message=message)
            found.start_after = float("inf")  # its images never change while it runs
            self._tell_once(pod, runtime, "ErrImageNeverPull", message)
            return
        read = make_reader(self._client, runtime.key.namespace)
        loop = asyncio.get_running_loop()
        try:
            runtime.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            await write_volumes(pod, runtime.volumes, read)
            runtime.volumes_at = loop.time()
            mounts = mounts_of(container, runtime.volumes)
            make_subfolders(mounts)
            message_file = prepare_file(container, runtime.folder)
            mounts = [*mounts, message_file]
            has_port = any(port.get("name") == "http" for port in container.get("ports") or ())
            found.port = free_port() if has_port else None
            environment = await build_environment(pod, container, read=read, mounts=mounts, port=found.port)
            words = [expand(word, {**environment, TERMINATION_LOG: message_file.folder}) for word in program]
            arguments = build_arguments(container, environment, mounts)
        except ConfigError as error:
            found.config_failures += 1
            found.start_after = loop.time() + min(0.25 * 2.0**found.config_failures, 10.0)
            found.waiting = Waiting(reason="CreateContainerConfigError", message=str(error))
            self._tell_once(pod, runtime, "Failed", f"Error: {error}")
            return
        if runtime.ending or self._runtimes.get(runtime.key) is not runtime:
            return  # the node was stopped meanwhile
        folder = runtime.folder
        if container.get("workingDir"):
            folder = Path(place_on_host(container["workingDir"], mounts))
        self._spawn(pod, runtime, container, found, [*words, *arguments], environment, folder)

    def _spawn(
        self,
        pod: KubeObject,
        runtime: PodRuntime,
        container: Mapping[str, Any],
        found: ContainerRuntime,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        try:
            found.process = ContainerProcess(
                command,
                environment=environment,
                folder=folder,
                log_file=self._logs.begin(runtime.key, found.name),
                on_exit=lambda code: self._on_exit(pod, runtime, container, found, code),
            )
        except OSError as error:
            found.start_after = asyncio.get_running_loop().time() + max(1.0, found.next_delay(0.0))
            found.waiting = Waiting(reason="CreateContainerError", message=str(error))
            self._tell(pod, "Failed", f"Error: {error}", warning=True)
            return
        found.starts += 1
        found.started_at = self._now()
        found.waiting = None
        found.config_failures = 0
        where = f", port http on 127.0.0.1:{found.port}" if found.port is not None else ""
        self._tell(pod, "Created", f"Created container {found.name}")
        self._tell(pod, "Started", f"Started container {found.name} (process {found.process.pid}{where})")
        report = ProbeReport(
            started=lambda: self._on_started(runtime, found),
            ready=lambda good: self._on_ready(runtime, found, good),
            failed=lambda kind, text, fatal, probe: self._on_probe_failed(pod, found, kind, text, fatal, probe),
        )
        self._probe(runtime, container, found, report)

    def _probe(
        self, runtime: PodRuntime, container: Mapping[str, Any], found: ContainerRuntime, report: ProbeReport
    ) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if found.probing is not task or not (task.cancelled() or error):
                return  # it was stopped, or there is nothing to probe
            logger.error("the probing of %s in %s broke; it begins again", found.name, runtime.key, exc_info=error)
            loop.call_later(PROBE_AGAIN_SECONDS, again, found.process)

        def again(process: ContainerProcess | None) -> None:
            if process is not None and found.process is process and not runtime.ending:
                self._probe(runtime, container, found, report)

        loop = asyncio.get_running_loop()
        found.probing = asyncio.create_task(watch_container(container, found.port, self._probe_session, report))
        found.probing.add_done_callback(ended)

    def _on_started(self, runtime: PodRuntime, found: ContainerRuntime) -> None:
        found.started = True
        self._requeue(runtime.key)

    def _on_ready(self, runtime: PodRuntime, found: ContainerRuntime, good: bool) -> None:
        found.ready = good
        self._requeue(runtime.key)

    def _on_probe_failed(
        self, pod: KubeObject, found: ContainerRuntime, kind: ProbeKind, text: str, fatal: bool, probe: HttpProbe
    ) -> None:
        self._tell(pod, "Unhealthy", f"{kind} probe failed: {text}", warning=True)
        process = found.process
        if fatal and kind != "Readiness" and process is not None:
            self._tell(pod, "Killing", f"Container {found.name} failed {kind.lower()} probe, will be restarted")
            found.ready = False
            process.terminate()
            grace = probe.grace if probe.grace is not None else _grace_of(pod)
            asyncio.get_running_loop().call_later(grace, process.kill)

    def _on_exit(
        self, pod: KubeObject, runtime: PodRuntime, container: Mapping[str, Any], found: ContainerRuntime, code: int
    ) -> None:
        now, loop = self._now(), asyncio.get_running_loop()
        started_at = found.started_at or now
        found.stop_probing()
        found.process = None
        found.ready = found.started = False
        log_file = self._logs.current(runtime.key, found.name)
        message = read_message(container, runtime.folder, log_file, failed=code != 0)
        found.last_exit = Exit(code=code, started_at=started_at, finished_at=now, message=message)
        policy = pod["spec"].get("restartPolicy") or "Always"
        if runtime.ending or policy == "Never" or (policy == "OnFailure" and code == 0):
            found.finished = True
        else:
            delay = found.next_delay((now - started_at).total_seconds())
            found.start_after = loop.time() + delay
            if delay:
                name = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({runtime.uid})"
                text = f"back-off {delay:.0f}s restarting failed container={found.name} pod={name}"
                found.waiting = Waiting(reason="CrashLoopBackOff", message=text)
                self._tell(
                    pod, "BackOff", f"Back-off restarting failed container {found.name} in pod {name}", warning=True
                )
        self._requeue(runtime.key)

    # Ending.

    async def _end(self, pod: KubeObject, runtime: PodRuntime | None) -> None:
        """A pod that is being deleted: SIGTERM, its grace, SIGKILL; then the API server is told that it is gone."""
        if runtime is not None:
            if runtime.confirmed:
                return
            self._begin_ending(pod, runtime)
            wait = runtime.kill_at - asyncio.get_running_loop().time()
            if runtime.processes:
                if wait <= 0:
                    for process in runtime.processes:
                        process.kill()
                await self._write_status(pod, runtime)
                raise RetryLater(max(wait, 0.05))
            await self._write_status(pod, runtime)
        try:
            await self._client.delete(PODS, key_of(pod), uid=uid_of(pod), grace_seconds=0)
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:  # gone, or another of its name is there: just as well
                raise
        if runtime is not None:
            runtime.confirmed = True
            shutil.rmtree(runtime.folder, ignore_errors=True)
        self._logs.prune(pod["metadata"]["namespace"], {key.name for key in self._runtimes})

    def _begin_ending(self, pod: KubeObject, runtime: PodRuntime) -> None:
        loop = asyncio.get_running_loop()
        grace = integer(pod["metadata"].get("deletionGracePeriodSeconds"), GRACE_SECONDS)
        if not runtime.ending:
            runtime.ending = True
            runtime.kill_at = loop.time() + grace
            runtime.stop_probing()
            for found in runtime.containers.values():
                found.ready = False
                if found.process is not None:
                    self._tell(pod, "Killing", f"Stopping container {found.name}")
                    found.process.terminate()
        # Somebody may have lost patience since: the grace only ever gets shorter.
        runtime.kill_at = min(runtime.kill_at, loop.time() + grace)

    def _abandon(self, runtime: PodRuntime) -> None:
        """The pod's object is gone: end what runs, in the background, for another pod of its name may be there."""
        self._runtimes.pop(runtime.key, None)
        runtime.ending = True
        task = asyncio.create_task(self._end_processes(runtime, ORPHAN_GRACE_SECONDS))
        self._leaving.add(task)
        task.add_done_callback(lambda task: self._left(runtime, task))

    def _left(self, runtime: PodRuntime, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("pod %s is gone, but not all that it ran could be ended", runtime.key, exc_info=error)

    async def _end_processes(self, runtime: PodRuntime, grace_seconds: float) -> None:
        runtime.stop_probing()
        processes = runtime.processes
        try:
            for process in processes:
                process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    for process in processes:
                        await process.exited.wait()
        finally:
            for process in processes:
                process.kill()
        for process in processes:
            await process.exited.wait()
        shutil.rmtree(runtime.folder, ignore_errors=True)

    # Telling.

    async def _write_status(self, pod: KubeObject, runtime: PodRuntime) -> None:
        status = build_pod_status(pod, runtime, self._now())
        if status == runtime.written:
            return
        try:
            changes = {"metadata": {"uid": runtime.uid}, "status": status}
            written = await self._client.patch(PODS, runtime.key, changes, subresource="status")
        except ApiError as error:
            if error.is_not_found or error.is_conflict:
                return  # the watch will tell
            raise
        runtime.written = status
        self._pods.observe(written)

    def _next_look(self, runtime: PodRuntime) -> float:
        """Seconds until a container is due to be started; 0 when none waits for that."""
        loop = asyncio.get_running_loop()
        waits = [
            found.start_after - loop.time()
            for found in runtime.containers.values()
            if found.process is None and not found.finished and found.start_after != float("inf")
        ]
        if not waits or (runtime.written or {}).get("phase") in _ENDED_PHASES or "Unsupported" in runtime.told:
            return 0.0
        return max(min(waits), 0.01)

    def _tell(
        self, pod: KubeObject, reason: str, message: str, *, warning: bool = False, component: str = "kubelet"
    ) -> None:
        self._events.record(pod, PODS, reason, message, warning=warning, component=component)

    def _tell_once(self, pod: KubeObject, runtime: PodRuntime, reason: str, message: str) -> None:
        if message not in runtime.told:
            runtime.told |= {message, reason}
            logger.warning("pod %s/%s: %s: %s", runtime.key.namespace, runtime.key.name, reason, message)
            self._tell(pod, reason, message, warning=True)


def _grace_of(pod: KubeObject) -> int:
    return integer(pod["spec"].get("terminationGracePeriodSeconds"), GRACE_SECONDS)
