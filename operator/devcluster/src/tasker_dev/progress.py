"""What `tasker dev` prints: live tables on a terminal, a line a change elsewhere. Called by `dev`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tasker_dev.example import Example
from tasker_dev.run_state import RunState
from tasker_dev.session import DevSession
from tasker_dev.tables import live_view, scale_line, scale_table, tasks_table

# A pipe has no width; tables should not be broken for it.
_PLAIN_WIDTH = 160
_STATUS_SECONDS = 1.0

Show = Callable[[RunState, float], None]


class Reporter:
    """Prints. On a terminal what changes is redrawn in place."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(
            highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH, emoji=False, markup=False
        )
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def starting(self) -> None:
        self._began = time.monotonic()
        self.say("Starting the embedded cluster: a development server, not Kubernetes")

    def started(self, session: DevSession) -> None:
        seconds = time.monotonic() - self._began
        self.say(f"Up after {seconds:.1f} s: API server at {session.url}, operator as process {session.operator.pid}")

    def stopping(self) -> None:
        self._began = time.monotonic()
        self.say("Stopping")

    def stopped(self) -> None:
        self.say(f"Stopped after {time.monotonic() - self._began:.1f} s")

    def applying(self, example: Example, removed: int) -> None:
        if removed:
            self.say(f"Removed {removed} Tasks of an earlier run: a Task runs once")
        self.say(f"kubectl apply -f {example.folder}")

    @contextmanager
    def following(self, state: RunState) -> Iterator[Show]:
        """Gives what to call after each change."""
        if not self._console.is_terminal:
            yield _ChangeLines(self.say)
            return
        with Live(live_view(state, 0.0), console=self._console, transient=True, refresh_per_second=8) as live:
            yield lambda state, now: live.update(live_view(state, now))

    def results(self, state: RunState, seconds: float, *, over: bool) -> None:
        self._console.print(tasks_table(state, seconds))
        for pool in state.pools.values():
            self.say(f"Workers of pool {pool.name}: {scale_line(pool)}")
            self._console.print(scale_table(pool))
        if not over:
            self.say(f"NOT OVER after {seconds:.0f} s: {_still_open(state)}")
            return
        wrong = [task for task in state.tasks.values() if not task.as_expected]
        for task in wrong:
            self.say(f"NOT AS EXPECTED: Task {task.name} ended as {task.state}, expected {task.expected}")
        if not wrong:
            self.say(f"Every Task ended as expected, {seconds:.1f} s after kubectl apply")

    def how_to_go_on(self, kubeconfig: Path, kubectl: Path, *, command: str | None) -> None:
        """With `command`, that first: the cluster has been stopped."""
        if command is not None:
            self.say(f"Start it again, with all that is in it, and keep it running (Ctrl-C ends it):\n  {command}")
        shown = "kubectl" if shutil.which("kubectl") else str(kubectl)
        self.say(
            f"{'Then in' if command is not None else 'In'} another shell:\n"
            f"  export KUBECONFIG={kubeconfig}\n"
            f"  {shown} get tasks,workerpools\n"
            f"  {shown} apply -f examples/02-diamond\n"
            f"  {shown} wait --for=condition=Succeeded task/diamond-6"
        )

    async def keep_showing(self, session: DevSession) -> None:
        """Does not come back; a signal cancels it."""
        if not self._console.is_terminal:
            await asyncio.Event().wait()
        with self._console.status("") as status:
            while True:
                text = f"{time.monotonic() - self._began:.0f} s; {await session.summary()}"
                status.update(Text(text, no_wrap=True, overflow="ellipsis"))
                await asyncio.sleep(_STATUS_SECONDS)


class _ChangeLines:
    """A line for every Task and pool that changed since the last call."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: dict[tuple[str, str], str] = {}

    def __call__(self, state: RunState, now: float) -> None:
        for pool in state.pools.values():
            text = f"{pool.desired} wanted, {pool.ready} ready, {pool.queued} queued, {pool.running} running"
            self._tell("pool", pool.name, text, now)
        for task in state.tasks.values():
            if task.seen_at is not None:
                text = " ".join(filter(None, (task.state, task.progress, task.reason)))
                self._tell("task", task.name, text, now)

    def _tell(self, kind: str, name: str, text: str, now: float) -> None:
        if self._told.get((kind, name)) != text:
            self._told[kind, name] = text
            self._say(f"{now:6.1f} s  {kind} {name}: {text}")


def _still_open(state: RunState) -> str:
    tasks = [
        f"Task {task.name} is {task.state} {task.progress}".rstrip()
        for task in state.tasks.values()
        if not task.is_ended
    ]
    pools = [f"pool {pool.name} has {pool.replicas} workers" for pool in state.pools.values() if not pool.is_at_rest]
    return ", ".join(tasks + pools) or "a pool was never seen to have workers"
