"""What handlers ask of their worker: checkpoints that are written beside them, and results page by page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.worker_engine import MemoryEngine, Rig, make_claim
from tasker_worker import HandlerRegistry, PermanentError, RetryableError, StepContext, outcomes, services
from tasker_worker.attempts import Attempt
from tasker_worker.batch import aggregate_batch, aggregate_batch_async, checkpoint
from tasker_worker.claims import Claim, OutcomeKind
from tasker_worker.errors import ConfigurationError
from tasker_worker.gateway import Locked, Refused, Unavailable
from tasker_worker.services import WorkerServices
from tasker_worker.types import Checkpoint


def rig_of(**handlers: Any) -> Rig:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    return Rig(registry)


def running(services_: WorkerServices, claim: Claim | None = None) -> Attempt:
    """An attempt whose handler runs."""
    attempt = Attempt(claim or make_claim(), 0.0)
    attempt.services = services_
    assert attempt.begin()
    return attempt


def cursors(engine: MemoryEngine) -> list[Any]:
    return [json.loads(text)["cursor"] for _, text in engine.checkpoints]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - any state, which tells nobody of its changes
            await asyncio.sleep(0.001)


# Checkpoints


@pytest.mark.parity(240)
async def test_of_several_that_follow_quickly_the_newest_is_written() -> None:
    engine = MemoryEngine()
    attempt = running(WorkerServices(engine, worker="worker"))
    engine.gate.clear()
    attempt.context.save_checkpoint(Checkpoint(cursor=0))
    await asyncio.wait_for(engine.called.wait(), 10)
    for cursor in range(1, 100):
        attempt.context.save_checkpoint(Checkpoint(cursor=cursor))
    engine.gate.set()
    await until(lambda: len(engine.checkpoints) == 2)
    assert cursors(engine) == [0, 99]
    assert attempt.context.checkpoint == Checkpoint(cursor=99)
    assert engine.most_concurrent == 1


async def test_one_that_could_not_be_written_is_tried_again_unless_a_newer_one_came(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = MemoryEngine()
    attempt, other = running(services_ := WorkerServices(engine, worker="worker")), running(services_)
    engine.checkpoint_faults.extend([Locked("held"), Unavailable("down")])
    attempt.context.save_checkpoint(Checkpoint(cursor="old"))
    other.context.save_checkpoint(Checkpoint(cursor="other"))
    await until(lambda: len(engine.calls) == 1)
    attempt.context.save_checkpoint(Checkpoint(cursor="new"))
    await until(lambda: len(engine.checkpoints) == 2)
    assert sorted(cursors(engine)) == ["new", "other"]
    told = [record.message for record in caplog.records if "checkpoint" in record.message]
    assert told == ["a checkpoint could not be written; trying again"], "once, while it goes on"


async def test_one_that_failed_under_way_does_not_take_the_place_of_a_newer_one() -> None:
    engine = MemoryEngine()
    attempt = running(WorkerServices(engine, worker="worker"))
    engine.gate.clear()
    attempt.context.save_checkpoint(Checkpoint(cursor="old"))
    await asyncio.wait_for(engine.called.wait(), 10)
    attempt.context.save_checkpoint(Checkpoint(cursor="new"))
    engine.checkpoint_faults.append(Unavailable("down"))
    engine.gate.set()
    await until(lambda: engine.checkpoints)
    assert cursors(engine) == ["new"]


async def test_one_whose_attempt_was_settled_before_its_turn_is_not_written() -> None:
    engine = MemoryEngine()
    attempt, settled = running(services_ := WorkerServices(engine, worker="worker")), running(services_)
    engine.gate.clear()
    attempt.context.save_checkpoint(Checkpoint(cursor=1))
    settled.context.save_checkpoint(Checkpoint(cursor=2))
    settled.finish(outcomes.failure("E", "no more", retryable=True))
    assert settled.send()
    settled.settle()
    engine.gate.set()
    await until(lambda: services_._saver is None and engine.checkpoints)
    assert (cursors(engine), len(engine.calls)) == ([1], 1)


async def test_a_fence_that_is_old_since_the_attempt_was_settled_is_nobodys_concern() -> None:
    engine = MemoryEngine()
    attempt = running(services_ := WorkerServices(engine, worker="worker"))
    engine.gate.clear()
    attempt.context.save_checkpoint(Checkpoint(cursor=1))
    await asyncio.wait_for(engine.called.wait(), 10)
    attempt.finish(outcomes.failure("E", "no more", retryable=True))
    assert attempt.send()
    attempt.settle()
    engine.lost.add(attempt.claim.fence)
    engine.gate.set()
    await until(lambda: services_._saver is None)
    assert (cursors(engine), attempt.context.cancelled) == ([], False)


async def test_a_failure_waits_for_the_newest_checkpoint_and_not_for_an_older_one() -> None:
    turns = asyncio.Semaphore(0)

    class InTurns(MemoryEngine):
        async def save_checkpoint(self, worker: str, step_id: int, fence: int, checkpoint: str) -> bool:
            await turns.acquire()
            return await super().save_checkpoint(worker, step_id, fence, checkpoint)

    engine = InTurns()
    attempt = running(services_ := WorkerServices(engine, worker="worker"))
    attempt.context.save_checkpoint(Checkpoint(cursor=1))
    await until(lambda: services_._saving is attempt)
    attempt.context.save_checkpoint(Checkpoint(cursor=2))
    attempt.finish(outcomes.failure("E", "no more", retryable=True))
    let_go: list[Attempt] = []
    services_.finish(attempt, let_go.append)
    turns.release()
    await until(lambda: cursors(engine) == [1] and services_._saving is attempt)
    assert (let_go, services_.holding) == ([], 1)
    turns.release()
    await until(lambda: let_go == [attempt])
    assert (cursors(engine), services_.holding) == ([1, 2], 0)


async def test_one_that_is_refused_is_told_and_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    engine = MemoryEngine()
    attempt, other = running(services_ := WorkerServices(engine, worker="worker")), running(services_)
    engine.checkpoint_faults.append(Refused("too large"))
    attempt.context.save_checkpoint(Checkpoint(cursor=1))
    other.context.save_checkpoint(Checkpoint(cursor=2))
    await until(lambda: engine.checkpoints)
    assert (cursors(engine), attempt.context.cancelled) == ([2], False)
    assert "the database refuses a checkpoint" in caplog.text


async def test_a_fence_that_is_old_tells_the_handler_to_stop() -> None:
    engine = MemoryEngine()
    attempt = running(WorkerServices(engine, worker="worker"))
    engine.lost.add(attempt.claim.fence)
    assert checkpoint(1, context=attempt.context) is True
    await until(lambda: attempt.context.cancelled)
    assert checkpoint(2, context=attempt.context) is False


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_failure_is_settled_after_the_last_checkpoint(is_async: bool) -> None:
    def fails(context: StepContext) -> None:
        checkpoint("half")
        raise RetryableError("no more")

    async def fails_async(context: StepContext) -> None:
        fails(context)

    async with rig_of(work=fails_async if is_async else fails) as rig:
        claim = make_claim()
        rig.engine_for_handlers.gate.clear()
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await asyncio.wait_for(rig.engine_for_handlers.called.wait(), 10)
        await until(lambda: rig.metrics.failed == 1)
        assert claim.fence not in rig.engine.settled
        assert rig.executor.running == 1, "its slot is not given away meanwhile"
        rig.engine_for_handlers.gate.set()
        await rig.until(lambda: claim.fence in rig.engine.settled)
        assert cursors(rig.engine) == ["half"]
        assert rig.executor.running == 0


async def test_a_failure_does_not_wait_for_its_checkpoint_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_HOLD_SECONDS", 0.01)

    async def fails(context: StepContext) -> None:
        checkpoint(1)
        raise PermanentError("no more")

    async with rig_of(work=fails) as rig:
        rig.engine_for_handlers.gate.clear()
        claim = make_claim()
        await rig.work_off(claim)
        assert rig.engine.settled[claim.fence].kind is OutcomeKind.FAIL
        rig.engine_for_handlers.gate.set()
        await rig.until(lambda: rig.services._saver is None)
        assert cursors(rig.engine) == [], "never after it"


async def test_a_result_does_not_wait_and_needs_no_checkpoint_any_more() -> None:
    async def succeeds(context: StepContext) -> str:
        checkpoint(1)
        await asyncio.wait_for(rig.engine_for_handlers.called.wait(), 10)
        checkpoint(2)
        return "done"

    async with rig_of(work=succeeds) as rig:
        rig.engine_for_handlers.gate.clear()
        await rig.work_off(claim := make_claim())
        assert rig.engine.result_of(claim) == "done"
        rig.engine_for_handlers.gate.set()
        await rig.until(lambda: rig.services._saver is None)
        assert [name for name, _, _ in rig.engine_for_handlers.calls] == ["checkpoint"]


async def test_a_result_that_came_before_its_checkpoint_could_be_written_drops_it() -> None:
    engine = MemoryEngine()
    attempt, other = running(services_ := WorkerServices(engine, worker="worker")), running(services_)
    attempt.context.save_checkpoint(Checkpoint(cursor=1))
    other.context.save_checkpoint(Checkpoint(cursor=2))
    attempt.finish(outcomes.from_value(attempt.claim, "done"))
    let_go: list[Attempt] = []
    services_.finish(attempt, let_go.append)
    assert let_go == [attempt]
    await until(lambda: engine.checkpoints)
    assert (cursors(engine), len(engine.calls)) == ([2], 1)


def test_a_claim_brings_the_checkpoint_of_an_earlier_attempt() -> None:
    text = '{"cursor": {"page": "é"}, "items_processed": 3, "accumulated": null}'
    assert StepContext(make_claim(checkpoint=text)).checkpoint == Checkpoint(cursor={"page": "é"}, items_processed=3)
    assert StepContext(make_claim()).checkpoint is None
    with pytest.raises(ConfigurationError, match="no worker runs this attempt of step 'work'"):
        Attempt(make_claim(), 0.0).context.save_checkpoint(Checkpoint(cursor=1))


# Results of batches


def fill(engine: MemoryEngine, count: int) -> None:
    engine.batch_results["work"] = [
        (place, f"work_{place:03d}", json.dumps({"items_processed": place})) for place in range(1, count + 1)
    ]


@pytest.mark.parity(80, 126)
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(("count", "pages"), [(0, 1), (99, 1), (100, 2), (250, 3)])
async def test_all_results_are_added_up_page_by_page(is_async: bool, count: int, pages: int) -> None:
    def add_up(context: StepContext) -> Any:
        return aggregate_batch(context, "work")

    async def add_up_async(context: StepContext) -> Any:
        return await aggregate_batch_async(context, "work")

    async with rig_of(work=add_up_async if is_async else add_up) as rig:
        fill(rig.engine, count)
        await rig.work_off(claim := make_claim())
        result = rig.engine.result_of(claim)
        asked = [limit for _, _, limit in rig.engine_for_handlers.calls]
    assert (result["total_processed"], result["worker_count"]) == (count * (count + 1) // 2, count)
    assert [limit for limit in asked if limit > 1] == [100] * pages
    assert (1 in asked) is (count == 100), "asks whether the lease is current when the last page was full"


async def test_pages_are_results_by_step_name_in_the_order_of_the_batches() -> None:
    engine = MemoryEngine()
    fill(engine, 3)
    context = running(WorkerServices(engine, worker="worker")).context
    pages = [page async for page in context.batch_results("work", page_size=2)]
    assert [list(page) for page in pages] == [["work_001", "work_002"], ["work_003"]]
    assert pages[1] == {"work_003": {"items_processed": 3}}
    assert [page async for page in context.batch_results("other")] == []
    for size in (0, 1001):
        with pytest.raises(ValueError, match=f"a page has 1 to 1000 results, not {size}"):
            context.batch_results("work", page_size=size)
    with pytest.raises(ConfigurationError, match="nobody to ask for the results of 'work'"):
        StepContext(make_claim()).batch_results("work")


async def test_a_plain_loop_over_pages_on_the_event_loop_is_refused() -> None:
    async def add_up(context: StepContext) -> Any:
        return aggregate_batch(context, "work")

    async with rig_of(work=add_up) as rig:
        await rig.work_off(claim := make_claim())
        assert "would block the event loop to read results: use `async for`" in str(rig.engine.error_of(claim).message)


@pytest.mark.parametrize("after_pages", [0, 1])
async def test_who_has_lost_the_lease_does_not_take_that_for_the_end(after_pages: int) -> None:
    engine = MemoryEngine()
    fill(engine, 4)
    attempt = running(WorkerServices(engine, worker="worker"))
    pages = aiter(attempt.context.batch_results("work", page_size=2))
    for _ in range(after_pages):
        await anext(pages)
    if not after_pages:
        attempt.context.cancelled = True  # then only so it is known
    engine.lost.add(attempt.claim.fence)
    with pytest.raises(RetryableError, match="this attempt of step 'work' is over, or its lease is lost"):
        await anext(pages)


async def test_a_page_is_asked_for_again_while_the_database_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    fill(engine, 1)
    attempt = running(WorkerServices(engine, worker="worker"))
    engine.read_faults.append(Unavailable("down"))
    assert [len(page) async for page in attempt.context.batch_results("work")] == [1]
    monkeypatch.setattr(services, "_PATIENCE_SECONDS", 0.0)
    engine.read_faults.append(Unavailable("down"))
    with pytest.raises(RetryableError, match="the results of 'work' cannot be read: down"):
        await anext(aiter(attempt.context.batch_results("work")))
    engine.read_faults.append(Refused("no"))
    with pytest.raises(ConfigurationError, match=r"step 'work' cannot read the results of 'work': no$"):
        await anext(aiter(attempt.context.batch_results("work")))
