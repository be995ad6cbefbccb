"""`tasker task`: what people do to runs, as they type it and read it."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
from click.testing import CliRunner

from support.engine import Lab, failure, open_lab, step, success
from tasker.cli.main import tasker
from tasker.errors import TaskerError


def tasker_task(url: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """In a thread, where a command can have an event loop of its own: a process each would take a second."""
    command = ["task", *arguments]
    environment = {"DATABASE_URL": url, "LOGNAME": "ann"}
    with ThreadPoolExecutor(1) as thread:
        ran = thread.submit(
            CliRunner().invoke, tasker, command, input=given, env=environment, prog_name="tasker"
        ).result()
    if isinstance(ran.exception, TaskerError):  # which `main` tells so
        return subprocess.CompletedProcess(command, 1, ran.stdout, f"{ran.stderr}error: {ran.exception}\n")
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return subprocess.CompletedProcess(command, ran.exit_code, ran.stdout, ran.stderr)


def said(url: str, command: str, task: UUID, *more: str) -> str:
    """What a command that succeeds says of the task, which it names first."""
    ran = tasker_task(url, command, str(task), "--reason", "a wrong price", *more)
    assert (ran.returncode, ran.stderr) == (0, "")
    told, _, rest = ran.stdout.partition(f"task {task} ")
    assert told == ""
    return rest.strip()


async def test_a_run_is_suspended_resumed_and_cancelled_by_hand(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        task = await lab.run(step("a"), origin_uid="uid-1")
        worker = await lab.worker()
        assert said(database_url, "resume", task) == "was not suspended"
        assert said(database_url, "suspend", task) == "is suspended"
        assert said(database_url, "suspend", task) == "is suspended already"
        assert await worker.claim() == []
        assert said(database_url, "resume", task, "--actor", "ben") == "goes on"
        claim = await worker.claim_one()
        assert said(database_url, "cancel", task) == "is cancelled"
        assert (await worker.settle(success(claim))).stale == [claim.step_id]
        for command in ("cancel", "suspend", "resume"):
            assert said(database_url, command, task) == "had ended: it is cancelled"
        assert await history(lab) == [
            ("held", "ann", "a wrong price"),
            ("let_go", "ben", "a wrong price"),
            ("cancelled_steps_in_process", "ann", "a wrong price"),
        ]


async def test_what_its_resource_holds_back_is_not_for_people_to_let_go(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        await lab.template(step("a"))
        task = await lab.submit(suspended=True, origin_uid="uid-1")
        told = "is still held back by its resource: set spec.suspend to false"
        assert said(database_url, "resume", task) == told
        assert said(database_url, "suspend", task) == "is suspended"
        assert said(database_url, "resume", task) == told
        assert await (await lab.worker()).claim() == []


def test_a_run_that_is_not_there_and_an_action_without_a_reason_are_refused(database_url: str) -> None:
    unknown = uuid4()
    for command in ("cancel", "suspend", "resume"):
        ran = tasker_task(database_url, command, str(unknown), "--reason", "x")
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"error: no task {unknown}\n")
        ran = tasker_task(database_url, command, str(unknown))
        assert ran.returncode == 2 and "Missing option '--reason'" in ran.stderr
    ran = tasker_task(database_url, "cancel", "order-7", "--reason", "x")
    assert ran.returncode == 2 and "'order-7' is not a valid UUID" in ran.stderr


async def history(lab: Lab) -> list[tuple[str, str, str]]:
    async with await psycopg.AsyncConnection.connect(lab.url) as connection:
        rows = await connection.execute(
            "select l.passage::text, a.name, l.metadata ->> 'reason'"
            " from tasker.task_log l join tasker.actors a using (actor_id)"
            " where l.metadata is not null order by l.log_id"
        )
        return [(str(passage), str(actor), str(reason)) for passage, actor, reason in await rows.fetchall()]


def repaired(url: str, command: str, task: UUID, name: str, *more: str) -> list[str]:
    """What a command on a step that succeeds says, without the names."""
    ran = tasker_task(url, command, str(task), name, "--reason", "a wrong price", *more)
    assert (ran.returncode, ran.stderr) == (0, "")
    return [line.replace(f"step {name} of task {task} ", "") for line in ran.stdout.splitlines()]


async def test_a_run_is_repaired_by_hand_step_by_step(database_url: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text('{"price": 24.5}', encoding="utf-8")
    async with open_lab(database_url) as lab:
        task = await lab.run(
            step("fetch"), step("route", "fetch", type="decision"), step("ask", "route"), step("pay", "route")
        )
        worker = await lab.worker()
        await worker.settle(failure(await worker.claim_one(), retryable=False))
        assert repaired(database_url, "reset-step", task, "fetch") == [
            "is reset",
            "the task is steps_in_process, 0/4 steps done",
        ]
        assert repaired(database_url, "reset-step", task, "fetch")[0] == "is in the queue or runs already"
        assert repaired(database_url, "complete-step", task, "fetch", "--result", f"@{result}") == [
            "is complete",
            "the task is steps_in_process, 1/4 steps done",
        ]
        (claim,) = await worker.claim()
        assert claim.row["dependency_results"] == {"fetch": {"price": 24.5}}
        chosen = repaired(database_url, "complete-step", task, "route", "--result", "null", "--branches", " ask, pay")
        assert chosen[0] == "is complete"
        assert (await worker.renew(claim)).lost_fences == [claim.fence]
        assert repaired(database_url, "resolve-step", task, "ask")[0] == "is resolved"
        assert repaired(database_url, "resolve-step", task, "ask")[0] == "was resolved already"
        assert repaired(database_url, "skip-step", task, "pay") == [
            "is skipped",
            "the task is complete, 4/4 steps done",
        ]
        assert repaired(database_url, "rerun", task, "route", "--deadline", "60", "--actor", "ben") == [
            "runs again, with 2 more",
            "the task is steps_in_process, 1/4 steps done",
        ]
        assert repaired(database_url, "rerun", task, "ask")[0] == "has not begun, nor has what depends on it"
        assert said(database_url, "suspend", task) == "is suspended"
        left_out = repaired(database_url, "complete-step", task, "route", "--result", "1", "--branches", "")
        assert left_out == ["is complete", "the task is complete, 4/4 steps done"]
        assert repaired(database_url, "rerun", task, "route") == [
            "runs again, with 2 more",
            "the task is steps_in_process but suspended: nothing starts until it is resumed, 1/4 steps done",
        ]
        assert ("run_again_complete", "ben", "a wrong price") in await history(lab)


async def test_what_cannot_be_done_to_a_step_is_said(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        task = await lab.run(step("a"), step("b", "a"), origin_uid="uid-1")
        await (await lab.worker()).run_all()

        def refused(command: str, name: str, *more: str) -> str:
            ran = tasker_task(database_url, command, str(task), name, "--reason", "x", *more)
            assert (ran.returncode, ran.stdout) == (1, "")
            return ran.stderr

        assert refused("reset-step", "z") == f"error: task {task} has no step z\n"
        assert refused("reset-step", "a") == (
            f"error: step a of task {task} is complete: only one that failed or waits for its retry is reset\n"
        )
        for command in ("resolve-step", "skip-step"):
            assert refused(command, "a") == (
                f"error: step a of task {task} is complete: the task can only be run again from it\n"
            )
        assert refused("rerun", "a", "--deadline", "0").startswith("error: deadline: must be more than 0 and at most ")
        assert repaired(database_url, "rerun", task, "b")[0] == "runs again"
        await lab.engine.actions.cancel(task, actor="operator", reason="spec.cancel was set")
        assert refused("rerun", "b") == (
            f"error: the resource of task {task} says spec.cancel, which is final: create a new one\n"
        )


def test_a_result_that_is_none_is_wrong_usage(database_url: str) -> None:
    for given, told in (
        ("{", "this is no JSON: "),
        ('{"a": 1, "a": 2}', "this is no JSON: 'a' is there twice"),
        ("[" * 100_000, "this is no JSON: "),
        ("@/nowhere", "/nowhere cannot be read: "),
    ):
        arguments = ("complete-step", str(uuid4()), "a", "--reason", "x", "--result")
        ran = (
            tasker_task(database_url, *arguments, "@-", given=given)
            if len(given) > 1000
            else tasker_task(database_url, *arguments, given)
        )
        assert ran.returncode == 2 and f"Invalid value for --result: {told}" in ran.stderr
    ran = tasker_task(database_url, "complete-step", str(uuid4()), "a", "--reason", "x")
    assert ran.returncode == 2 and "Missing option '--result'" in ran.stderr
