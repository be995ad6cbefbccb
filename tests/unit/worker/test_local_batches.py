"""Batches in memory: a template with a batch runs as the engine would run it."""

from __future__ import annotations

from typing import Any

import pytest

from tasker_worker import HandlerRegistry, PermanentError, RetryableError, StepContext, inputs, step_handler
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
from tasker_worker.decision import Decision
from tasker_worker.errors import ConfigurationError
from tasker_worker.testing import LocalRunner, make_context, run_handler
from tasker_worker.types import Checkpoint, RustBatchWorkerInputs


@batch_analyzer("divide")
@inputs("batches")
def divide(batches: int, context: StepContext) -> Any:
    template = context.batch_config["worker_template"]
    return batch_success(template, create_cursor_configs(batches * 10, batches) if batches else [])


@batch_worker("work")
@inputs("poison")
async def work(batch: RustBatchWorkerInputs, poison: str) -> Any:
    if batch.cursor.batch_id == poison:
        raise PermanentError("poisoned")
    return batch_worker_success(batch.cursor.batch_size, metadata={"strategy": batch.batch_metadata.failure_strategy})


@step_handler("add_up")
def add_up(context: StepContext) -> dict[str, Any]:
    given = [name for name in context.dependency_results if name.startswith("work")]
    return {**aggregate_batch(context, "work", page_size=7), "given": len(given), "first": given[:1]}


def template(worker: Any = None, **batch: Any) -> dict[str, Any]:
    return {
        "steps": [
            {"name": "divide", "type": "batchable", "batch": batch, "handler": {"callable": "divide"}},
            {
                "name": "work",
                "type": "batch_worker",
                "handler": {"callable": "work"},
                "dependsOn": ["divide"],
                **(worker or {}),
            },
            {
                "name": "end",
                "type": "deferred_convergence",
                "handler": {"callable": "add_up"},
                "dependsOn": ["work"],
            },
        ]
    }


def runner(spec: dict[str, Any] | None = None, **handlers: Any) -> LocalRunner:
    registry = HandlerRegistry()
    registry.register_all({"divide": divide, "work": work, "add_up": add_up} | handlers)
    return LocalRunner(spec or template(), registry)


@pytest.mark.parity(80, 128)
def test_all_workers_run_and_are_added_up_though_only_a_hundred_results_are_given() -> None:
    run = runner(template(parallelism=3)).run({"batches": 150, "poison": "none"})
    end = run.results["end"]
    assert (run.state, end["worker_count"], end["total_processed"]) == ("complete", 150, 1500)
    assert (end["given"], end["first"]) == (100, ["work_001"])
    assert "work" not in run.results
    assert run.results["divide"]["batch_processing_outcome"] == {
        "type": "create_batches",
        "worker_template_name": "work",
        "worker_count": 150,
        "total_items": 1500,
    }
    [analysis] = [attempt for attempt in run.attempts if attempt.step == "divide"]
    assert len(analysis.result.result["batch_processing_outcome"]["cursor_configs"]) == 150


def test_without_batches_a_placeholder_is_answered_without_its_handler() -> None:
    """`work` needs an input that is not there."""
    run = runner().run({"batches": 0})
    assert (run.state, run.results["work_000"]["no_op"], run.results["end"]["batch_count"]) == ("complete", True, 0)


@pytest.mark.parametrize("strategy", ["continue_on_failure", "isolate"])
def test_a_failed_worker_may_be_tolerated(strategy: str) -> None:
    run = runner(template(failureStrategy=strategy)).run({"batches": 4, "poison": "002"})
    assert (run.state, run.results["end"]["worker_count"], len(run.failures)) == ("complete", 3, 1)
    assert [attempt.result.metadata for attempt in run.attempts if attempt.step == "work_001"] == [
        {"strategy": strategy}
    ]


def test_a_failed_worker_may_end_the_others() -> None:
    run = runner(template(failureStrategy="fail_fast")).run({"batches": 4, "poison": "002"})
    assert (run.state, list(run.results)) == ("error", ["divide", "work_001"])


def test_a_worker_that_waits_for_its_retry_is_ended_by_another_ones_failure() -> None:
    local = runner(template(failureStrategy="fail_fast"))
    local.fail("work_001")
    run = local.run({"batches": 3, "poison": "003"})
    assert (run.state, run.attempts_of("work_001"), list(run.results)) == ("error", 1, ["divide", "work_002"])


