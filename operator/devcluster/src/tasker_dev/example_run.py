"""One run of an example folder on a cluster that has the product: apply, follow, end. For ``tasker dev --run``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from devcluster.errors import KubectlFailed
from devcluster.kubectl import Kubectl
from tasker_dev.example import Example
from tasker_dev.run_state import RunState

Show = Callable[[RunState, float], None]
"""Is given the state and the seconds since the run began, after every change and at least every `SHOW_SECONDS`."""

SHOW_SECONDS = 0.25
ESTABLISHED_SECONDS = 30
KINDS = ("tasktemplates", "tasks", "workerpools")


class ExampleRun:
    """Applies a folder and follows its Tasks and pools."""

    def __init__(self, example: Example, kubectl: Kubectl) -> None:
        self._example = example
        self._kubectl = kubectl
        self._began = time.monotonic()
        self._changed = asyncio.Event()
        self.state = RunState(example)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    async def check_cluster(self) -> None:
        """Raises `KubectlFailed` when the cluster cannot be reached or does not know our kinds."""
        crds = (f"crd/{kind}.tasker.dev" for kind in KINDS)
        try:
            await self._kubectl.run("wait", "--for=condition=Established", f"--timeout={ESTABLISHED_SECONDS}s", *crds)
        except KubectlFailed as error:
            raise KubectlFailed(
                f"this cluster does not have the product's CRDs, or cannot be reached: {error}"
            ) from error

    async def remove_earlier_tasks(self) -> int:
        """Delete the example's Tasks that an earlier run left, for a Task runs once. How many there were."""
        names = [task.name for task in self._example.tasks]
        deleted = await self._kubectl.run("delete", "tasks", *names, "--ignore-not-found", "--output=name")
        return len(deleted.split())

    async def follow(self, show: Show, *, timeout: float) -> bool:
        """Apply the folder and follow it to its end; `show` is called as it goes.

        True when every Task ended and its pools came to rest within `timeout` seconds. Raises `KubectlFailed` when the
        folder cannot be applied or the cluster is lost.
        """
        self._began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                watching = (self._watch_tasks(), self._watch_pools(), self._watch_events())
                watches = [group.create_task(watch) for watch in watching]
                await self._kubectl.run("apply", "-f", str(self._example.folder))
                over = await self._until_over(show, timeout)
                for watch in watches:
                    watch.cancel()
        except* KubectlFailed as group_of_errors:
            raise group_of_errors.exceptions[0] from None
        return over

    async def _until_over(self, show: Show, timeout: float) -> bool:
        while True:
            show(self.state, self.seconds)
            if self.state.is_over(self.seconds):
                return True
            if self.seconds > timeout:
                return False
            self._changed.clear()
            try:
                async with asyncio.timeout(SHOW_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _watch_tasks(self) -> None:
        async for event in self._kubectl.watch("tasks"):
            self.state.see_task(event, self.seconds)
            self._changed.set()

    async def _watch_pools(self) -> None:
        async for event in self._kubectl.watch("workerpools"):
            self.state.see_pool(event, self.seconds)
            self._changed.set()

    async def _watch_events(self) -> None:
        async for event in self._kubectl.watch("events", "--watch-only"):
            self.state.see_event(event)
