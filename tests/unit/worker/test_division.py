"""Divisions into batches: what is recorded and told of them, and that their calls keep what settling promises."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from support.worker_engine import MemoryEngine, Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext, division
from tasker_worker.attempts import Attempt
from tasker_worker.batch import BatchError, batch_success, create_cursor_configs, no_batches_result
from tasker_worker.claims import Claim, Outcome, OutcomeKind
from tasker_worker.division import divide
from tasker_worker.gateway import Locked, Refused, Unavailable
from tasker_worker.held import HeldClaims
from tasker_worker.metrics import WorkerMetrics
from tasker_worker.outcomes import from_value
from tasker_worker.settling import Settler
from tasker_worker.types import RustBatchWorkerInputs, RustCursorConfig, create_batches, no_batches

SAID = {
    "batch_size": 10,
    "parallelism": None,
    "cursor_field": "row",
    "worker_template": "work",
    "failure_strategy": "isolate",
}


def batchable(**columns: Any) -> Claim:
    return make_claim("divide", step_type="batchable", batch=json.dumps(SAID), **columns)


# What is told


def test_the_cursors_are_told_beside_the_result() -> None:
    returned = batch_success("work", create_cursor_configs(25, 2), {"path": "a.csv"})
    outcome = from_value(batchable(), returned)
    batches = outcome.batches
    assert batches is not None
    assert (outcome.kind, outcome.succeeded, outcome.metadata) == (OutcomeKind.DIVIDE, True, '{"path":"a.csv"}')
    assert json.loads(outcome.result or "") == {
        "batch_processing_outcome": {
            "type": "create_batches",
            "worker_template_name": "work",
            "worker_count": 2,
            "total_items": 25,
        },
        "path": "a.csv",
    }
    assert (batches.ids, batches.starts, batches.ends) == (["001", "002"], [0, 13], [13, 25])
    assert batches.is_no_op is False
    second = RustBatchWorkerInputs.model_validate_json(batches.inputs[1])
    assert second.model_dump(mode="json") == {
        "cursor": {"batch_id": "002", "start_cursor": 13, "end_cursor": 25, "batch_size": 12},
        "batch_metadata": {"cursor_field": "row", "failure_strategy": "isolate"},
        "is_no_op": False,
    }


@pytest.mark.parametrize("returned", [no_batches_result("nothing").result, no_batches()])
def test_nothing_to_divide_is_one_placeholder(returned: Any) -> None:
    recorded, batches = divide(batchable(), returned)
    assert recorded["batch_processing_outcome"] == {"type": "no_batches"}
    assert (batches.ids, batches.starts, batches.ends, batches.is_no_op) == (["000"], [None], [None], True)
    assert RustBatchWorkerInputs.model_validate_json(batches.inputs[0]).is_no_op


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        (0, 5, (0, 5)),
        (-(2**63), 2**63 - 1, (-(2**63), 2**63 - 1)),
        (5, 5, (None, None)),
        (0, 2**63, (None, None)),
        (-(2**63) - 1, 0, (None, None)),
        (0, "5", (None, None)),
        ({"id": 1}, {"id": 2}, (None, None)),
    ],
)
def test_ranges_are_told_as_far_as_the_database_can_judge_them(start: Any, end: Any, told: Any) -> None:
    config = RustCursorConfig(batch_id="a", start_cursor=start, end_cursor=end, batch_size=1)
    _, batches = divide(batchable(), create_batches("work", 1, [config], 1))
    assert (batches.starts, batches.ends) == ([told[0]], [told[1]])
    cursor = RustBatchWorkerInputs.model_validate_json(batches.inputs[0]).cursor
    assert (cursor.start_cursor, cursor.end_cursor) == (start, end)


def test_cursors_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = batch_success("work", create_cursor_configs(25, 2)).result
    _, batches = divide(batchable(), returned)
    monkeypatch.setattr(division, "INPUTS_CHARACTERS", batches.characters)
    divide(batchable(), returned)
    monkeypatch.setattr(division, "INPUTS_CHARACTERS", batches.characters - 1)
    with pytest.raises(BatchError, match=f"are {batches.characters} characters of JSON, the limit is"):
        divide(batchable(), returned)


def test_ten_thousand_cursors_fit() -> None:
    outcome = from_value(batchable(), batch_success("work", create_cursor_configs(10**9, 10_000)))
    assert outcome.batches is not None
    assert (len(outcome.batches.inputs), len(outcome.result or "") < 200) == (10_000, True)


@pytest.mark.parametrize("step_type", ["standard", "decision", "batch_worker", "deferred_convergence"])
def test_a_step_of_another_type_cannot_divide(step_type: str) -> None:
    returns: list[Any] = [no_batches(), no_batches_result(), {"batch_processing_outcome": {}}]
    for returned in returns:
        outcome = from_value(make_claim(step_type=step_type), returned)
        assert (outcome.kind, outcome.retryable) == (OutcomeKind.FAIL, False)
        assert step_type in str(outcome.message)


# How it is settled


def ended(claim: Claim | None = None, batches: int = 0) -> Attempt:
    """An attempt that is complete, or has divided."""
    value = batch_success("work", create_cursor_configs(batches, batches)) if batches else "done"
    claim = claim or (batchable() if batches else make_claim())
    attempt = Attempt(claim, 0.0)
    attempt.finish(from_value(claim, value))
    return attempt


def settler_on(engine: MemoryEngine) -> tuple[Settler, list[list[Attempt]]]:
    locked: list[list[Attempt]] = []
    settler = Settler(
        engine,
        worker="worker",
        held=HeldClaims(),
        metrics=WorkerMetrics(),
        on_answer=lambda answer, limit: None,
        on_locked=locked.append,
    )
    return settler, locked


async def test_a_division_is_taken_alone_and_in_its_turn() -> None:
    settler, _ = settler_on(MemoryEngine())
    finished = deque([ended(), ended(), ended(batches=2), ended(batches=3), ended()])
    taken = []
    while finished:
        taken.append(len(settler.take_batch(finished)))
    assert taken == [2, 1, 1, 1]


async def test_one_whose_lease_is_lost_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    settler, _ = settler_on(MemoryEngine())
    lost, other = ended(batches=2), ended()
    assert lost.lose()
    assert settler.take_batch(deque([lost, other])) == [other]
    assert "a result is discarded" in caplog.text


async def test_a_division_that_nobody_answered_is_said_again_as_it_was() -> None:
    engine = MemoryEngine()
    settler, _ = settler_on(engine)
    engine.late_settle_faults.append(Unavailable("the connection broke"))
    attempt = ended(batches=2)
    assert await settler.settle(settler.take_batch(deque([attempt])), 7)
    assert engine.divided == [attempt.claim.fence] * 2
    assert [limit for _, _, limit in engine.calls] == [7, 0], "nothing is claimed before it is known what became of it"
    assert engine.settled[attempt.claim.fence].kind is OutcomeKind.DIVIDE


async def test_a_division_of_a_run_that_is_held_waits_beside_the_others() -> None:
    engine = MemoryEngine()
    settler, locked = settler_on(engine)
    engine.settle_faults.append(Locked("held"))
    attempt = ended(batches=2)
    assert await settler.settle(settler.take_batch(deque([attempt])), 0)
    assert locked == [[attempt]]
    assert settler.take_batch(deque([attempt])) == [attempt], "it can be sent again"


async def test_a_division_that_the_database_refuses_fails_its_step() -> None:
    engine = MemoryEngine()
    settler, _ = settler_on(engine)
    attempt = ended(batches=2)
    engine.refused[attempt.claim.fence] = Refused("the arrays differ in length")
    assert await settler.settle(settler.take_batch(deque([attempt])), 0)
    outcome: Outcome = engine.settled[attempt.claim.fence]
    assert (outcome.kind, outcome.retryable) == (OutcomeKind.FAIL, False)
    assert engine.divided == [attempt.claim.fence]


@pytest.mark.parametrize(("batches", "beside"), [(500, False), (501, True)])
async def test_a_division_into_very_many_does_not_keep_the_conversation_waiting(batches: int, beside: bool) -> None:
    async def divide_into(context: StepContext) -> Any:
        return batch_success("work", create_cursor_configs(batches, batches))

    registry = HandlerRegistry()
    registry.register_all({"divide": divide_into})
    async with Rig(registry) as rig:
        claim = batchable()
        await rig.work_off(claim)
        assert ("settle", 1, 0) in rig.engine_for_locked.calls or not beside
        assert bool(rig.engine_for_locked.calls) is beside
        assert rig.engine.divided == [claim.fence]
