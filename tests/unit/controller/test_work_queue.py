"""The work queue's coroutines: bounded concurrency, one at a time a key, retries of what failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from support.waiting import eventually_async
from tasker.controller.kube.client import ClusterError
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.runtime.keyed_queue import Backoff
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.work_queue import Reconcile, WorkQueue


async def until(condition: Callable[[], bool]) -> None:
    async def probe() -> bool:
        return condition()

    await eventually_async(probe, timeout=5, interval=0.002)


def key(name: str) -> ObjectKey:
    return ObjectKey(namespace="default", name=name)


@asynccontextmanager
async def running(reconcile: Reconcile, *, concurrency: int = 2) -> AsyncIterator[tuple[WorkQueue, OperatorMetrics]]:
    metrics = OperatorMetrics()
    queue = WorkQueue(
        "Thing",
        reconcile,
        concurrency=concurrency,
        metrics=metrics,
        backoff=Backoff(base_seconds=0.01, max_seconds=0.02),
    )
    task = asyncio.create_task(queue.run())
    try:
        yield queue, metrics
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_no_more_keys_than_allowed_are_worked_on_at_once_and_never_one_key_twice() -> None:
    under_way: list[ObjectKey] = []
    most, done = 0, 0

    async def reconcile(current: ObjectKey) -> float | None:
        nonlocal most, done
        assert current not in under_way
        under_way.append(current)
        most = max(most, len(under_way))
        await asyncio.sleep(0.002)
        under_way.remove(current)
        done += 1
        return None

    async with running(reconcile, concurrency=3) as (queue, _):
        for round_number in range(3):
            for number in range(10):
                queue.add(key(f"k{number}"))
            if round_number < 2:
                await asyncio.sleep(0.003)
        await until(lambda: queue.idle() and done >= 10)
    assert most == 3


async def test_a_key_that_fails_is_tried_until_it_succeeds_and_the_causes_are_counted() -> None:
    outcomes: list[Exception | None] = [
        ClusterError("no", status=409),
        ClusterError("no", status=500),
        ValueError("a bug"),
        None,
    ]
    calls = 0

    async def reconcile(_: ObjectKey) -> float | None:
        nonlocal calls
        outcome = outcomes[calls]
        calls += 1
        if outcome is not None:
            raise outcome
        return None

    async with running(reconcile) as (queue, metrics):
        queue.add(key("a"))
        await until(lambda: calls == len(outcomes) and queue.idle())
    sample = metrics.registry.get_sample_value
    for cause in ("api_409", "api_500", "ValueError"):
        assert sample("tasker_operator_reconcile_errors_total", {"kind": "Thing", "cause": cause}) == 1
    assert sample("tasker_operator_reconciles_total", {"kind": "Thing", "outcome": "success"}) == 1


async def test_a_reconcile_that_asks_for_it_is_called_again() -> None:
    calls = 0

    async def reconcile(_: ObjectKey) -> float | None:
        nonlocal calls
        calls += 1
        return 0.01 if calls < 3 else None

    async with running(reconcile) as (queue, _):
        queue.add(key("a"))
        await until(lambda: calls == 3)