def test_a_worker_is_tried_again_as_any_step_is() -> None:
    local = runner()
    local.fail("work_002", times=2)
    local.crash("work_003")
    run = local.run({"batches": 3, "poison": ""})
    assert (run.state, run.attempts_of("work_002"), run.attempts_of("work_003")) == ("complete", 3, 2)
    local.time_out("work_001", times=3)
    run = local.run({"batches": 3, "poison": ""})
    assert (run.state, run.results["end"]["worker_count"]) == ("complete", 2), "its failure is tolerated"
    for name in ("work", "work_1", "work_0x1", "divide_001", "other"):
        with pytest.raises(ConfigurationError, match=f"the template has no step '{name}'"):
            local.fail(name)


def test_an_attempt_finds_the_checkpoint_of_the_one_before_it() -> None:
    def work(context: StepContext) -> Any:
        found = context.checkpoint
        if found is None:
            checkpoint(5, 5, {"sum": 1.5})
            raise RetryableError("half of it is done")
        return found.model_dump()

    run = runner(work=work).run({"batches": 2})
    assert run.results["work_001"] == {"cursor": 5, "items_processed": 5, "accumulated": {"sum": 1.5}}
    assert run.attempts_of("work_002") == 2, "each has its own"


def test_workers_that_are_skipped_have_no_result() -> None:
    run = runner(template({"when": "context.batches > 5"})).run({"batches": 2, "poison": ""})
    assert (run.state, run.skipped) == ("complete", ["work_001", "work_002"])
    assert run.results["end"]["worker_count"] == 0


def test_a_batch_that_no_decision_chose_is_skipped_as_a_whole() -> None:
    spec = template()
    spec["steps"][0]["dependsOn"] = ["choose"]
    spec["steps"][2]["dependsOn"] = ["work", "other"]
    spec["steps"] += [
        {"name": "choose", "type": "decision", "handler": {"callable": "choose"}},
        {"name": "other", "handler": {"callable": "choose_nothing"}, "dependsOn": ["choose"]},
    ]
    local = runner(spec, choose=lambda context: Decision.route("other"), choose_nothing=lambda context: None)
    run = local.run()
    assert (run.state, run.skipped, run.results["end"]["worker_count"]) == ("complete", ["divide"], 0)


def test_a_division_for_another_step_or_none_fails_the_run() -> None:
    run = runner(divide=lambda context: batch_success("end", create_cursor_configs(5, 1))).run()
    [failure] = run.failures
    assert (run.state, failure.result.error_message) == (
        "error",
        "step 'divide' asks for workers of 'end'; the batch_worker that depends on it is 'work'",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({1: {"type": "standard"}}, "step 'divide' is batchable: just one batch_worker depends on it"),
        ({2: {"type": "batch_worker", "dependsOn": ["divide"]}}, "just one batch_worker depends on it"),
        ({0: {"type": "standard"}}, "step 'work' is a batch_worker: it depends on one step, which is batchable"),
    ],
)
def test_a_template_whose_batch_is_not_whole_is_refused(changes: dict[int, Any], reason: str) -> None:
    spec = template()
    for place, change in changes.items():
        spec["steps"][place] |= change
    with pytest.raises(ConfigurationError, match=reason):
        runner(spec)


# One handler


def test_a_context_is_given_what_batches_need() -> None:
    context = make_context(batch={"batch_size": 7})
    assert context.batch_config == {
        "batch_size": 7,
        "parallelism": None,
        "cursor_field": "id",
        "worker_template": None,
        "failure_strategy": "continue_on_failure",
    }
    assert make_context().batch_config == {}
    assert make_context(checkpoint=Checkpoint(cursor=5)).checkpoint == Checkpoint(cursor=5)


def test_what_a_handler_saves_is_in_its_context_afterwards() -> None:
    context = make_context(checkpoint=Checkpoint(cursor=5))
    assert run_handler(lambda context: checkpoint(6) and context.heartbeat("so far"), context).result is True
    assert context.checkpoint == Checkpoint(cursor=6)


async def test_results_of_batches_are_read_in_memory() -> None:
    results = {"work": {f"work_{number:03d}": {"items_processed": 1} for number in range(1, 6)}}
    context = make_context(batch_results=results)
    assert (await aggregate_batch_async(context, "work", page_size=2))["total_processed"] == 5
    with pytest.raises(ConfigurationError, match="there is no batch_worker 'other' before this step"):
        aggregate_batch(context, "other")
