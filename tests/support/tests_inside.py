"""Tests of this checkout run inside a release of Debian, with the Python that it brings.

A container of the release's base image holds an environment with what ``make`` sets up, made once for each content of
the files that name it; the checkout is copied for each run and mounted where the environment looks for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.checkout import copy_checkout, tracked_files
from support.images import ROOT, Images

CONTAINER = "tests"
PYTHON = "/opt/tests/bin/python"
NOBODY = 65534
"""Whom tests run as: PostgreSQL does not run as root, and within a change of root no user namespace can be made."""
SET_UP = re.compile(r"-m pip install --disable-pip-version-check (-e .+?) 2>")
"""In the Makefile: what is installed for working on this repository."""


class TestsInside:
    """An environment for tests on one release."""

    __test__ = False

    def __init__(self, images: Images) -> None:
        self._images = images
        self._noted = images.folder / "tests.made"

    def set_up(self, folder: Path) -> None:
        """Makes the environment unless it is there. `folder` gets a copy of the checkout."""
        copy_checkout(folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        wanted = self._wanted()
        if self._noted.exists() and self._noted.read_text() == wanted and self._exists():
            return
        self._noted.unlink(missing_ok=True)
        if self._exists():
            self._images.buildah("rm", CONTAINER)
        self._images.buildah("from", "--pull-never", "--name", CONTAINER, self._images.release.base)
        installed = SET_UP.search((ROOT / "Makefile").read_text(encoding="utf-8"))
        assert installed is not None, "the Makefile says no more what it installs"
        script = f"python -m venv /opt/tests && {PYTHON} -m pip install --no-cache-dir -q {installed[1]}"
        code, output = self.run(["sh", "-ec", script], folder, timeout=900, user=0)
        assert code == 0, output[-4000:]
        self._noted.write_text(wanted)

    def run(self, command: Sequence[str], folder: Path, timeout: float, user: int = NOBODY) -> tuple[int, str]:
        """Exit code and output of a command in a copy of the checkout. Raises ``subprocess.TimeoutExpired``."""
        volumes = [f"--volume={host}:{inside}:ro" for host, inside in self._images.machine_files()]
        options = [
            "--isolation=chroot",
            "--workingdir=/src",
            "--env=HOME=/tmp",
            f"--user={user}:{user}",
            f"--volume={folder}:/src",
            *volumes,
        ]
        process = subprocess.Popen(
            self._images.buildah_command("run", *options, CONTAINER, "--", *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, output

    def _wanted(self) -> str:
        names = [name for name in tracked_files() if name == "Makefile" or name.endswith("pyproject.toml")]
        files = [*(ROOT / name for name in names), Path(__file__), self._images.made]
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]

    def _exists(self) -> bool:
        done = subprocess.run(
            self._images.buildah_command("inspect", "--type=container", CONTAINER), capture_output=True, check=False
        )
        return done.returncode == 0
