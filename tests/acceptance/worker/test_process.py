"""`python -m tasker_worker` as a process: its start, its work, its end, and what it lives through."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from devcluster.postgres import EmbeddedPostgres
from support.engine import NAMESPACE, Lab, open_lab, step
from support.waiting import eventually, eventually_async
from support.workers import WorkerProcess, worker_processes
from tasker.factory import migrate

HANDLERS = """
    import asyncio, os, sys, threading, time
    from pathlib import Path
    from tasker_worker import step_handler
    from tasker_worker.logging import log_info

    def signals(context):
        return Path(context.task_context["folder"])

    @step_handler("do")
    def do(context):
        log_info("doing", api_token="hunter2")
        return {"worker": os.environ["TASKER_WORKER_NAME"], "attempt": context.attempt}

    @step_handler("held")
    async def held(context):
        (signals(context) / f"held.{context.attempt}").touch()
        while not (signals(context) / "go").exists():
            await asyncio.sleep(0.005)
        return {"worker": os.environ["TASKER_WORKER_NAME"], "attempt": context.attempt}

    @step_handler("blocks_the_loop")
    async def blocks_the_loop(context):
        while not (signals(context) / "go").exists():
            time.sleep(0.005)
        (signals(context) / "unblocked").touch()

    @step_handler("blocks_when_told")
    async def blocks_when_told(context):
        while not (signals(context) / "block").exists():
            await asyncio.sleep(0.005)
        (signals(context) / "blocked").touch()
        while not (signals(context) / "go").exists():
            time.sleep(0.005)

    @step_handler("counts")
    def counts(context):
        with (signals(context) / "runs").open("a") as runs:
            runs.write(f"{context.attempt}\\n")

    @step_handler("exits_in_a_child")
    async def exits_in_a_child(context):
        async def child():
            sys.exit(5)
        await asyncio.get_running_loop().create_task(child())

    @step_handler("leaves_a_thread")
    def leaves_a_thread(context):
        threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
"""


@pytest_asyncio.fixture
async def lab(database_url: str) -> AsyncIterator[Lab]:
    """The engine that the processes work for."""
    async with open_lab(database_url) as made:
        yield made


@pytest.fixture
def handlers(tmp_path: Path) -> str:
    """A folder of handlers, as a ConfigMap would be mounted."""
    folder = tmp_path / "handlers"
    folder.mkdir()
    (folder / "shop_handlers.py").write_text(textwrap.dedent(HANDLERS))
    return str(folder)


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(database_url: str, tmp_path: Path, handlers: str) -> Any:
    """Starts worker processes, which end with the test."""
    started: list[WorkerProcess] = []

    def begin(name: str = "w-1", *modules: str, **environment: str) -> WorkerProcess:
        variables = {
            "TASKER_NAMESPACE": NAMESPACE,
            "TASKER_HANDLERS_PATH": handlers,
            "TASKER_SHUTDOWN_GRACE_SECONDS": "10",
            "TASKER_TERMINATION_LOG": str(tmp_path / "termination-log"),
            **environment,
        }
        worker = WorkerProcess(database_url, name, modules, tmp_path / f"{name}.log", variables)
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        worker.stop()


async def _ended(lab: Lab, task: UUID, state: str = "complete") -> dict[str, dict[str, Any]]:
    async def there() -> bool:
        return await lab.state(task) == state

    await eventually_async(there, timeout=30, what=f"{task} ended as {state}")
    return await lab.steps(task)


def _appears(path: Path) -> Awaitable[bool]:
    async def there() -> bool:
        return await asyncio.to_thread(path.exists)

    return eventually_async(there, timeout=20, what=f"{path.name} appeared")


def _lines(worker: WorkerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.log.read_text().splitlines()]


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _port(worker: WorkerProcess) -> int:
    """The port that the worker's log tells."""

    def told() -> int | None:
        found = [line for line in _lines(worker) if line["message"] == "the worker runs"] if worker.log.exists() else []
        return int(found[0]["port"]) if found else None

    return eventually(told, timeout=20, what="the worker told its port") or 0


# The start


