"""The whole operator from its start to its end: what it waits for, what its probes say, how it lets go."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import kopf
import pytest

from support.controller_fakes import FakeEngine, task, template
from support.fake_cluster import FakeCluster
from tasker.controller import app
from tasker.controller.handlers import WatchRestartCounter
from tasker.controller.kube.access import renew_credentials
from tasker.controller.kube.client import Cluster
from tasker.controller.runtime.supervision import Breakdown
from tasker.settings import DatabaseSettings, OperatorSettings


class World:
    """What the operator meets: a cluster whose first answer waits for `answers`, an engine, and kopf."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.engine = FakeCluster(), FakeEngine()
        self.answers, self.watching, self.let_go = asyncio.Event(), asyncio.Event(), list[str]()
        self.spawned: dict[str, Any] = {}
        self.ignored: set[asyncio.Task[Any]] = set()
        self.port = asyncio.get_running_loop().create_future()
        self.faults: list[str] = []
        self.cluster.store({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": "k"}})
        send = self.cluster._send

        async def send_when_it_answers(*arguments: Any) -> Any:
            await self.answers.wait()
            return await send(*arguments)

        async def close() -> None:
            self.let_go.append("cluster")

        monkeypatch.setattr(self.cluster, "_send", send_when_it_answers)
        monkeypatch.setattr(self.cluster, "close", close)
        monkeypatch.setattr(Cluster, "connect", self.connect)
        monkeypatch.setattr(app, "client_configuration", self.client_configuration)
        monkeypatch.setattr(app, "open_engine", self.open_engine)
        monkeypatch.setattr(kopf, "spawn_tasks", self.spawn_tasks)
        monkeypatch.setattr(kopf, "run_tasks", self.run_tasks)
        monkeypatch.setattr(app.logger, "info", self.note_port)

    async def client_configuration(self) -> str:
        return "the configuration"

    async def connect(self, configuration: str, *, renew: Any) -> FakeCluster:
        assert (configuration, renew) == ("the configuration", renew_credentials)
        return self.cluster

    @asynccontextmanager
    async def open_engine(self, database: DatabaseSettings) -> AsyncIterator[FakeEngine]:
        assert database.url == "postgresql:///x"
        try:
            yield self.engine
        finally:
            self.let_go.append(f"engine: {await self.probe('readyz')}")

    async def spawn_tasks(self, **arguments: Any) -> list[asyncio.Task[Any]]:
        self.spawned = arguments
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)  # as kopf does
        return []

    async def run_tasks(self, tasks: Sequence[Any], *, ignored: set[asyncio.Task[Any]]) -> None:
        self.ignored = ignored
        self.watching.set()
        await asyncio.Event().wait()

    def note_port(self, message: str, *arguments: Any) -> None:
        if "port" in message:
            self.port.set_result(arguments[0])

    async def probe(self, path: str) -> str:
        url = f"http://127.0.0.1:{await self.port}/{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return f"{answer.status} {(await answer.text()).strip()}"

    def start(self, **settings: Any) -> asyncio.Task[None]:
        made = OperatorSettings(
            **{
                "worker_image": "w:1",
                "worker_database_url": "postgresql:///x",
                "health_host": "127.0.0.1",
                "health_port": 0,
                **settings,
            }
        )
        return asyncio.create_task(app.run(DatabaseSettings(url="postgresql:///x"), made, on_fault=self.faults.append))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    watching, kopfs = logging.getLogger(WatchRestartCounter.LOGGER), logging.getLogger("kopf")
    before = watching.handlers[:], watching.level, kopfs.level
    yield
    watching.handlers[:], watching.level, kopfs.level = before


async def test_it_says_what_it_waits_for_works_and_lets_go_of_everything(world: World) -> None:
    world.cluster.store(template())
    world.cluster.store(task())
    async with asyncio.timeout(30):
        running = world.start(installation="ns/name")
        assert await world.probe("healthz") == "200 ok"
        assert await world.probe("readyz") == "503 waiting for the operator to start"
        world.answers.set()
        await world.watching.wait()
        assert world.engine.installation.taken == ["ns/name@k"]
        assert await world.probe("readyz") == "200 ok"
        assert "tasker_operator_reconciles_total" in await world.probe("metrics")
        world.engine.obstacle = "it takes no writes"
        assert await world.probe("readyz") == "503 waiting for the database: it takes no writes"
        assert await world.probe("healthz") == "200 ok", "a new process would not mend it"
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    assert world.let_go == ["cluster", "engine: 503 waiting for the operator to stop"]
    assert world.faults == []
    assert len(world.engine.changes.cursors) >= 1
    assert world.engine.changes.cursors[0] is None, "changes are read from before the first list on"
    with pytest.raises(aiohttp.ClientError):
        await world.probe("healthz")


async def test_while_the_first_list_is_read_it_says_so(world: World) -> None:
    async with asyncio.timeout(30):
        asked = asyncio.Event()

        async def open_origins(namespace: str | None = None) -> list[Any]:
            asked.set()
            return await asyncio.Event().wait()  # type: ignore[return-value]

        world.engine.tasks.open_origins = open_origins  # type: ignore[method-assign]
        world.answers.set()
        running = world.start()
        await asked.wait()
        assert await world.probe("readyz") == "503 waiting for the first list of resources"
        assert world.engine.changes.cursors == [None], "what moves from now on is read after it"
        os.kill(os.getpid(), signal.SIGTERM)
        await running


async def test_a_part_that_breaks_is_told_by_the_probes_and_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30):
        world.answers.set()

        async def ends(tasks: Sequence[Any], *, ignored: Any) -> None:
            return

        monkeypatch.setattr(kopf, "run_tasks", ends)
        with pytest.raises(Breakdown, match="part 'watches' ended by itself"):
            await world.start()
    assert world.faults == ["part 'watches' ended by itself"]
    assert world.let_go == ["cluster", "engine: 503 broken: part 'watches' ended by itself"]


@pytest.mark.parametrize("namespaces", [(), ("mine", "yours")])
async def test_kopf_watches_what_is_served_and_no_more(world: World, namespaces: tuple[str, ...]) -> None:
    world.answers.set()
    async with asyncio.timeout(30):
        running = world.start(watch_namespaces=namespaces, watch_silence_seconds=33.0)
        await world.watching.wait()
        ours = asyncio.current_task()
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    registry, settings, vault = (world.spawned.pop(name) for name in ("registry", "settings", "vault"))
    assert vault.is_empty()
    assert world.spawned == {"standalone": True, "clusterwide": not namespaces, "namespaces": namespaces}
    assert settings.watching.inactivity_timeout == 33.0
    assert settings.scanning.disabled is bool(namespaces)
    watched = {str(handler.selector.any_name) for handler in registry._watching.get_all_handlers()}
    assert ("namespaces" in watched) is (not namespaces)
    assert {ours, running} <= world.ignored, "kopf is not to wait for tasks that are not its own"


async def test_restarts_of_watches_are_counted(world: World) -> None:
    world.answers.set()
    async with asyncio.timeout(30):
        running = world.start()
        await world.watching.wait()
        logging.getLogger(WatchRestartCounter.LOGGER).debug("Watch-stream for %s is inactive, reconnecting", "tasks")
        assert 'tasker_operator_watch_restarts_total{resource="tasks"} 1.0' in await world.probe("metrics")
        os.kill(os.getpid(), signal.SIGTERM)
        await running
