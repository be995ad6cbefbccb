"""The process that owns an embedded PostgreSQL server and stops it when its last user has left.

Run by path as ``python -I -S supervisor.py '<json>'`` from ``server``; imports the standard library only, so that it is
up within milliseconds and stays small. It runs in a session of its own: a Ctrl-C at the terminal does not reach it.

Its one argument is a JSON object: folder, data_folder, socket_folder, binaries, major, settings {name: value}. Its
standard output is a pipe on which it writes one JSON line, ``{"ready": true, "notice": text or null}`` or
``{"error": "why"}``; its standard error is the server's log.

Being root is a matter of its own, for PostgreSQL refuses to run as root. See ``_leave_root``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LOCK_POLL_SECONDS = 0.05  # how late the last user's leaving may be noticed
START_SECONDS = 60.0  # crash recovery of a development database fits
STOP_SECONDS = 10.0  # a fast shutdown checkpoints; after that the server is made to quit
RESTART_DELAYS = (0.02, 0.1, 0.5, 1.0, 2.0, 5.0)  # after a crash; a server that then still fails is given up
STEADY_SECONDS = 30.0  # a server that ran this long starts the delays anew

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_NOBODY = 65534


class CannotRunError(Exception):
    """The server cannot be run; the message is for the person who started it."""


class Supervisor:
    """One server and its locks. `run` returns when the server is stopped for good."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.folder = Path(order["folder"])
        self.data = Path(order["data_folder"])
        self.socket_folder = Path(order["socket_folder"])
        self.binaries = Path(order["binaries"])
        self.major = int(order["major"])
        self.settings: dict[str, str] = order["settings"]
        self.server_pid = 0
        self.stop_asked = False

    def run(self) -> None:
        """Take the locks, make the database cluster if there is none, run the server until nobody uses it."""
        own_lock = os.open(self.folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        users_lock = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(own_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRunError(f"another server is being run in {self.folder}") from None
        wake = self._catch_signals()
        self._remove_leftovers()  # before root is left: afterwards another namespace's processes cannot be seen
        notice = _leave_root(self.folder, self.data, self.socket_folder, self.binaries)
        if not (self.data / "PG_VERSION").exists():
            self._create_cluster()
        self._check_version()
        self._launch()
        self._await_ready()
        self._write_facts()
        _tell({"ready": True, "notice": notice})
        self._watch(users_lock, wake)
        self._stop()
        self._remove_facts()

    def _catch_signals(self) -> int:
        """Signals become bytes in a pipe, so that one select waits for them. The pipe's read end."""
        wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: setattr(self, "stop_asked", True))
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        return wake

    def _create_cluster(self) -> None:
        # Made beside its place and renamed: a half-made one is never taken for a whole one.
        fresh = self.data.with_name(self.data.name + ".new")
        _remove_tree(fresh)
        command = [
            str(self.binaries / "initdb"),
            f"--pgdata={fresh}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]
        pid = _spawn(command)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise CannotRunError(f"initdb failed (exit code {os.waitstatus_to_exitcode(status)})")
        fresh.rename(self.data)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
        if made_by != str(self.major):
            raise CannotRunError(
                f"the data in {self.data} was made by PostgreSQL {made_by}, and the programs in {self.binaries} are "
                f"version {self.major}: remove the folder to start afresh, or set DEVCLUSTER_POSTGRES_BIN to "
                f"version {made_by}"
            )

    def _remove_leftovers(self) -> None:
        """End what is left of a server whose supervisor was killed, and remove its lock files.

        PostgreSQL itself removes a stale lock file unless the process number in it exists. When the number has been
        given to another process since, as the small ones in a container are, it would refuse to start for ever.
        """
        for pid in server_processes(self.data):
            _send(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while server_processes(self.data):
            if time.monotonic() > deadline:
                raise CannotRunError(f"a former server in {self.data} does not end: {server_processes(self.data)}")
            time.sleep(0.005)
        stale = [self.data / "postmaster.pid", *self.socket_folder.glob(".s.PGSQL.*")]
        for path in stale:
            path.unlink(missing_ok=True)

    def _launch(self) -> None:
        fixed = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "port": "5432",
        }
        options = [f"--{name}={value}" for name, value in {**self.settings, **fixed}.items()]
        self.server_pid = _spawn([str(self.binaries / "postgres"), "-D", str(self.data), *options])

    def _await_ready(self) -> None:
        """Wait for the word `ready` in the server's lock file, which is how pg_ctl knows too."""
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(self.data, self.server_pid):
            ended, status = os.waitpid(self.server_pid, os.WNOHANG)
            if ended:
                self.server_pid = 0
                raise CannotRunError(f"the server ended at once ({_describe(status)})")
            if time.monotonic() > deadline:
                self._stop()
                raise CannotRunError(f"the server was not ready within {START_SECONDS:.0f} s")
            time.sleep(0.003)

    def _watch(self, users_lock: int, wake: int) -> None:
        """Return when nobody uses the server any more or a stop was asked for; restart it after a crash."""
        crashes, started = 0, time.monotonic()
        while not self.stop_asked:
            try:
                fcntl.flock(users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return
            select.select([wake], [], [], LOCK_POLL_SECONDS)
            _drain(wake)
            ended, status = os.waitpid(self.server_pid, os.WNOHANG)
            if not ended:
                continue
            self.server_pid = 0
            if time.monotonic() - started > STEADY_SECONDS:
                crashes = 0
            _log(f"the server ended ({_describe(status)}) and is started again")
            while not self.server_pid and not self.stop_asked:
                if crashes == len(RESTART_DELAYS):
                    raise CannotRunError("the server ended again and again; it is given up")
                time.sleep(RESTART_DELAYS[crashes])
                crashes += 1
                try:
                    self._remove_leftovers()
                    self._launch()
                    self._await_ready()
                except CannotRunError as error:
                    _log(str(error))
            self._write_facts()
            started = time.monotonic()

    def _stop(self) -> None:
        """A fast shutdown; if it hangs, an immediate one; then the hard way."""
        for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 5.0)):
            if not self.server_pid:
                return
            _send(self.server_pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if os.waitpid(self.server_pid, os.WNOHANG)[0]:
                    self.server_pid = 0
                    return
                time.sleep(0.003)

    def _write_facts(self) -> None:
        """What those who join need to know, in a file replaced as a whole."""
        facts = {
            "supervisor": os.getpid(),
            "server": self.server_pid,
            "socket_folder": str(self.socket_folder),
            "settings": self.settings,
        }
        fresh = self.folder / "server.json.new"
        fresh.write_text(json.dumps(facts), encoding="utf-8")
        fresh.rename(self.folder / "server.json")

    def _remove_facts(self) -> None:
        (self.folder / "server.json").unlink(missing_ok=True)
        if self.socket_folder.parent != self.folder:
            with suppress(OSError):  # not empty, or another server's by now
                self.socket_folder.rmdir()


def is_ready(data: Path, pid: int) -> bool:
    """Whether the server process `pid` accepts connections, by the lock file in its data folder."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def server_processes(data: Path) -> list[int]:
    """The processes of a server in this data folder: those called postgres that have it as their working folder.

    Empty where there is no /proc; there PostgreSQL's own checks must do.
    """
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
            if name in {"postgres", "postmaster"} and (entry / "cwd").readlink() == data:
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or it is another user's
    return found


def _leave_root(folder: Path, data: Path, socket_folder: Path, binaries: Path) -> str | None:
    """As root, become someone whom PostgreSQL accepts.

    A new user namespace without a mapping shows every user as `nobody` inside, so that PostgreSQL does not see root,
    while to the kernel the files stay root's: nothing is changed on the disk and no system user is needed. Where the
    kernel or a container's rules refuse that, the folder is given to the unprivileged user `nobody` and the server runs
    as that one. A data folder that already belongs to someone else decides by itself: the server runs as its owner.
    What was done is told only when it is not the first of these.
    """
    if os.geteuid() != 0:
        return None
    notice = None
    owner = data.stat().st_uid if data.exists() else 0
    if owner == 0:
        try:
            _new_user_namespace()
        except OSError as error:
            owner = _NOBODY
            notice = f"no user namespace can be made here ({error}): it runs as uid {owner}, which gets {folder}"
            _log(notice)
        else:
            return None
    for place in (folder, socket_folder):
        os.chown(place, owner, -1)
    for place in (data, data.with_name(data.name + ".new")):
        if place.exists():
            _give_tree(place, owner)
    try:
        os.setgroups([])
        os.setgid(owner)
        os.setuid(owner)
    except OSError as error:
        raise CannotRunError(
            f"PostgreSQL does not run as root, and neither a user namespace nor another user can be had here "
            f"({error}): run this as an ordinary user, or set DATABASE_URL to a server that already runs"
        ) from error
    for place, right in ((binaries / "postgres", os.X_OK), (folder, os.R_OK | os.W_OK | os.X_OK)):
        if not os.access(place, right):
            raise CannotRunError(
                f"PostgreSQL does not run as root, no user namespace can be made here, and uid {owner} cannot reach "
                f"{place}: use a folder that everybody can pass through, run as an ordinary user, or set DATABASE_URL"
            )
    return notice


def _new_user_namespace() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _spawn(command: Sequence[str]) -> int:
    """Run a program that dies with this process, its output in the log. Its process number."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(2, 1)
        if sys.platform == "linux":
            # An immediate shutdown when the supervisor is killed: the log is replayed at the next start.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() != parent:
                os._exit(1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        os.execve(command[0], list(command), environment)  # noqa: S606 - a shell would be worse
    except BaseException as error:
        os.write(2, f"supervisor: {command[0]}: {error}\n".encode())
    os._exit(127)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _drain(wake: int) -> None:
    with suppress(BlockingIOError):
        while os.read(wake, 512):
            pass


def _give_tree(place: Path, owner: int) -> None:
    os.chown(place, owner, -1)
    for parent, folders, files in os.walk(place):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), owner, -1, follow_symlinks=False)  # noqa: PTH118 - os.walk gives strings


def _remove_tree(place: Path) -> None:
    if not place.exists():
        return
    for parent, folders, files in os.walk(place, topdown=False):
        for name in files:
            (Path(parent) / name).unlink()
        for name in folders:
            (Path(parent) / name).rmdir()
    place.rmdir()


def _log(message: str) -> None:
    print(f"supervisor: {message}", file=sys.stderr, flush=True)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _tell(message: Mapping[str, Any]) -> None:
    """One line to the one who started us; the pipe is closed after it."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
    os.dup2(2, 1)


def main() -> NoReturn:
    """Entry point of the script."""
    try:
        Supervisor(json.loads(sys.argv[1])).run()
    except (CannotRunError, OSError) as error:
        _log(str(error))
        _tell({"error": str(error)})
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
