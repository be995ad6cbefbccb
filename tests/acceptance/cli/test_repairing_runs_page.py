"""Every command of docs/repairing-runs.md works as it stands there, and prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from support.console_blocks import read_blocks, read_commands
from support.engine import Claim, Lab, Outcome, SimulatedWorker, decision, failure, open_lab, success
from support.invariants import check_invariants
from tasker.model.template import parse_template_spec

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "repairing-runs.md"

REFUSALS = {"charge": 2, "route": 1, "survey": 1}
"""How many attempts of these steps fail before one succeeds."""


def outcome(claim: Claim) -> Outcome:
    """What the handlers of the page's template make of a step."""
    if claim.attempt <= REFUSALS.get(claim.step, 0):
        return failure(claim, retryable=False)
    return decision(claim, "ship") if claim.step == "route" else success(claim)


async def work(worker: SimulatedWorker) -> None:
    """What workers do meanwhile."""
    while claims := await worker.claim():
        await worker.settle(*map(outcome, claims))


async def late_run(lab: Lab, worker: SimulatedWorker) -> str:
    """A run whose deadline has passed while `charge` was in somebody's hands."""
    task = await lab.submit(deadline_seconds=60)
    await worker.settle(success(await worker.claim_one()))
    await worker.claim_one()
    await lab.clock.advance(61)
    await lab.engine.workers.sweep()
    assert await lab.state(task) == "error"
    return str(task)


def run(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{command} 2>&1"], env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )


def pattern(line: str) -> str:
    """What a line of the page stands for: … is any text."""
    return ".*".join(map(re.escape, line.split("…")))


def shown_rows(table: str) -> list[str]:
    """The lines of a table under its head."""
    return table.splitlines()[2:]


async def test_the_session_of_the_page(database_url: str) -> None:
    blocks = {block.language: block.text for block in read_blocks(PAGE)}
    spec = parse_template_spec(yaml.safe_load(blocks["yaml"]))
    async with open_lab(database_url) as lab:
        await lab.clock.freeze()
        await lab.engine.templates.register("shop", "order", spec)
        callables = [each.handler.callable for each in spec.steps]
        worker = await lab.worker(lease_seconds=1_000_000, callables=callables)
        late = await late_run(lab, worker)
        task = await lab.submit()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "DATABASE_URL": database_url,
            "TASK": str(task),
            "LATE": late,
            "LOGNAME": "ann",
        }
        commands = read_commands(PAGE)
        assert len(commands) > 5
        for command in commands:
            await lab.clock.advance(70)
            await work(worker)
            await lab.clock.advance(20)
            ran = run(command.text, environment)
            assert ran.returncode == command.output[0].startswith("error: "), command
            shown = [line for line in command.output if line]
            came = ran.stdout.splitlines()
            assert [bool(re.fullmatch(pattern(line), said)) for line, said in zip(shown, came, strict=True)] == [
                True
            ] * len(shown), (command, came)
        await work(worker)
        history = await lab.rows(blocks["sql"].replace(":task", "%s"), task)
        logged = [
            [row[name] or "" for name in ("from_state", "event", "to_state", "actor", "reason")] for row in history
        ]
        assert [[cell.strip() for cell in f"{line}| ".split("|")[1:6]] for line in shown_rows(blocks["text"])] == logged
        assert await lab.state(task) == "complete"
        assert await check_invariants(lab.connection) == []
