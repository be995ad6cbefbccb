"""Images built and started without a registry or a container daemon: buildah with chroot isolation, on Debian as root.

Bases of the Dockerfiles are not pulled: each is made here with debootstrap, of a release of Debian that brings the
Python to test with, and given the name of such an image. Everything is kept under ``.tasker/images``, by release.
``Images.start`` stands in for a container runtime: a mount namespace of its own, the image as a root that cannot be
written, a /tmp, the image's user, environment and entry point, no new privileges; the network is the machine's, since
the tests talk to servers on its loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".tasker" / "images"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release of Debian and the base image that is made of it."""

    suite: str
    python: str
    """The Python that it brings: major and minor version."""
    base: str
    """The name under which the Dockerfiles find it, given as their argument BASE."""


BOOKWORM = Release(suite="bookworm", python="3.11", base="python:3.12-slim")
"""The oldest Python that is supported, under the name that the Dockerfiles have for a default."""
TRIXIE = Release(suite="trixie", python="3.13", base="python:3.13-slim")
RELEASES = (BOOKWORM, TRIXIE)

PACKAGES = "ca-certificates,python3,python3-venv,python-is-python3"
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
SCRIPTS = Path("/usr/share/debootstrap/scripts")
BUILD_SECONDS = 600.0


def missing_tools(release: Release = BOOKWORM) -> str | None:
    """Why images on a release cannot be built here and what is to be done about it, or None."""
    if os.geteuid() != 0:
        return "building images takes root here: debootstrap and chroot isolation need it"
    missing = [tool for tool in ("buildah", "debootstrap", "unshare", "chroot") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: apt-get install buildah debootstrap"
    if not (SCRIPTS / release.suite).exists():
        return f"this debootstrap does not know {release.suite}: install a newer one"
    return None


class BuildFailed(Exception):
    """A command ended with an error; the message is the end of what it printed."""


def _run(*command: str, timeout: float = BUILD_SECONDS) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Started:
    """A running image."""

    process: subprocess.Popen[bytes]
    root: Path
    log_file: Path
    environment: Mapping[str, str]
    user: str
    _enter: Sequence[str] = field(repr=False)

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def execute(self, command: Sequence[str], timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, as a health check does."""
        inside = [*self._enter, *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=timeout, check=False)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


class Images:
    """A store of images on one release of Debian, apart from those on others: their images have the same names."""

    def __init__(self, release: Release = BOOKWORM) -> None:
        self.release = release
        self.folder = FOLDER / release.suite
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made = self.folder / "base.made"
        self._buildah = ("buildah", "--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"))
        self._containers: list[str] = []

    def buildah(self, *arguments: str) -> str:
        """The output of a buildah command on this store. Raises `BuildFailed`."""
        return _run(*self._buildah, *arguments)

    def buildah_command(self, *arguments: str) -> list[str]:
        """The same to be run by the caller."""
        return [*self._buildah, *arguments]

    def make_base(self) -> None:
        """The base image, unless it is there and was made by the same command."""
        tree = self.folder / "base"
        # In a mount namespace of its own: what debootstrap mounts in the tree goes with it, however it ends.
        command = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
        command += [f"--include={PACKAGES}", self.release.suite, str(tree)]
        wanted = " ".join(command)
        if self.made.exists() and self.made.read_text() == wanted and self._exists(self.release.base):
            return
        shutil.rmtree(tree, ignore_errors=True)
        _run(*command)
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(tree / leftover)
            (tree / leftover).mkdir()
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", container, str(tree), "/")
        self.buildah("commit", "--quiet", "--rm", container, self.release.base)
        shutil.rmtree(tree)
        self.made.write_text(wanted)

    def build(
        self, context: Path, tag: str, *, dockerfile: Path | None = None, arguments: Mapping[str, str] | None = None
    ) -> None:
        """Builds as the README says, but with the machine's own trust and package index, and never pulling."""
        options = ["bud", "--isolation=chroot", "--pull-never", "--format=docker", "--layers", f"--tag={tag}"]
        options += [f"--volume={host}:{inside}:ro" for host, inside in self.machine_files()]
        given = {"BASE": self.release.base, **(arguments or {})}
        options += [f"--build-arg={name}={value}" for name, value in given.items()]
        self.buildah(*options, f"--file={dockerfile or context / 'Dockerfile'}", str(context))

    def configuration(self, tag: str) -> dict[str, Any]:
        """The image's configuration: User, Env, Entrypoint, Cmd, Labels, Healthcheck."""
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", tag))["Docker"]["config"]
        return found

    def size(self, tag: str) -> int:
        """Bytes of all layers, unpacked."""
        root = Path(self._mounted(tag))
        files = {
            (status.st_dev, status.st_ino): status.st_size
            for path in root.rglob("*")
            if not path.is_symlink() and path.is_file() and (status := path.lstat())
        }
        return sum(files.values())

    def files(self, tag: str) -> Path:
        """The image's root, to look into."""
        return Path(self._mounted(tag))

    @contextmanager
    def start(
        self,
        tag: str,
        log_file: Path,
        *,
        command: Sequence[str] | None = None,
        files: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Started]:
        """Runs the image while the context is open. `files` appear at their paths in /tmp or /run, for its user."""
        configuration = self.configuration(tag)
        root = Path(self._mounted(tag))
        user = configuration["User"]
        variables = dict(each.split("=", 1) for each in configuration["Env"]) | dict(environment or {})
        entry = command or [*configuration["Entrypoint"], *(configuration.get("Cmd") or ())]
        inside = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        given = [part for inside, file in (files or {}).items() for part in (str(file), inside)]
        script = ["unshare", "--mount", "bash", "-c", _ENTER, "enter", str(root), user, *given, "--"]
        with log_file.open("wb") as output:
            process = subprocess.Popen([*script, *inside, *entry], stdout=output, stderr=output)
        enter = ["nsenter", f"--target={process.pid}", "--mount", "setpriv", "--no-new-privs"]
        enter += ["chroot", f"--userspec={user}", str(root), *inside]
        try:
            yield Started(process=process, root=root, log_file=log_file, environment=variables, user=user, _enter=enter)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)

    def close(self) -> None:
        """Lets go of the containers that were mounted; the images stay."""
        for container in self._containers:
            self.buildah("rm", container)

    def machine_files(self) -> Iterator[tuple[Path, str]]:
        """What lets pip work in a build as on this machine: its certificates and its index, when it has its own."""
        settings = {"cert": str(TRUSTED)} if TRUSTED.exists() else {}
        if os.environ.get("PIP_INDEX_URL"):
            settings["index-url"] = os.environ["PIP_INDEX_URL"]
        file = self.folder / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        yield file, "/etc/pip.conf"
        if TRUSTED.exists():
            yield TRUSTED, str(TRUSTED)

    def _exists(self, tag: str) -> bool:
        done = subprocess.run([*self._buildah, "inspect", "--type=image", tag], capture_output=True, check=False)
        return done.returncode == 0

    def _mounted(self, tag: str) -> str:
        container = self.buildah("from", "--pull-never", tag).strip()
        self._containers.append(container)
        return self.buildah("mount", container).strip()


_ENTER = """
set -eu
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    install -D --owner="${user%:*}" --mode=0400 "$1" "$root$2"
    shift 2
done
shift
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
"""
