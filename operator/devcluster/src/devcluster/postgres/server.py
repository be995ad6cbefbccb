"""Start, join, stop and kill an embedded PostgreSQL server. Called by the dev command and the tests."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from devcluster.errors import EmbeddedError
from devcluster.locks import FileLock, is_held
from devcluster.postgres.binaries import PostgresBinaries, find_binaries
from devcluster.postgres.supervisor import START_SECONDS, STOP_SECONDS, is_ready, server_processes

logger = logging.getLogger(__name__)

DATABASE_VARIABLE = "DATABASE_URL"
DEFAULT_DATABASE = "devcluster"

# A Unix socket's path has at most 107 bytes and a closing zero on Linux, 103 on macOS.
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_SOCKET_NAME = ".s.PGSQL.5432"
_LOG_BYTES = 8 * 1024 * 1024  # a larger log is set aside once, at a start
_LOG_TAIL_LINES = 15
_POLL_SECONDS = 0.005
_WAIT_SECONDS = START_SECONDS + STOP_SECONDS + 10  # for another process that creates, starts or stops the server

_DEFAULT_SETTINGS = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgres:
    """A PostgreSQL server on this machine, in one folder, shared by all processes that start it there.

    `data_folder` is made with mode 0700 and holds the data, the log, the socket and the lock files. `settings` are
    server settings by name (``{"fsync": "off"}``); joining a server that runs with another value of one of them is an
    error, for a setting cannot be changed under those who use it. The server listens on a Unix socket only.

    One object is one user of the server. It is not safe to share it between threads; several objects on one folder are.
    """

    def __init__(
        self,
        data_folder: Path | str,
        settings: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = Path(os.path.abspath(data_folder))  # noqa: PTH100 - Path.absolute keeps "..", resolve needs it to exist
        self._settings = {name: str(value) for name, value in (settings or {}).items()}
        self._environment = environment
        self._users = FileLock(self._folder / "users.lock")
        self._socket_folder: Path | None = None
        self._supervisor_child = 0

    @property
    def data_folder(self) -> Path:
        """The folder given, as an absolute path."""
        return self._folder

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._folder / "postgres.log"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, or join the one that runs; back when it accepts connections.

        Doing it again changes nothing. Blocks for about 0.1 s, and for half a second more the first time in a folder.
        Raises ``EmbeddedError`` with the end of the server's log when it cannot be run.
        """
        self._prepare_folder()
        try:
            with FileLock(self._folder / "start.lock") as start_lock:
                start_lock.lock("exclusive", _WAIT_SECONDS)
                # When the supervisor has this one exclusively it is stopping the server: it will let go.
                self._users.lock("shared", STOP_SECONDS + 10)
                if not (self._is_supervised() and self._join()):
                    self._reap()
                    self._launch(find_binaries(self._environment))
        except BaseException:
            self._users.release()
            self._reap()
            raise

    def stop(self) -> None:
        """Leave the server; the last user's leaving stops it, and then this waits until it has ended."""
        if not self._users.is_open:
            return
        with FileLock(self._folder / "start.lock") as start_lock:
            start_lock.lock("exclusive", _WAIT_SECONDS)
            last = self._users.try_lock("exclusive")
            # Not even shared: then the supervisor has it, for the last other user has just left.
            ending = last or not self._users.try_lock("shared")
            if last:
                self._signal_supervisor(signal.SIGTERM)
            else:
                self._users.release()
            if ending:
                self._await_end(STOP_SECONDS + 10)
            self._users.release()
        self._reap()

    def kill(self) -> None:
        """SIGKILL to every process of the server at once, as a power cut would; for fault tests.

        Others who use the server lose their connections too. `start` brings it back, from any of its users.
        """
        # The supervisor is halted first, so that it cannot start what is being killed.
        self._signal_supervisor(signal.SIGSTOP)
        with suppress(FileNotFoundError, ValueError, IndexError, ProcessLookupError):
            server = int((self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
            if self._is_supervised():
                os.kill(server, signal.SIGKILL)
        for process in server_processes(self._data):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._signal_supervisor(signal.SIGKILL)
        self._await_end(10.0)
        self._reap()

    def restart(self) -> None:
        """An orderly stop and start under those who use the server, settings included."""
        self._signal_supervisor(signal.SIGTERM)
        self._await_end(STOP_SECONDS + 10)
        self.start()

    def url(self, dbname: str = "postgres") -> str:
        """The connection URL of a database of the server, which must have been started by this object."""
        if self._socket_folder is None:
            raise EmbeddedError("the embedded PostgreSQL has no address before it is started")
        return (
            f"postgresql://postgres@/{quote(dbname, safe='')}?host={quote(str(self._socket_folder), safe='')}&port=5432"
        )

    def ensure_database(self, dbname: str) -> str:
        """Create the database unless it exists. Its connection URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection, suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(dbname)))
        return self.url(dbname)

    def _prepare_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self._folder.stat().st_uid
            if os.geteuid() not in {0, owner}:
                raise EmbeddedError(
                    f"{self._folder} belongs to uid {owner}, and this is uid {os.geteuid()}: use another folder, "
                    f"or remove it"
                )
            self._folder.chmod(0o700)
        except OSError as error:
            raise EmbeddedError(f"{self._folder} cannot be used for the embedded PostgreSQL: {error}") from error

    def _is_supervised(self) -> bool:
        return is_held(self._folder / "supervisor.lock")

    def _facts(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self._folder / "server.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return facts

    def _join(self) -> bool:
        """Use the server that runs. It may be in the middle of a restart after a crash: wait for it.

        False when it ended instead: it was being stopped, or another's start of it had failed.
        """
        deadline = time.monotonic() + START_SECONDS
        while not ((facts := self._facts()) and is_ready(self._data, int(facts["server"]))):
            if not self._is_supervised():
                return False
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"the embedded PostgreSQL was not ready in {START_SECONDS:.0f} s\n{self._log_tail()}"
                )
            time.sleep(_POLL_SECONDS)
        running = facts["settings"]
        differing = [
            f"{name}={value} (it has {running.get(name, 'the default')})"
            for name, value in self._settings.items()
            if running.get(name) != value
        ]
        if differing:
            raise EmbeddedError(
                f"the PostgreSQL that runs in {self._folder} was started with other settings than asked for: "
                f"{', '.join(differing)}. End what uses it, or use another data folder"
            )
        self._socket_folder = Path(facts["socket_folder"])
        return True

    def _launch(self, binaries: PostgresBinaries) -> None:
        """Run the supervisor and wait for its word. Needs start.lock and users.lock."""
        folder = self._folder.resolve()
        socket_folder = _socket_folder(folder)
        order = {
            "folder": str(folder),
            "data_folder": str(folder / "data"),
            "socket_folder": str(socket_folder),
            "binaries": str(binaries.folder),
            "major": binaries.major,
            "settings": {**_DEFAULT_SETTINGS, **self._settings},
        }
        if not self._data.exists():
            logger.info("creating a PostgreSQL %s database cluster in %s", binaries.version, self._folder)
        with suppress(FileNotFoundError):
            if self.log_file.stat().st_size > _LOG_BYTES:
                self.log_file.rename(self.log_file.with_suffix(".log.1"))
        (self._folder / "server.json").unlink(missing_ok=True)
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        log_start = os.fstat(log).st_size
        answer_end, write_end = os.pipe()
        script = Path(__file__).with_name("supervisor.py")
        try:
            self._supervisor_child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", str(script), json.dumps(order)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigmask=(),
            )
        finally:
            os.close(write_end)
            os.close(log)
        try:
            answer = _read_answer(answer_end, START_SECONDS + STOP_SECONDS)
        finally:
            os.close(answer_end)
        if not answer.get("ready"):
            reason = answer.get("error", "its supervisor ended without a word")
            raise EmbeddedError(
                f"the embedded PostgreSQL {binaries.version} ({binaries.folder}) did not start: {reason}\n"
                f"{self._log_tail(log_start)}"
            )
        if answer.get("notice"):
            logger.warning("PostgreSQL does not run as root, and %s", answer["notice"])
        self._socket_folder = socket_folder

    def _log_tail(self, start: int = 0) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(start)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        except OSError:
            lines = []
        return "\n".join([f"The end of {self.log_file}:", *(f"  {line}" for line in lines)])

    def _signal_supervisor(self, number: signal.Signals) -> None:
        supervisor = self._facts().get("supervisor")
        # The lock tells that the number is still that process's.
        if supervisor and self._is_supervised():
            with suppress(ProcessLookupError):
                os.kill(int(supervisor), number)

    def _await_end(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._is_supervised() or server_processes(self._data):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"the embedded PostgreSQL in {self._folder} did not end in {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _reap(self) -> None:
        """Collect the exit code of a supervisor that this process started and that has ended."""
        if self._supervisor_child:
            deadline = time.monotonic() + 1.0
            with suppress(ChildProcessError):
                while os.waitpid(self._supervisor_child, os.WNOHANG)[0] == 0:
                    if self._is_supervised() or time.monotonic() > deadline:
                        return  # others use the server still; whoever is our parent collects it
                    time.sleep(_POLL_SECONDS)
            self._supervisor_child = 0


@contextmanager
def database_url(
    data_folder: Path | str, *, dbname: str = DEFAULT_DATABASE, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The URL of a database: ``DATABASE_URL`` when it is set, else one in an embedded server for the block's time."""
    environment = os.environ if environment is None else environment
    given = environment.get(DATABASE_VARIABLE)
    if given:
        yield given
        return
    with EmbeddedPostgres(data_folder, environment=environment) as server:
        yield server.ensure_database(dbname)


def _socket_folder(folder: Path) -> Path:
    """A private folder for the socket: inside `folder` if its path is short enough, else among the temporary files."""
    inside = folder / "socket"
    if _fits(inside):
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    for parent in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"))):  # noqa: S108 - checked below
        short = parent / f"devcluster-pg-{os.geteuid()}-{digest}"
        if not _fits(short):
            continue
        short.mkdir(mode=0o700, exist_ok=True)
        found = short.lstat()
        # The name can be guessed, so somebody else may have made it. As root, a former run may have given it to nobody.
        owners = {os.geteuid(), 65534} if os.geteuid() == 0 else {os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or stat.S_IMODE(found.st_mode) != 0o700:
            raise EmbeddedError(f"{short} is not a private folder of this user: remove it")
        return short
    raise EmbeddedError(f"no place for a socket: {inside} and the folder for temporary files have too long paths")


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES


def _read_answer(descriptor: int, timeout: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    text = b""
    while not text.endswith(b"\n"):
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return {"error": f"no word from its supervisor in {timeout:.0f} s"}
        read = os.read(descriptor, 4096)
        if not read:
            return {}
        text += read
    answer: dict[str, Any] = json.loads(text)
    return answer
