"""The three images, built without a registry and started as a kubelet would: not as root, on a read-only root.

All of it on two releases of Debian, and so with two versions of Python.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from devcluster.apiserver import ApiServer
from devcluster.kubectl import find_kubectl
from support.definitions import CRD_FOLDER
from support.images import RELEASES, ROOT, Images, Started, missing_tools
from support.waiting import eventually, eventually_async
from tasker.engine import Engine
from tasker.factory import open_engine
from tasker.model.task import TaskRequest
from tasker.model.template import parse_template_spec
from tasker.settings import DatabaseSettings
from tasker_worker._version import __version__

pytestmark = [pytest.mark.images, pytest.mark.timeout(900)]

OPERATOR, WORKER, OWN = f"tasker-operator:{__version__}", f"tasker-worker:{__version__}", "greetings:1.0.0"
MEGABYTE = 1_000_000
UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture(scope="module", params=RELEASES, ids=lambda release: str(release.suite))
def images(request: pytest.FixtureRequest) -> Iterator[Images]:
    reason = missing_tools(request.param)
    if reason is not None:
        pytest.skip(reason)
    built = Images(request.param)
    built.make_base()
    arguments = {"VERSION": __version__, "REVISION": "abc"}
    built.build(ROOT / "worker_image", WORKER, arguments=arguments)
    built.build(ROOT, OPERATOR, dockerfile=ROOT / "operator" / "Dockerfile", arguments=arguments)
    built.build(ROOT / "tests" / "data" / "own_image", OWN)
    yield built
    built.close()


@asynccontextmanager
async def tcp_to(url: str) -> AsyncIterator[str]:
    """The database of a URL by way of a TCP port: the test's server listens on a socket in a folder that is root's."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    host, port = parts["host"], int(parts.get("port", "5432"))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if host.startswith("/"):
            server_reader, server_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server_reader, server_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        address = listener.sockets[0].getsockname()
        password = f":{parts['password']}" if "password" in parts else ""
        yield f"postgresql://{parts['user']}{password}@127.0.0.1:{address[1]}/{parts['dbname']}"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def fetch(port: str, path: str) -> tuple[int, str]:
    """Status and text; status 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def answers(started: Started, port: str, path: str, status: int) -> str:
    def probe() -> str:
        assert started.process.poll() is None, started.log
        code, text = fetch(port, path)
        assert code == status, f"{code} {text}\n{started.log}"
        return text

    return eventually(probe, timeout=30)


async def answers_async(started: Started, port: str, path: str, status: int) -> str:
    return await asyncio.to_thread(answers, started, port, path, status)


def service_account(server: str, authority: bytes, token: str, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files and the variables that a kubelet gives to a pod of the cluster."""
    (folder / "ca.crt").write_bytes(authority)
    (folder / "token").write_text(token)
    address = urlsplit(server)
    variables = {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)}
    inside = "/run/secrets/kubernetes.io/serviceaccount"
    return {f"{inside}/{name}": folder / name for name in ("ca.crt", "token")}, variables


def health_check(images: Images, tag: str, started: Started) -> int:
    """The exit code of the image's own health check."""
    kind, *command = images.configuration(tag)["Healthcheck"]["Test"]
    assert kind == "CMD"
    return started.execute(command).returncode


def test_the_images_are_small(images: Images) -> None:
    base = images.size(images.release.base)
    assert images.size(WORKER) - base < 150 * MEGABYTE
    assert images.size(OPERATOR) - base < 200 * MEGABYTE


