"""What must never be is refused by the database alone, whoever asks: moves, histories, fences, counts (I12)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors

from support.engine import Lab, step
from tasker.model.transitions import STEP_JUMPS, TASK_JUMPS, StepState, TaskState


async def refused(lab: Lab, query: str, *parameters: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        await lab.execute(query, *parameters)
    return caught.value


async def jumps_of(
    lab: Lab, table: str, states: type[TaskState] | type[StepState], change: str
) -> set[tuple[str, str]]:
    """Tries `change` from every state to every state on the one row; the pairs that the database let pass.

    Each try is taken back, and a refusal must be the trigger's and name both states.
    """
    jumps: set[tuple[str, str]] = set()
    refusals: dict[tuple[str, str], str | None] = {}
    for source in states:
        await lab.execute(f"alter table tasker.{table}s disable trigger {table}s_refuse_move")
        await lab.connection.execute(change.encode(), {"state": source})
        await lab.execute(f"alter table tasker.{table}s enable trigger {table}s_refuse_move")
        for target in states:
            try:
                async with lab.connection.transaction(force_rollback=True):
                    await lab.connection.execute(change.encode(), {"state": target})
                jumps.add((str(source), str(target)))
            except psycopg.Error as error:
                refusals[source, target] = error.diag.message_primary
    assert refusals == {
        (source, target): f"a {table} cannot go from {source} to {target}" for source, target in refusals
    }
    return {(source, target) for source, target in jumps if source != target}


async def test_a_task_row_takes_the_legal_jumps_and_no_other(own_lab: Lab) -> None:
    lab = own_lab
    await lab.run(step("a"))
    ended = "%(state)s::text in ('complete', 'error', 'cancelled', 'resolved_manually')"
    jumps = await jumps_of(
        lab,
        "task",
        TaskState,
        "update tasker.tasks set state = %(state)s::text::tasker.task_state, active_steps = 0, remaining_steps = 0,"
        f" completed_at = case when {ended} then now() end",
    )
    assert jumps == TASK_JUMPS


async def test_a_step_row_takes_the_legal_jumps_and_no_other(own_lab: Lab) -> None:
    lab = own_lab
    await lab.run(step("a"))
    jumps = await jumps_of(
        lab,
        "step",
        StepState,
        "update tasker.steps set state = %(state)s::text::tasker.step_state,"
        " completed_at = case when %(state)s::text in ('complete', 'cancelled', 'resolved_manually', 'skipped')"
        " then now() end,"
        " next_attempt_at = case when %(state)s::text = 'waiting_for_retry' then now() end",
    )
    assert jumps == STEP_JUMPS


async def test_a_row_cannot_begin_in_a_state_that_nothing_leads_to(lab: Lab) -> None:
    await lab.run(step("a"))
    error = await refused(
        lab,
        "insert into tasker.tasks (task_id, task_uuid, namespace, template_id, state, next_place, total_steps,"
        " remaining_steps, correlation_id, created_at, started_at) select 99, gen_random_uuid(), namespace,"
        " template_id, 'waiting_for_retry', 1, 1, 1, 'x', now(), now() from tasker.tasks",
    )
    assert error.diag.message_primary == "a task cannot go from nothing to waiting_for_retry"
    error = await refused(
        lab,
        "insert into tasker.steps (step_id, definition_id, attempts_allowed, state, open_edges, next_attempt_at)"
        " select step_id + 1, definition_id, 1, 'waiting_for_retry', 0, now() from tasker.steps",
    )
    assert error.diag.message_primary == "a step cannot go from nothing to waiting_for_retry"


@pytest.mark.parametrize("machine", ["task", "step"])
async def test_the_log_takes_no_passage_that_does_not_exist(lab: Lab, machine: str) -> None:
    error = await refused(
        lab,
        f"insert into tasker.{machine}_log ({machine}_id, at, passage, actor_id) values (1, now(), 'flown_away', 1)",
    )
    assert error.diag.message_primary == f'invalid input value for enum tasker.{machine}_passage: "flown_away"'


@pytest.mark.parametrize("table", ["task_log", "step_log"])
@pytest.mark.parametrize("statement", ["update tasker.{} set actor_id = 7", "delete from tasker.{}"])
async def test_history_is_only_ever_appended_to(lab: Lab, table: str, statement: str) -> None:
    await lab.run(step("a"))
    partitions = [
        row["name"]
        for row in await lab.rows(
            "select inhrelid::regclass::text as name from pg_inherits where inhparent = %s::regclass", f"tasker.{table}"
        )
    ]
    holding = [name for name in partitions if await lab.value(f"select count(*) from {name}")]
    assert holding
    for name in (f"tasker.{table}", *holding):
        error = await refused(lab, statement.format(name.removeprefix("tasker.")))
        assert (error.sqlstate, error.diag.message_primary) == ("TK004", "history is only ever appended to")


async def test_a_fence_is_new_at_each_claim_and_nobody_can_guess_the_next(lab: Lab) -> None:
    """A sequence would be set back by a crash, to where it was before claims that were not on the disk yet."""
    await lab.template(step("a", retry={"maxAttempts": 5, "backoff": "none"}))
    await lab.submit()
    await lab.submit()
    worker = await lab.worker()
    fences: set[int] = set()
    for _ in range(3):
        fences |= {claim.fence for claim in await worker.claim(2)}
        assert await worker.deregister() == 2
        await worker.register()
    assert len(fences) == 6
    drawn = [row["new_fence"] for row in await lab.rows("select tasker.new_fence() from generate_series(1, 2000)")]
    assert len(set(drawn)) == 2000 and min(drawn) >= 0 and max(drawn) < 2**62
    assert all(any(fence >> bit & 1 for fence in drawn) for bit in range(62)), "each bit is drawn"
    # Halves of it may meet by chance: two of 2,000 do in one run of 500.
    assert min(len({fence >> 30 for fence in drawn}), len({fence & 2**30 - 1 for fence in drawn})) > 1990


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("update tasker.tasks set completed_at = now()", "tasks_end_with_a_time"),
        ("update tasker.tasks set state = 'complete', completed_at = now()", "tasks_complete_when_nothing_remains"),
        ("update tasker.tasks set state = 'error'", "tasks_end_with_a_time"),
        ("update tasker.tasks set remaining_steps = total_steps + 1", "tasks_counts_add_up"),
        ("update tasker.tasks set failed_steps = remaining_steps", "tasks_counts_add_up"),
        ("update tasker.tasks set active_steps = -1", "tasks_active_steps_check"),
        ("update tasker.tasks set priority = 101", "tasks_priority_check"),
        ("update tasker.tasks set context = '[]'", "tasks_context_check"),
        ("update tasker.steps set completed_at = now()", "steps_end_with_a_time"),
        ("update tasker.steps set state = 'complete'", "steps_end_with_a_time"),
        ("update tasker.steps set next_attempt_at = now()", "steps_retry_at_a_time"),
        ("update tasker.steps set open_edges = 1", "steps_wait_for_dependencies"),
        ("update tasker.steps set open_edges = -1", "steps_open_edges_check"),
        ("update tasker.steps set attempts = attempts_allowed + 1", "steps_attempts_check"),
        ("update tasker.definitions set definition_id = definition_id + 1", "definitions_tell_their_template"),
        ("update tasker.templates set batch_worker_count = 1", "templates_with_a_step_to_begin_with"),
        ("update tasker.definitions set max_attempts = 0", "definitions_max_attempts_check"),
        ("update tasker.definitions set jitter = 2", "definitions_jitter_check"),
        ("update tasker.workers set lease_seconds = 0", "workers_lease_seconds_check"),
        ("update tasker.workers set slots = 0", "workers_slots_check"),
        ("update tasker.timers set kind = 'alarm'", "timers_kind_check"),
    ],
)
async def test_rows_that_cannot_be_true_are_refused(lab: Lab, change: str, constraint: str) -> None:
    await lab.run(step("a"), deadline_seconds=60)
    await lab.worker()
    error = await refused(lab, change)
    assert isinstance(error, errors.CheckViolation)
    assert error.diag.constraint_name == constraint


@pytest.mark.parametrize(
    "duplicate",
    [
        "insert into tasker.ready_steps select * from tasker.ready_steps",
        "insert into tasker.leases (step_id, worker_id, attempt, fence, started_at, timeout_at, beginning, actor_id)"
        " select step_id, worker_id, attempt, fence + 1, started_at, timeout_at, beginning, actor_id"
        " from tasker.leases",
        "insert into tasker.tasks (task_id, task_uuid, namespace, template_id, next_place, total_steps,"
        " remaining_steps, correlation_id, created_at, origin_uid) select task_id + 99, gen_random_uuid(), namespace,"
        " template_id, 1, 1, 1, 'x', now(), origin_uid from tasker.tasks",
    ],
)
async def test_a_step_is_queued_once_held_once_and_a_resource_has_one_run(lab: Lab, duplicate: str) -> None:
    await lab.run(step("a"), step("b"), origin_uid="uid-1")
    await (await lab.worker()).claim(1)
    assert isinstance(await refused(lab, duplicate), errors.UniqueViolation)


@pytest.mark.parametrize(
    ("table", "column", "lowest", "highest", "by", "beside"),
    [
        ("templates", "step_count", 1, None, 1, ""),
        ("definitions", "position", 0, None, 1, ""),
        ("definitions", "length(name)", 1, 63, 1, ""),
        ("definitions", "dependency_count", 0, None, 1, ""),
        ("definitions", "max_attempts", 1, 100, 1, ""),
        ("definitions", "base_ms", 0, None, 1, ""),
        ("definitions", "max_ms", 0, None, 1, ""),
        ("definitions", "jitter", 0, 1, 0.001, ""),
        ("definitions", "timeout_ms", 1, None, 1, ""),
        ("definitions", "schedule_timeout_ms", 1, None, 1, ""),
        ("tasks", "priority", -100, 100, 1, ""),
        ("tasks", "total_steps", 1, None, 1, ", remaining_steps = 0, active_steps = 0"),
        ("tasks", "active_steps", 0, None, 1, ""),
        ("tasks", "retrying_steps", 0, None, 1, ""),
        ("tasks", "failed_steps", 0, None, 1, ""),
        ("tasks", "cancelled_steps", 0, None, 1, ""),
        ("tasks", "skipped_steps", 0, None, 1, ""),
        ("tasks", "tolerated_steps", 0, None, 1, ""),
        ("templates", "batch_worker_count", 0, None, 1, ", step_count = 9"),
        ("steps", "open_edges", 0, None, 1, ""),
        ("steps", "void_edges", 0, None, 1, ""),
        ("steps", "attempts_allowed", 1, None, 1, ""),
        ("steps", "attempts", 0, 3, 1, ""),
        ("workers", "length(name)", 1, 128, 1, ""),
        ("workers", "slots", 1, None, 1, ""),
        ("workers", "lease_seconds", 0.001, None, 0.001, ""),
    ],
)
async def test_a_column_takes_its_bounds_and_nothing_beyond(
    lab: Lab, table: str, column: str, lowest: float, highest: float | None, by: float, beside: str
) -> None:
    await lab.run(step("a"))
    await lab.worker()
    name = column.removeprefix("length(").removesuffix(")")
    value = "repeat('x', %s)" if name != column else "%s"
    change = f"update tasker.{table} set {name} = {value}{beside}"
    for bound, beyond in ((lowest, lowest - by), *([] if highest is None else [(highest, highest + by)])):
        async with lab.connection.transaction(force_rollback=True):
            assert await lab.execute(change, bound) == 1
        if name == column or beyond >= 0:
            error = await refused(lab, change, beyond)
            assert error.diag.constraint_name == f"{table}_{name}_check"


async def test_steps_of_every_kind_count_towards_what_remains(lab: Lab) -> None:
    await lab.run(step("a"), step("b"))
    change = "update tasker.tasks set active_steps = %s, retrying_steps = %s, failed_steps = %s"
    for counts in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)):
        async with lab.connection.transaction(force_rollback=True):
            assert await lab.execute(change, *counts) == 1
        for place in range(3):
            more = [count + (place == each) for each, count in enumerate(counts)]
            assert (await refused(lab, change, *more)).diag.constraint_name == "tasks_counts_add_up"


async def test_of_a_row_nothing_is_assumed_that_it_does_not_say(lab: Lab) -> None:
    registered = await lab.template(step("a"))
    await lab.execute(
        "insert into tasker.tasks (task_id, task_uuid, namespace, template_id, next_place, total_steps,"
        " remaining_steps, correlation_id, created_at) values (1, gen_random_uuid(), 'shop', %s, 1, 1, 1, 'x', now())",
        registered.template_id,
    )
    assert await lab.rows(
        "select state::text, suspended, priority, active_steps, retrying_steps, failed_steps, cancelled_steps,"
        " skipped_steps, tolerated_steps, context, tags from tasker.tasks"
    ) == [
        {
            "state": "pending",
            "suspended": False,
            "priority": 0,
            "active_steps": 0,
            "retrying_steps": 0,
            "failed_steps": 0,
            "cancelled_steps": 0,
            "skipped_steps": 0,
            "tolerated_steps": 0,
            "context": {},
            "tags": [],
        }
    ]
