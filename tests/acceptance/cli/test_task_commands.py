"""`tasker task`: what people do to runs, as they type it and read it."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import UUID, uuid4

import psycopg

from support.engine import Lab, open_lab, step, success


def tasker_task(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasker", "task", *arguments],
        env={**os.environ, "DATABASE_URL": url, "LOGNAME": "ann"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