@pytest.mark.parametrize(
    ("tag", "entry", "command"),
    [
        (OPERATOR, ["python", "-m", "tasker.controller"], None),
        (WORKER, ["python", "-m", "tasker_worker"], None),
        (OWN, ["python", "-m", "tasker_worker"], ["greetings.handlers"]),
    ],
)
def test_the_images_say_how_they_are_run(images: Images, tag: str, entry: list[str], command: list[str] | None) -> None:
    configuration = images.configuration(tag)
    assert configuration["User"] == "65532:65532"
    assert "PYTHONSAFEPATH=1" in configuration["Env"]
    assert configuration["Entrypoint"] == entry
    assert (configuration.get("Cmd") or None) == command
    assert configuration["Healthcheck"]["Test"][0] == "CMD"
    labels = configuration["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == "abc"


def test_the_images_run_the_python_of_their_release(images: Images) -> None:
    for tag in (OPERATOR, WORKER, OWN):
        [libraries] = images.files(tag).glob("opt/tasker/lib/python3.*")
        assert libraries.name == f"python{images.release.python}"


def test_the_workers_image_knows_nothing_of_kubernetes(images: Images) -> None:
    packages = {path.name for path in images.files(WORKER).glob("opt/tasker/lib/python3.*/site-packages/*")}
    assert {"tasker_worker", "psycopg", "pydantic"} <= packages
    assert not {"tasker", "kopf", "kubernetes", "aiohttp"} & packages


def test_nothing_in_the_images_can_be_changed_by_their_user(images: Images) -> None:
    for tag in (OPERATOR, WORKER, OWN):
        owners = {path.lstat().st_uid for path in images.files(tag).joinpath("opt/tasker").rglob("*")}
        assert owners == {0}


def test_the_operator_waits_for_its_database_and_says_so(images: Images, tmp_path: Path) -> None:
    port = free_port()
    files, variables = service_account("https://127.0.0.1:1", b"not asked for yet", "secret", tmp_path)
    variables |= {"DATABASE_URL": UNREACHABLE, "TASKER_HEALTH_PORT": port, "TASKER_HEALTH_HOST": "127.0.0.1"}
    with images.start(OPERATOR, tmp_path / "log", files=files, environment=variables) as started:
        assert answers(started, port, "/healthz", 200) == "ok\n"
        assert "waiting for the database" in answers(started, port, "/readyz", 503)
        assert health_check(images, OPERATOR, started) == 0
        assert started.execute(["touch", "/opt/tasker/x"]).returncode != 0
        assert started.execute(["id", "-u"]).stdout == "65532\n"
        assert started.stop() == 0


def test_the_operators_health_check_can_fail(images: Images, tmp_path: Path) -> None:
    with images.start(
        OPERATOR, tmp_path / "log", command=["sleep", "60"], environment={"TASKER_HEALTH_PORT": free_port()}
    ) as started:
        assert health_check(images, OPERATOR, started) == 1


async def test_the_migration_runs_in_the_operators_image(
    images: Images, empty_database_url: str, tmp_path: Path
) -> None:
    async with tcp_to(empty_database_url) as url:
        for expected in ("applied functions", "the schema is up to date"):
            with images.start(
                OPERATOR, tmp_path / "log", command=["tasker", "migrate"], environment={"DATABASE_URL": url}
            ) as started:
                assert await asyncio.to_thread(started.process.wait, 60) == 0, started.log
                assert expected in started.log


async def test_the_operator_becomes_ready_in_a_pod_that_knows_its_cluster_by_address_alone(
    images: Images, database_url: str, tmp_path: Path
) -> None:
    """What a kubelet gives a pod is all it has: an address, a token, a certificate. Nothing answers for a name."""
    port, kubeconfig = free_port(), tmp_path / "kubeconfig"
    async with ApiServer(tmp_path / "apiserver") as server, tcp_to(database_url) as url:
        server.write_kubeconfig(kubeconfig)
        apply = [str(find_kubectl()), f"--kubeconfig={kubeconfig}", "apply", "-f", str(CRD_FOLDER)]
        applied = await asyncio.create_subprocess_exec(*apply, stdout=asyncio.subprocess.DEVNULL)
        assert await applied.wait() == 0
        given = yaml.safe_load(kubeconfig.read_text())
        target, token = given["clusters"][0]["cluster"], given["users"][0]["user"]["token"]
        authority = base64.b64decode(target["certificate-authority-data"])
        files, variables = service_account(target["server"], authority, token, tmp_path)
        variables |= {"DATABASE_URL": url, "TASKER_HEALTH_PORT": port}
        with images.start(OPERATOR, tmp_path / "log", files=files, environment=variables) as started:
            assert await answers_async(started, port, "/readyz", 200) == "ok\n"

            def watching() -> bool:
                _, metrics = fetch(port, "/metrics")
                # ADDED is what kopf's watch hands over; what the operator lists by itself is counted as LISTED.
                assert 'tasker_operator_events_total{kind="TaskTemplate",type="ADDED"} 1.0' in metrics, started.log
                return True

            template = {
                "apiVersion": "tasker.dev/v1alpha1",
                "kind": "TaskTemplate",
                "metadata": {"name": "one"},
                "spec": {"steps": [{"name": "a", "handler": {"callable": "a"}}]},
            }
            create = [str(find_kubectl()), f"--kubeconfig={kubeconfig}", "create", "-f", "-"]
            created = await asyncio.create_subprocess_exec(
                *create, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
            await created.communicate(json.dumps(template).encode())
            assert created.returncode == 0
            await asyncio.to_thread(eventually, watching, timeout=20)
            assert "error" not in started.log
            assert await asyncio.to_thread(started.stop) == 0


def test_the_worker_says_what_it_lacks(images: Images, tmp_path: Path) -> None:
    with images.start(WORKER, tmp_path / "log") as started:
        assert started.process.wait(30) == 1
        assert "DATABASE_URL is required" in started.log


async def test_an_image_of_ones_own_runs_its_packages_steps(images: Images, database_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with open_engine(DatabaseSettings(url=database_url)) as engine, tcp_to(database_url) as url:
        task_uuid = await submit(engine)
        variables = {"DATABASE_URL": url, "PORT": port, "TASKER_NAMESPACE": "orders"}
        with images.start(OWN, tmp_path / "log", environment=variables) as started:
            await answers_async(started, port, "/health/ready", 200)

            async def finished() -> bool:
                return (await engine.tasks.read(task_uuid)).state == "complete"

            await eventually_async(finished, timeout=30)
            assert await asyncio.to_thread(health_check, images, OWN, started) == 0
            assert await asyncio.to_thread(started.stop) == 0
        summary = await engine.tasks.read(task_uuid)
    assert summary.leaf_results is not None
    seen = summary.leaf_results["look_around"]
    assert seen["greeting"] == "hello xn--bcher-kva.example"
    assert (seen["uid"], seen["can_write_root"], seen["can_write_tmp"]) == (65532, False, True)
    assert "Debian" in seen["os"]


async def submit(engine: Engine) -> UUID:
    steps = [
        {"name": "greet", "handler": {"callable": "greet"}},
        {"name": "look_around", "handler": {"callable": "look_around"}, "dependsOn": ["greet"]},
    ]
    await engine.templates.register("orders", "greetings", parse_template_spec({"steps": steps}))
    [submitted] = await engine.tasks.submit(
        "orders", [TaskRequest(template_name="greetings", context={"domain": "bücher.example"})]
    )
    return submitted.task_uuid
