"""What operator/MESSAGING.md shows, works; its limits are those of the code."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from support.messaging import PostgresWorld
from support.waiting import eventually_async
from tasker.messaging import ConsumerSettings, Death, MessageClient, TaskRequestMessage, checks

PAGE = (Path(__file__).parents[3] / "operator" / "MESSAGING.md").read_text(encoding="utf-8")
PROGRAM, DEAD, IN_TESTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


async def run(block: str, names: dict[str, Any]) -> None:
    """A block that awaits."""
    await eval(compile(block, "MESSAGING.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)


@pytest.mark.parity(305, 327)
async def test_the_program_works_until_it_is_told_to_end(world: PostgresWorld, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        tmp_path / "program.py",
        env={**os.environ, "DATABASE_URL": world.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"order {'order_id': 7}\n"
        process.terminate()
        output, errors = await process.communicate()
    assert (process.returncode, output, errors) == (0, b"", b"")
    assert await world.service().receive("task-requests") == []


async def test_a_rejected_message_is_found_as_the_page_says(
    world: PostgresWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"messaging": world.service(), "__name__": "the_page"}
    exec(PROGRAM, names)
    client = MessageClient(names["messaging"])
    consumer = client.consume("task-requests", TaskRequestMessage, names["handle"])
    await world.service().ensure_queue("task-requests")
    await client.send("task-requests", TaskRequestMessage(template_name="unknown"))
    running = asyncio.create_task(consumer.run())

    async def dead() -> bool:
        return consumer.counts.dead == 1

    await eventually_async(dead)
    consumer.stop()
    await running
    await run(DEAD, names)
    assert names["dead"].death == Death(
        queue="task-requests", reason="rejected: there is no such template", read_count=1
    )
    assert "task-requests rejected: there is no such template 1" in capsys.readouterr().out


async def test_the_example_for_tests_works() -> None:
    await run(IN_TESTS, {})


def test_its_figures_are_those_of_the_code() -> None:
    settings = ConsumerSettings()
    assert (settings.first_delay_seconds, settings.longest_delay_seconds, settings.max_reads) == (1, 300, 5)
    assert "after a second, then after twice as long, up to five minutes" in " ".join(PAGE.split())
    assert "after five readings it goes to" in " ".join(PAGE.split())
    limits = (checks.BODY_BYTES, checks.BATCH_MESSAGES, checks.BATCH_BYTES, checks.REASON_LENGTH, checks.COUNT_LIMIT)
    assert limits == (1024**2, 1_000, 32 * 1024**2, 1_024, 10_000)
    assert (checks.VISIBILITY_SECONDS, checks.DELAY_SECONDS) == (86_400, 365 * 86_400)
    for figure in ("1 MiB", "1,000 messages, 32 MiB", "1,024 characters", "end at 10,000"):
        assert figure in PAGE
