"""Batches: a worker in this process divides, works and adds up against a real engine; checkpoints and failures too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from support.cut_proxy import Cut, cut_proxy
from support.engine import NAMESPACE, Lab, step
from support.invariants import check_invariants
from support.waiting import eventually_async
from tasker_worker import (
    HandlerRegistry,
    PermanentError,
    RetryableError,
    StepContext,
    StepResult,
    Worker,
    inputs,
    step_handler,
)
from tasker_worker.batch import (
    aggregate_batch,
    aggregate_batch_async,
    batch_analyzer,
    batch_success,
    batch_worker,
    batch_worker_success,
    checkpoint,
    create_cursor_configs,
)
from tasker_worker.claims import Settlement
from tasker_worker.gateway import Gateway, Offer, Refused, Unavailable
from tasker_worker.outcomes import from_value
from tasker_worker.types import Checkpoint, RustBatchWorkerInputs, RustCursorConfig


@batch_analyzer("divide")
@inputs("rows", "batches")
def divide(rows: int, batches: int = 5) -> StepResult:
    return batch_success("work", create_cursor_configs(rows, batches), {"rows": rows})


@batch_worker("work")
@inputs("factor")
async def work(batch: RustBatchWorkerInputs, context: StepContext, factor: int) -> StepResult:
    start, end = batch.cursor.start_cursor, batch.cursor.end_cursor
    assert isinstance(start, int)
    assert isinstance(end, int)
    if start <= context.get_input("poison", -1) < end:
        raise PermanentError(f"row {context.get_input('poison')} is poisoned")
    return batch_worker_success(end - start, metadata={"factor": factor})


@step_handler("add_up")
async def add_up(context: StepContext) -> dict[str, Any]:
    return await aggregate_batch_async(context, "work")


@step_handler("add_up_in_a_thread")
def add_up_in_a_thread(context: StepContext) -> dict[str, Any]:
    return {**aggregate_batch(context, "work", page_size=2), "first": sorted(context.dependency_results)[:2]}


def batch_steps(add_up: str = "add_up", retry: Any = None, **batch: Any) -> list[Any]:
    return [
        step("divide", callable="divide", type="batchable", batch=batch),
        step("work", "divide", callable="work", type="batch_worker", retry=retry or {"maxAttempts": 1}),
        step("end", "work", callable=add_up, type="deferred_convergence"),
    ]


@asynccontextmanager
async def worker_on(url: str, lease_seconds: float = 30, **handlers: Any) -> AsyncIterator[Worker]:
    """A worker with the handlers above; `handlers` beside them or in their place."""
    registry = HandlerRegistry()
    own = {"divide": divide, "work": work, "add_up": add_up, "add_up_in_a_thread": add_up_in_a_thread}
    registry.register_all(own | handlers)
    async with Worker(
        registry,
        database_url=url,
        namespace=NAMESPACE,
        name="w-1",
        web_enabled=False,
        shutdown_grace_seconds=10,
        lease_seconds=lease_seconds,
    ) as worker:
        yield worker


Ended = Callable[..., Awaitable[dict[str, dict[str, Any]]]]


@pytest_asyncio.fixture
async def ended(lab: Lab) -> Ended:
    """Waits until a run ended in a state (complete); gives its steps, when all that must hold does."""

    async def wait(task: UUID, state: str = "complete") -> dict[str, dict[str, Any]]:
        async def there() -> bool:
            return await lab.state(task) == state

        await eventually_async(there, timeout=20, what=f"{task} ended as {state}")
        assert await check_invariants(lab.connection) == []
        return await lab.steps(task)

    return wait


@pytest.mark.parity(23, 80, 120, 122, 125, 126, 128, 226)
@pytest.mark.parametrize("add_up", ["add_up", "add_up_in_a_thread"])
async def test_work_is_divided_done_and_added_up(lab: Lab, ended: Ended, add_up: str) -> None:
    task = await lab.run(*batch_steps(add_up, parallelism=2), context={"rows": 1003, "factor": 2})
    async with worker_on(lab.url):
        steps = await ended(task)
    assert steps["divide"]["result"] == {
        "batch_processing_outcome": {
            "type": "create_batches",
            "worker_template_name": "work",
            "worker_count": 5,
            "total_items": 1003,
        },
        "rows": 1003,
    }
    assert steps["work_005"]["inputs"] == {
        "cursor": {"batch_id": "005", "start_cursor": 804, "end_cursor": 1003, "batch_size": 199},
        "batch_metadata": {"cursor_field": "id", "failure_strategy": "continue_on_failure"},
        "is_no_op": False,
    }
    result = steps["end"]["result"]
    assert (result["total_processed"], result["batch_count"], result["worker_count"]) == (1003, 5, 5)
    assert result.get("first", ["divide", "work_001"]) == ["divide", "work_001"]


@pytest.mark.parity(121, 124, 129)
async def test_without_work_a_placeholder_stands_for_it_and_its_handler_is_not_called(lab: Lab, ended: Ended) -> None:
    """`work` needs the input `factor`, which is not there."""
    task = await lab.run(*batch_steps(), context={"rows": 0})
    async with worker_on(lab.url):
        steps = await ended(task)
    assert list(steps) == ["divide", "end", "work_000"]
    assert steps["work_000"]["inputs"]["cursor"]["batch_id"] == "000"
    assert steps["work_000"]["result"]["no_op"] is True
    assert (steps["end"]["result"]["batch_count"], steps["end"]["result"]["worker_count"]) == (0, 1)


async def test_very_many_workers_are_made_and_added_up_page_by_page(lab: Lab, ended: Ended) -> None:
    task = await lab.run(*batch_steps(), context={"rows": 600, "batches": 600, "factor": 1})
    async with worker_on(lab.url) as worker:
        steps = await ended(task)
        assert worker.metrics.failed == 0
    assert (steps["end"]["result"]["total_processed"], steps["end"]["result"]["worker_count"]) == (600, 600)


@pytest.mark.parity(226)
@pytest.mark.parametrize(
    ("strategy", "state", "processed"),
    [("continue_on_failure", "complete", 8), ("isolate", "complete", 8), ("fail_fast", "error", None)],
)
async def test_a_poisoned_batch_does_what_the_strategy_says(
    lab: Lab, ended: Ended, strategy: str, state: str, processed: int | None
) -> None:
    task = await lab.run(
        *batch_steps(failureStrategy=strategy, parallelism=1), context={"rows": 10, "factor": 1, "poison": 3}
    )
    async with worker_on(lab.url):
        steps = await ended(task, state)
    assert steps["work_002"]["error"]["message"] == "row 3 is poisoned"
    assert steps["work_003"]["state"] == ("cancelled" if strategy == "fail_fast" else "complete")
    assert (steps["end"]["result"] or {}).get("total_processed") == processed


@pytest.mark.parity(240)
@pytest.mark.parametrize("is_async", [True, False])
async def test_an_attempt_goes_on_from_the_checkpoint_of_the_one_before_it(
    lab: Lab, ended: Ended, is_async: bool
) -> None:
    def advance(context: StepContext) -> dict[str, Any]:
        found = context.checkpoint
        if found is None:
            for row in range(300):
                assert checkpoint(row, row)
            assert checkpoint(300, 300, {"sum": 4.5}, context=context)
            raise RetryableError("half of it is done")
        return found.model_dump()

    async def advance_async(context: StepContext) -> dict[str, Any]:
        return advance(context)

    retry = {"maxAttempts": 2, "backoff": "none"}
    task = await lab.run(step("walk", callable="walk", retry=retry))
    async with worker_on(lab.url, walk=advance_async if is_async else advance):
        steps = await ended(task)
    assert steps["walk"]["result"] == {"cursor": 300, "items_processed": 300, "accumulated": {"sum": 4.5}}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"rows": 5}, "step 'divide' is batchable, and its handler returned a dict; return batch_success(template,"),
        (None, "step 'divide' is batchable, and its handler returned nothing; return batch_success(template,"),
        (
            batch_success("other", create_cursor_configs(5, 1)),
            "step 'divide' asks for workers of 'other'; the batch_worker that depends on it is 'work'",
        ),
    ],
    ids=["a dict", "nothing", "another template"],
)
async def test_what_is_no_outcome_of_batches_is_final(lab: Lab, ended: Ended, returned: Any, message: str) -> None:
    task = await lab.run(*batch_steps())
    async with worker_on(lab.url, divide=lambda context: returned):
        steps = await ended(task, "error")
    assert (steps["divide"]["error"]["error_type"], steps["divide"]["attempts"]) == ("batch_error", 1)
    assert steps["divide"]["error"]["message"].startswith(message)


async def test_only_a_batchable_step_may_divide(lab: Lab, ended: Ended) -> None:
    task = await lab.run(step("plain", callable="plain"))
    async with worker_on(lab.url, plain=lambda context: batch_success("work", create_cursor_configs(5, 1))):
        steps = await ended(task, "error")
    assert steps["plain"]["error"]["message"] == (
        "step 'plain' is of the type 'standard', and its handler returned an outcome of batches;"
        " only a step of the type 'batchable' can divide its work"
    )


async def test_cursors_of_any_kind_reach_their_workers_and_empty_ranges_overlap_nothing(lab: Lab, ended: Ended) -> None:
    cursors: list[tuple[Any, Any]] = [(0, 10), (5, 5), ("2026-01-01", "2026-02-01"), ({"id": 7}, {"id": "é"})]
    cursors.append((2**63, 2**64))  # beyond the database's integers
    configs = [
        RustCursorConfig(batch_id=f"b{number}", start_cursor=start, end_cursor=end, batch_size=1)
        for number, (start, end) in enumerate(cursors)
    ]

    @batch_worker("work")
    def echo(batch: RustBatchWorkerInputs) -> dict[str, Any]:
        return batch.cursor.model_dump()

    async def count(context: StepContext) -> int:
        return sum([len(page) async for page in context.batch_results("work", page_size=1)])

    task = await lab.run(*batch_steps())
    async with worker_on(lab.url, divide=lambda context: batch_success("work", configs), work=echo, add_up=count):
        steps = await ended(task)
    assert [steps[f"work_00{number}"]["result"] for number in range(1, 6)] == [each.model_dump() for each in configs]
    assert steps["end"]["result"] == 5


async def test_a_checkpoint_needs_a_current_fence_and_has_a_size(lab: Lab) -> None:
    gateway = Gateway(lab.url, namespace=NAMESPACE, lease_seconds=30)
    await gateway.register(Offer(NAMESPACE, "w-1", "default", 10, "1.0.0", ["do"], 30.0))
    await lab.run(step("walk", callable="do"))
    [claim] = await gateway.claim("w-1", 1)
    text = Checkpoint(cursor=5).model_dump_json()
    assert await gateway.save_checkpoint("w-1", claim.step_id, claim.fence, text) is True
    assert await gateway.save_checkpoint("w-1", claim.step_id, claim.fence + 1, text) is False
    with pytest.raises(Refused, match="65536"):
        await gateway.save_checkpoint("w-1", claim.step_id, claim.fence, json.dumps("x" * 70_000))
    assert await gateway.read_batch_results("w-1", claim.step_id, claim.fence + 1, "work", 0, 10) == []
    with pytest.raises(Refused, match="there is no batch_worker work before this step"):
        await gateway.read_batch_results("w-1", claim.step_id, claim.fence, "work", 0, 10)
    await gateway.close()


async def test_a_checkpoint_tells_the_handler_of_a_cancelled_task_to_stop(lab: Lab) -> None:
    """Long before a renewal would."""
    began, told = asyncio.Event(), asyncio.Event()

    async def walk(context: StepContext) -> None:
        began.set()
        while checkpoint(1):  # noqa: ASYNC110 - a handler is told by its context, not by an event
            await asyncio.sleep(0.005)
        told.set()

    task = await lab.run(step("walk", callable="walk"))
    async with worker_on(lab.url, walk=walk):
        await asyncio.wait_for(began.wait(), 10)
        await lab.engine.actions.cancel(task, actor="test", reason="no need")
        await asyncio.wait_for(told.wait(), 10)


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_division_whose_fate_nobody_heard_is_made_once(lab: Lab, cut: Cut) -> None:
    async with cut_proxy(lab.url) as proxy:
        gateway = Gateway(proxy.url, namespace=NAMESPACE, lease_seconds=30)
        await gateway.register(Offer(NAMESPACE, "w-1", "default", 10, "1.0.0", ["divide", "work"], 30.0))
        task = await lab.run(*batch_steps())
        [claim] = await gateway.claim("w-1", 1)
        outcome = from_value(claim, batch_success("work", create_cursor_configs(30, 3)))
        division = Settlement(claim.step_id, claim.fence, outcome)
        proxy.cut_next(cut)
        with pytest.raises(Unavailable):
            await gateway.create_batches("w-1", division, 0)
        answer = await gateway.create_batches("w-1", division, 0)
        assert answer.stale == frozenset()
        assert [each.step_name for each in await gateway.claim("w-1", 9)] == ["work_001", "work_002", "work_003"]
        stale = Settlement(claim.step_id, claim.fence + 1, outcome)
        assert (await gateway.create_batches("w-1", stale, 0)).stale == {claim.fence + 1}
        await gateway.close()
    assert (await lab.engine.tasks.read(task)).counts.total == 5
    assert await check_invariants(lab.connection) == []


async def test_a_division_of_a_run_that_another_session_holds_is_made_when_it_is_let_go(lab: Lab, ended: Ended) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def divide_when_told(context: StepContext) -> StepResult:
        began.set()
        await may_end.wait()
        return batch_success("work", create_cursor_configs(6, 3))

    task = await lab.run(*batch_steps(), context={"factor": 1})
    async with worker_on(lab.url, divide=divide_when_told) as worker:
        await asyncio.wait_for(began.wait(), 10)
        async with await psycopg.AsyncConnection.connect(lab.url) as holder:
            await holder.execute("select from tasker.tasks where task_uuid = %s for update", (task,))
            may_end.set()

            async def met_it() -> bool:
                return worker.metrics.lock_timeouts > 0

            await eventually_async(met_it, timeout=20)
            await holder.rollback()
        steps = await ended(task)
        assert worker.metrics.results_discarded == worker.metrics.failed == 0
    assert steps["end"]["result"]["worker_count"] == 3


async def test_batches_are_made_and_worked_on_once_though_sessions_are_terminated_all_the_time(
    lab: Lab, ended: Ended
) -> None:
    async def slow(context: StepContext) -> StepResult:
        assert checkpoint(context.attempt)
        await asyncio.sleep(0.005)
        return batch_worker_success(1)

    retry = {"maxAttempts": 20, "backoff": "none"}
    await lab.template(*batch_steps(retry=retry, parallelism=2))
    tasks = [await lab.submit(context={"rows": 8, "batches": 8}) for _ in range(10)]
    async with worker_on(lab.url, lease_seconds=1.2, work=slow) as worker:
        for _ in range(6):
            done = worker.metrics.succeeded

            async def more(done: int = done) -> bool:
                return worker.metrics.succeeded >= min(done + 8, 100)

            await eventually_async(more, timeout=20)
            await lab.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'tasker-worker %%' and datname = current_database()"
            )
        results = [(await ended(task))["end"]["result"] for task in tasks]
        assert worker.metrics.results_discarded == 0
    assert [(result["total_processed"], result["worker_count"]) for result in results] == [(8, 8)] * 10
    completions = await lab.value("select count(*) from tasker.step_transitions where to_state = 'complete'")
    assert completions == 100
