"""`tasker dev` as a person runs it: a process of its own, kubectl beside it, and a look at what is left afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.waiting import eventually

ROOT = Path(__file__).parents[2]
KUBECTL = Path(sys.executable).parent / "kubectl"
READY = "In another shell:"
START_SECONDS = 60.0
STOP_SECONDS = 10.0


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would lead `tasker dev` or kubectl elsewhere."""
    unwanted = {"DATABASE_URL", "KUBECONFIG"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def run_dev(data: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`tasker dev --data DATA …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tasker", "dev", "--data", str(data), *arguments],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


class Dev:
    """A `tasker dev` that is kept running."""

    def __init__(
        self,
        data: Path,
        *arguments: str,
        command: Sequence[str] | None = None,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.kubeconfig = data / "kubeconfig"
        self._output = data.with_name(data.name + ".out")
        given = command or [sys.executable, "-m", "tasker", "dev", "--data", str(data), *arguments]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                given,
                cwd=cwd,
                env=clean_environment(**(environment or {})),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own, so that a Ctrl-C can be sent as a terminal does: to all of the group.
                process_group=0,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def await_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"tasker dev ended with {self.process.returncode}:\n{self.output}")
            return READY in self.output

        eventually(ready, timeout=START_SECONDS, what="tasker dev is ready")

    def kubectl(self, *arguments: str, fails: bool = False, timeout: float = 60, **environment: str) -> str:
        """What kubectl prints; its complaint when it is to fail."""
        ran = subprocess.run(
            [KUBECTL, *arguments],
            cwd=ROOT,
            env=clean_environment(KUBECONFIG=str(self.kubeconfig), **environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (ran.returncode != 0) is fails, ran.stdout + ran.stderr
        return ran.stderr if fails else ran.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, read."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def story(self) -> str:
        """The ends of what it, the operator and the workers wrote."""
        files = [self._output, self.data / "operator.log", *sorted(self.data.glob("apiserver/logs/*/*/*.log"))]
        parts = [f"== {file}\n" + "\n".join(file.read_text().splitlines()[-30:]) for file in files if file.exists()]
        return "\n".join(parts)

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it. The exit code; fails when it takes too long."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL of `tasker dev` alone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def await_no_process(self, timeout: float) -> None:
        eventually(lambda: not processes_of(self.data), timeout=timeout, what=f"{processes_of(self.data)} are gone")


@contextmanager
def running_dev(data: Path) -> Iterator[Dev]:
    """A `tasker dev` that is ready; ended with Ctrl-C."""
    dev = Dev(data)
    try:
        dev.await_ready()
        yield dev
        assert dev.interrupt() == 0, dev.output
    finally:
        dev.kill()
        print(dev.story())  # pytest shows it when a test failed


def copy_of(name: str, folder: Path) -> Path:
    """A copy of an example whose workers go after one second."""
    copy = folder / name
    shutil.copytree(ROOT / "examples" / name, copy)
    pool = copy / "pool.yaml"
    pool.write_text(pool.read_text().replace("idleSeconds: 4", "idleSeconds: 1"))
    return copy


def processes_of(folder: Path) -> dict[int, str]:
    """Processes whose command line or environment names the folder, this one and its parents aside."""
    wanted = os.fsencode(folder)
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if command and (wanted in command or wanted in environment):
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found