class Ended(NamedTuple):
    """A worker process that ended by itself."""

    code: int
    stderr: str
    last_words: str  # in the termination log


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs worker processes that are to end by themselves."""
    termination_log = tmp_path / "termination-log"

    def run(*arguments: str, **environment: str) -> Ended:
        variables = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        termination_log.write_text("")
        ended = subprocess.run(
            [sys.executable, "-m", "tasker_worker", *arguments],
            env={
                **variables,
                "TASKER_WEB_ENABLED": "false",
                "TASKER_TERMINATION_LOG": str(termination_log),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Ended(ended.returncode, ended.stderr, termination_log.read_text())

    return run


def test_without_a_database_url_it_exits_with_1_and_says_so(run: Run) -> None:
    reason = "DATABASE_URL is required: the URL of the engine's Postgres database"
    assert run("json") == Ended(1, f"tasker_worker: {reason}\n", reason)


def test_a_wrong_argument_exits_with_1_as_all_that_is_configured_wrongly(run: Run) -> None:
    reason = "unrecognized arguments: --slots (see --help)"
    assert run("json", "--slots", DATABASE_URL="postgresql://localhost/x") == Ended(
        1, f"tasker_worker: {reason}\n", reason
    )


@pytest.mark.parametrize(
    ("modules", "environment", "message"),
    [
        (
            ["no_such_module"],
            {},
            r"the handlers module 'no_such_module' cannot be imported: ModuleNotFoundError: No mod",
        ),
        ([], {}, r"there are no handlers to run \(looked in nothing: name modules on the command line or set TASKER_"),
        (["json"], {}, r"there are no handlers to run \(looked in json\)"),
        ([], {"TASKER_SLOTS": "none"}, r"TASKER_SLOTS is to be a number, not 'none'"),
        ([], {"TASKER_CONFIG_PATH": "/none.toml"}, r"TASKER_CONFIG_PATH: /none.toml cannot be read: No such file"),
        ([], {"TASKER_HANDLERS_PATH": "/none"}, r"TASKER_HANDLERS_PATH: /none is no folder"),
        ([], {"DATABASE_URL": "not a url"}, r"DATABASE_URL is not a Postgres connection URL"),
        (
            [],
            {"TASKER_LISTEN_DATABASE_URL": "not a url"},
            r"TASKER_LISTEN_DATABASE_URL is not a Postgres connection URL",
        ),
    ],
)
def test_a_wrong_configuration_exits_with_1_and_names_what_is_wrong(
    run: Run, modules: list[str], environment: dict[str, str], message: str, handlers: str
) -> None:
    if any("DATABASE_URL" in name for name in environment):
        environment = {**environment, "TASKER_HANDLERS_PATH": handlers}
    ended = run(*modules, **{"DATABASE_URL": "postgresql://localhost/x", **environment})
    assert ended.code == 1
    assert re.search(message, ended.stderr)
    assert "Traceback" not in ended.stderr
    assert re.match(message, ended.last_words)
    assert "\n" not in ended.last_words


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("x = 1\nraise ValueError('half written')", 2, "ValueError: half written"),
        ("import this_is_nowhere", 1, "ModuleNotFoundError: No module named 'this_is_nowhere'"),
        ("\ndef f(:", 2, "SyntaxError: invalid syntax"),
        (
            "from tasker_worker import depends_on\n\n@depends_on(cart='')\ndef f(cart): ...",
            3,
            "depends_on(cart=…) takes a step's name or (name, model), not ''",
        ),
        (
            "from __future__ import annotations\nfrom tasker_worker import *\n\n@step_handler('f')\n@inputs('x')\n"
            "def f(x: Misspelt): ...",
            4,
            "handler 'f': the annotation 'Misspelt' of its parameter 'x' cannot be resolved: NameError",
        ),
    ],
    ids=["raises", "import", "syntax", "dependency", "annotation"],
)
def test_a_broken_file_of_handlers_exits_with_1_and_names_file_line_and_reason(
    run: Run, tmp_path: Path, text: str, line: int, reason: str
) -> None:
    folder = tmp_path / "handlers_of_a_user"
    folder.mkdir()
    (folder / "broken_handlers.py").write_text(text)
    ended = run(DATABASE_URL="postgresql://localhost/x", TASKER_HANDLERS_PATH=str(folder))
    assert ended.code == 1
    for text_of_fault in (json.loads(ended.stderr)["message"], ended.last_words):
        assert f"{folder}/broken_handlers.py:{line}: {reason}" in text_of_fault
        assert text_of_fault.count(".py:") == 1


def test_an_unreachable_database_exits_with_2_after_telling_that_it_waits(
    run: Run, tmp_path: Path, handlers: str
) -> None:
    url = f"postgresql://me:hunter2@/none?host={tmp_path}"
    ended = run(DATABASE_URL=url, TASKER_HANDLERS_PATH=handlers, TASKER_STARTUP_SECONDS="0.3")
    assert ended.code == 2
    messages = [json.loads(line)["message"] for line in ended.stderr.splitlines()]
    assert messages[0] == "waiting for the database"
    assert messages[-1].startswith("the database cannot be reached after 0.3 s: ")
    assert ended.last_words == messages[-1]
    assert "hunter2" not in ended.stderr + ended.last_words


def test_a_port_that_is_taken_exits_with_1_and_names_it(run: Run, database_url: str, handlers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(
            DATABASE_URL=database_url,
            TASKER_HANDLERS_PATH=handlers,
            TASKER_WEB_ENABLED="true",
            TASKER_WEB_HOST="127.0.0.1",
            PORT=str(port),
        )
    assert ended.code == 1
    reason = f"port {port} on 127.0.0.1 cannot be used for health and metrics: Address already in use"
    assert reason in ended.stderr
    assert ended.last_words == reason


@pytest.mark.parametrize(
    ("patch", "cause"),
    [
        ("Exchange.run = broken", "the worker broke: LookupError('of the exchange')"),
        ("Worker._register = broken", "the worker broke: LookupError('of the exchange')"),
        ("Worker._register = exits", "the worker broke: SystemExit(7)"),
    ],
    ids=["after the start", "in the start", "exit"],
)
def test_a_worker_that_breaks_exits_with_1_and_leaves_the_cause_and_where_it_was(
    run: Run, database_url: str, tmp_path: Path, patch: str, cause: str
) -> None:
    folder = tmp_path / "handlers_of_a_user"
    folder.mkdir()
    (folder / "breaking_handlers.py").write_text(
        "from tasker_worker import step_handler\n"
        "from tasker_worker.worker import Exchange, Worker\n"
        "async def broken(*arguments): raise LookupError('of the exchange')\n"
        "async def exits(*arguments): raise SystemExit(7)\n"
        f"{patch}\n"
        "@step_handler('do')\n"
        "def do(context): ...\n"
    )
    ended = run(DATABASE_URL=database_url, TASKER_HANDLERS_PATH=str(folder))
    assert ended.code == 1
    first, *trace = ended.last_words.splitlines()
    assert first == cause
    assert any("breaking_handlers.py" in line for line in trace)
    for line in ended.stderr.splitlines():
        json.loads(line)


def test_a_signal_ends_the_wait_for_a_database(start: Start, tmp_path: Path) -> None:
    worker = start(DATABASE_URL=f"postgresql://nobody@/none?host={tmp_path}", TASKER_STARTUP_SECONDS="600")
    eventually(lambda: "waiting for the database" in worker.log.read_text(), timeout=20)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert not (tmp_path / "termination-log").exists()


async def test_callables_that_it_has_no_handler_for_are_told_at_the_start(lab: Lab, start: Start) -> None:
    await lab.template(step("a"), step("b", "a", callable="of_another_team"))
    worker = start()
    await eventually_async(_log_says(worker, "the worker runs"))
    [warning] = [line for line in _lines(worker) if "need handlers that this worker does not have" in line["message"]]
    assert (warning["level"], warning["callables"], warning["count"]) == ("warning", ["of_another_team"], 1)


# Its work and its end


async def test_it_works_answers_over_http_logs_json_and_signs_off(lab: Lab, start: Start, tmp_path: Path) -> None:
    task = await lab.run(step("a"), step("b", "a"))
    worker = start(
        TASKER_WEB_ENABLED="true", TASKER_WEB_HOST="127.0.0.1", PORT="0", TASKER_LOG="debug", TASKER_ENV="test"
    )
    steps = await _ended(lab, task)
    assert steps["b"]["result"] == {"worker": "w-1", "attempt": 1}
    port = await asyncio.to_thread(_port, worker)
    assert await asyncio.to_thread(_get, port, "/health") == (200, b'{"status": "healthy"}')
    assert (await asyncio.to_thread(_get, port, "/health/live"))[0] == 200
    assert (await asyncio.to_thread(_get, port, "/health/ready"))[0] == 200
    detailed = json.loads((await asyncio.to_thread(_get, port, "/health/detailed"))[1])
    assert (detailed["worker"], detailed["steps_succeeded"], detailed["environment"]) == ("w-1", 2, "test")
    assert sorted(detailed["handlers"]) == [
        "blocks_the_loop",
        "blocks_when_told",
        "counts",
        "do",
        "exits_in_a_child",
        "held",
        "leaves_a_thread",
    ]
    metrics = (await asyncio.to_thread(_get, port, "/metrics"))[1].decode()
    assert 'tasker_worker_steps_total{outcome="success"} 2.0' in metrics
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0
    assert await lab.rows("select from tasker.workers") == []
    lines = _lines(worker)
    [first, _] = [line for line in lines if line["message"] == "doing"]
    assert (first["step"], first["task_uuid"], first["attempt"]) == ("a", str(task), 1)
    assert (first["environment"], first["worker"], first["api_token"]) == ("test", "w-1", "***")
    assert [line["message"] for line in lines if line["level"] == "info"][-1] == "stopped"
    assert not (tmp_path / "termination-log").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_handlers_end_and_settles_them(
    lab: Lab, start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    task = await lab.run(step("a", callable="held"), step("b", "a", callable="held"), context={"folder": str(tmp_path)})
    worker = start()
    await _appears(tmp_path / "held.1")
    worker.send(number)
    await eventually_async(_log_says(worker, "stopping: no new work is taken"))
    (tmp_path / "go").touch()
    assert await asyncio.to_thread(worker.wait) == 0
    steps = await lab.steps(task)
    assert (steps["a"]["state"], steps["b"]["state"]) == ("complete", "enqueued")


async def test_what_does_not_end_within_the_grace_is_given_back_unharmed(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    task = await lab.run(step("a", callable="held"), context={"folder": str(tmp_path)})
    worker = start(TASKER_SHUTDOWN_GRACE_SECONDS="0.2")
    await _appears(tmp_path / "held.1")
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0
    steps = await lab.steps(task)
    assert (steps["a"]["state"], steps["a"]["attempts"]) == ("enqueued", 0)
    (tmp_path / "go").touch()
    start("w-2")
    assert (await _ended(lab, task))["a"]["result"] == {"worker": "w-2", "attempt": 1}


async def test_a_second_signal_ends_it_at_once(lab: Lab, start: Start, tmp_path: Path) -> None:
    await lab.run(step("a", callable="held"), context={"folder": str(tmp_path)})
    worker = start(TASKER_SHUTDOWN_GRACE_SECONDS="600")
    await _appears(tmp_path / "held.1")
    worker.send(signal.SIGTERM)
    await eventually_async(_log_says(worker, "stopping: no new work is taken"))
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 10) == 128 + signal.SIGTERM


async def test_threads_that_a_handler_left_behind_do_not_keep_it_alive(lab: Lab, start: Start) -> None:
    task = await lab.run(step("a", callable="leaves_a_thread"))
    worker = start()
    await _ended(lab, task)
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 20) == 0


# What it lives through


async def test_a_killed_worker_costs_one_attempt_and_its_steps_go_elsewhere(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    task = await lab.run(
        step("a", callable="held", retry={"backoff": "none", "jitter": 0}), context={"folder": str(tmp_path)}
    )
    first = start("w-1", TASKER_LEASE_SECONDS="1")
    await _appears(tmp_path / "held.1")
    start("w-2", TASKER_LEASE_SECONDS="1")
    first.kill()
    await _appears(tmp_path / "held.2")
    (tmp_path / "go").touch()
    steps = await _ended(lab, task)
    assert steps["a"]["result"] == {"worker": "w-2", "attempt": 2}


async def test_a_container_started_anew_does_not_wait_for_the_lease_of_the_process_before(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    """As the kubelet does it: the same pod, so the same name. The lease is far longer than the test may take."""
    task = await lab.run(
        step("a", callable="held", retry={"backoff": "none", "jitter": 0}), context={"folder": str(tmp_path)}
    )
    first = start("w-1", TASKER_LEASE_SECONDS="600")
    await _appears(tmp_path / "held.1")
    first.kill()
    second = start("w-1", TASKER_LEASE_SECONDS="600")
    await _appears(tmp_path / "held.2")
    (tmp_path / "go").touch()
    assert (await _ended(lab, task))["a"]["result"] == {"worker": "w-1", "attempt": 2}
    assert await _log_says(second, "an earlier process of this name was lost in the middle of its work")()


async def test_a_handler_that_blocks_the_loop_is_timed_out_and_the_worker_lives(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    context = {"folder": str(tmp_path)}
    blocked = await lab.run(
        step("a", callable="blocks_the_loop", timeoutSeconds=2, retry={"maxAttempts": 1}), context=context
    )
    worker = start(TASKER_LEASE_SECONDS="2")
    steps = await _ended(lab, blocked, "error")
    assert steps["a"]["error"]["message"] == "step 'a' exceeded its timeout of 2 s"
    assert not (tmp_path / "unblocked").exists()  # the loop is still blocked: the lease thread has told the engine
    (tmp_path / "go").touch()
    await lab.template(step("b"), name="other")
    await _ended(lab, await lab.submit("other"))
    assert (tmp_path / "unblocked").exists()
    warnings = [line for line in _lines(worker) if line["message"].startswith("the event loop is blocked")]
    assert [line["step"] for line in warnings] == ["a"]
    assert "shop_handlers.py" in warnings[0]["at"]


async def test_a_claim_whose_answer_a_blocked_loop_does_not_read_costs_no_attempt_and_is_run_once(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    """The loop is blocked for far longer than half a lease, from when a claim is under way until it was given back."""
    context = {"folder": str(tmp_path)}
    await lab.execute("alter function tasker.claim_steps(text, text, integer) set lock_timeout = 0")
    await lab.execute(
        "create function tasker.hold() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(7); return new; end $$"
    )
    await lab.execute(
        "create trigger hold before insert on tasker.leases for each row when (new.attempt > 0)"
        " execute function tasker.hold()"
    )
    blocking = await lab.run(step("blocking", callable="blocks_when_told", timeoutSeconds=600), context=context)
    worker = start(TASKER_LEASE_SECONDS="2")

    async def holds(count: int) -> bool:
        return len(await lab.rows("select from tasker.leases")) == count

    await eventually_async(partial(holds, 1), timeout=20)
    async with await psycopg.AsyncConnection.connect(lab.url, autocommit=True) as holder:
        await holder.execute("select pg_advisory_lock(7)")
        await lab.template(step("counted", callable="counts", retry={"maxAttempts": 1}), name="other")
        counted = await lab.submit("other", context=context)

        async def claim_is_under_way() -> bool:
            return bool(await lab.value("select count(*) from pg_locks where locktype = 'advisory' and not granted"))

        await eventually_async(claim_is_under_way, timeout=20)
        (tmp_path / "block").touch()
        await _appears(tmp_path / "blocked")
        await holder.execute("select pg_advisory_unlock(7)")
    await eventually_async(partial(holds, 2), timeout=20)

    async def given_back() -> bool:
        return (await lab.step_states(counted))["counted"] != "in_progress"

    await eventually_async(given_back, timeout=20)
    steps = await lab.steps(counted)
    assert (steps["counted"]["state"], steps["counted"]["attempts"]) == ("enqueued", 0)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "go").touch()
    await _ended(lab, counted)
    await _ended(lab, blocking)
    assert (tmp_path / "runs").read_text().split() == ["1"]
    messages = [line["message"] for line in _lines(worker)]
    assert "claims that never arrived here are given back" in messages
    assert "claims came too late and are given back unrun" in messages


async def test_sys_exit_in_a_task_of_a_handler_fails_the_attempt_and_nothing_else(lab: Lab, start: Start) -> None:
    task = await lab.run(step("a", callable="exits_in_a_child", retry={"maxAttempts": 1}))
    worker = start()
    steps = await _ended(lab, task, "error")
    assert steps["a"]["error"]["message"] == "handler called sys.exit(5)"
    await lab.template(step("b"), name="other")
    await _ended(lab, await lab.submit("other"))
    assert worker.running()


async def test_a_restart_of_the_database_under_load_loses_and_doubles_nothing(tmp_path: Path, handlers: str) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", {"fsync": "off"}) as server:
        url = server.ensure_database("restarted")
        await migrate(url)
        environment = {"TASKER_NAMESPACE": NAMESPACE, "TASKER_HANDLERS_PATH": handlers, "TASKER_LEASE_SECONDS": "5"}
        with worker_processes(url, tmp_path, ["w-1", "w-2"], [], **environment):
            async with open_lab(url) as lab:
                await lab.template(step("a"), step("b", "a"), step("c", "b"))
                tasks = [await lab.submit() for _ in range(100)]

                async def begun() -> bool:
                    return int(await lab.value("select count(*) from tasker.steps where state = 'complete'")) > 30

                await eventually_async(begun, timeout=30, interval=0.005)
            await asyncio.to_thread(server.restart)
            async with open_lab(url) as lab:
                for task in tasks:
                    await _ended(lab, task)
                completions = await lab.rows(
                    "select step_id, count(*) from tasker.step_transitions where to_state = 'complete' group by 1"
                )
        assert len(completions) == 300
        assert {row["count"] for row in completions} == {1}


def _log_says(worker: WorkerProcess, message: str) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return message in worker.log.read_text()

    return told
