"""`tasker dlq`: dead letters as people see them and deal with them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

from click.testing import CliRunner, Result

from support.engine import Lab, failure, open_lab, step
from tasker.cli.main import tasker
from tasker.errors import TaskerError


def tasker_dlq(url: str, *arguments: str) -> Result:
    """In a thread, where a command can have an event loop of its own: a process each would take a second."""
    with ThreadPoolExecutor(1) as thread:
        environment = {"DATABASE_URL": url, "LOGNAME": "ann"}
        return thread.submit(CliRunner().invoke, tasker, ["dlq", *arguments], env=environment).result()


def said(url: str, *arguments: str) -> list[str]:
    """The lines that a command prints that succeeds."""
    ran = tasker_dlq(url, *arguments)
    assert (ran.exit_code, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def cells(line: str) -> list[str]:
    return re.split(r"  +", line)


async def failed_run(lab: Lab) -> tuple[UUID, str]:
    """A run whose step has failed for good, and its entry."""
    task = await lab.run(step("pay"))
    worker = await lab.worker()
    await worker.settle(failure(await worker.claim_one(), "a bad card", retryable=False))
    (entry,) = (await lab.engine.dead_letters.read_page(task_uuid=task)).items
    return task, str(entry.entry_uuid)


async def test_dead_letters_are_listed_counted_and_shown(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        assert said(database_url, "list") == ["ENTRY  NAMESPACE  TEMPLATE  STEP  REASON  STATE  SINCE"]
        first, entry = await failed_run(lab)
        second, _ = await failed_run(lab)
        assert [cells(line)[:6] for line in said(database_url, "list", "--task", str(first))[1:]] == [
            [entry, "shop", "order 1.0.0", "pay", "permanent_failure", "open"]
        ]
        ran = tasker_dlq(database_url, "list", "--limit", "1")
        (cursor,) = re.findall(r"^there are more: --cursor (\d+)$", ran.stderr, re.MULTILINE)
        assert len(ran.stdout.splitlines()) == 2
        assert cells(said(database_url, "list", "--limit", "1", "--cursor", cursor)[1])[0] == entry
        assert said(database_url, "discard", entry) == [f"dead letter {entry} is discarded"]
        assert len(said(database_url, "list")) == 2
        assert len(said(database_url, "list", "--state", "all")) == 3
        assert cells(said(database_url, "list", "--state", "discarded")[1])[0] == entry
        assert len(said(database_url, "list", "--reason", "worker_crash_loop")) == 1
        assert len(said(database_url, "list", "-n", "elsewhere")) == 1
        assert [cells(line)[:3] for line in said(database_url, "stats")] == [
            ["STATE", "REASON", "ENTRIES"],
            ["open", "permanent_failure", "1"],
            ["discarded", "permanent_failure", "1"],
        ]
        assert len(said(database_url, "stats", "-n", "elsewhere")) == 1
        head, _, snapshot = "\n".join(said(database_url, "show", entry)).partition("\nsnapshot:\n")
        assert f"task:      {first}\n" in head and "state:     discarded\n" in head
        assert re.search(r"history:\n  [-\d]+ [:\d]+ open by worker-1\n  [-\d]+ [:\d]+ discarded by ann$", head)
        assert json.loads(snapshot)["failures"][0]["message"] == "a bad card"
        assert second != first


async def test_a_dead_letter_is_investigated_noted_and_put_back_by_hand(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        task, entry = await failed_run(lab)
        named = f"dead letter {entry}"
        assert said(database_url, "investigate", entry) == [f"{named} is being investigated"]
        assert said(database_url, "note", entry, "--notes", "the card", "--actor", "ben") == [f"{named} has the note"]
        assert said(database_url, "lay-back", entry) == [f"{named} is open again"]
        assert said(database_url, "put-back", entry, "--notes", "a new card") == [
            f"{named} is put back: its step runs again"
        ]
        assert await lab.state(task) == "steps_in_process"
        for command in ("investigate", "resolve", "discard", "put-back"):
            assert said(database_url, command, entry) == [f"{named} was dealt with already: it is put_back"]
        changes = (await lab.engine.dead_letters.read(UUID(entry))).changes
        assert [(str(change.state), change.actor, change.notes) for change in changes] == [
            ("open", "worker-1", None),
            ("investigating", "ann", None),
            ("investigating", "ben", "the card"),
            ("open", "ann", None),
            ("put_back", "ann", "a new card"),
        ]


async def test_a_run_is_noted_by_hand_and_what_cannot_be_done_is_told(database_url: str) -> None:
    async with open_lab(database_url) as lab:
        task = await lab.run(step("pay"))
        (told,) = said(database_url, "add", str(task), "--notes", "odd")
        entry = told.removeprefix("dead letter ").removesuffix(" is open")
        assert cells(said(database_url, "list")[1])[:6] == [entry, "shop", "order 1.0.0", "-", "manual", "open"]
        unknown = uuid4()
        for arguments, message in (
            (["put-back", entry], "the entry is of the whole run, which has no step to put back"),
            (["show", str(unknown)], f"no dead letter {unknown}"),
            (["resolve", str(unknown)], f"no dead letter {unknown}"),
            (["add", str(unknown), "--notes", "x"], f"no task {unknown}"),
            (["add", str(task), "--step", "ship", "--notes", "x"], "step: the run has no step 'ship'"),
            (["list", "--cursor", "x"], "cursor: 'x' is not one that a list has given"),
        ):
            ran = tasker_dlq(database_url, *arguments)
            assert isinstance(ran.exception, TaskerError)
            assert (ran.exit_code, ran.stdout, str(ran.exception)) == (1, "", message)
        for arguments, message in (
            (["note", entry], "Missing option '--notes'"),
            (["add", str(task)], "Missing option '--notes'"),
            (["list", "--state", "gone"], "'gone' is not one of"),
            (["list", "--limit", "201"], "201 is not in the range 1<=x<=200"),
            (["show", "order-7"], "'order-7' is not a valid UUID"),
        ):
            ran = tasker_dlq(database_url, *arguments)
            assert ran.exit_code == 2 and message in ran.stderr


def test_the_command_is_there_and_says_what_is_wrong(database_url: str) -> None:
    unknown = uuid4()
    ran = subprocess.run(
        [sys.executable, "-m", "tasker", "dlq", "discard", str(unknown)],
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"error: no dead letter {unknown}\n")
