"""Handlers of batches: what analyzers ask for, what workers are given and return, and how far they say they are."""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pydantic
import pytest

from support.worker_engine import make_claim
from tasker_worker import (
    HandlerRegistry,
    PermanentError,
    StepContext,
    StepHandler,
    StepResult,
    batch,
    depends_on,
    inputs,
)
from tasker_worker.batch import (
    BatchableMixin,
    BatchableStepHandler,
    BatchError,
    Checkpoint,
    batch_analyzer,
    batch_outcome_of,
    batch_success,
    batch_worker,
    batch_worker_partial_failure,
    batch_worker_success,
    checkpoint,
    create_cursor_configs,
    create_cursor_ranges,
    get_batch_worker_inputs,
    handle_no_op_worker,
    no_batches_result,
)
from tasker_worker.errors import ConfigurationError
from tasker_worker.jsontext import encode
from tasker_worker.logging import bound_to
from tasker_worker.testing import make_context, run_handler, run_handler_async
from tasker_worker.types import (
    CHECKPOINT_BYTES,
    CreateBatchesOutcome,
    CursorConfig,
    FailureStrategy,
    RustBatchWorkerInputs,
    RustCursorConfig,
    create_batches,
    no_batches,
)

INPUTS: dict[str, Any] = {
    "cursor": {"batch_id": "002", "start_cursor": 200, "end_cursor": 400, "batch_size": 200},
    "batch_metadata": {"cursor_field": "row", "failure_strategy": "isolate"},
    "is_no_op": False,
}
PLACEHOLDER: dict[str, Any] = {
    "cursor": {"batch_id": "000", "start_cursor": 0, "end_cursor": 0, "batch_size": 0},
    "batch_metadata": {"cursor_field": "row", "failure_strategy": "isolate"},
    "is_no_op": True,
}


class AnalyzeCsv(BatchableStepHandler):
    handler_name = "analyze_csv"

    def call(self, context: StepContext) -> batch.BatchableResult:
        rows = context.get_input("rows")
        if rows == 0:
            return self.no_batches_result("the file is empty", {"path": "a.csv"})
        return self.batch_success("process_csv", self.create_cursor_configs(rows, 5), {"path": "a.csv"})


class ProcessCsv(BatchableStepHandler):
    handler_name = "process_csv"

    def call(self, context: StepContext) -> StepResult:
        done = self.handle_no_op_worker(context)
        if done is not None:
            return done
        given = self.get_batch_worker_inputs(context)
        return self.batch_worker_success(given.cursor.batch_size, items_failed=2, errors=[{"row": 201}, {"row": 202}])


class AddUp(BatchableStepHandler):
    handler_name = "add_up"

    def call(self, dependency_results: dict[str, Any]) -> StepResult:
        return self.success(self.aggregate_worker_results(dependency_results.values()))


class KeepingContext(StepContext):
    """A context that keeps checkpoints, as a worker's does."""

    def __init__(self, **columns: Any) -> None:
        super().__init__(make_claim(**columns))
        self.kept: list[Checkpoint] = []

    def save_checkpoint(self, checkpoint: Checkpoint, /) -> None:
        self.kept.append(checkpoint)


def worker_context(step_inputs: dict[str, Any] = INPUTS, **fields: Any) -> StepContext:
    return make_context(step_name="process_csv_002", step_inputs=step_inputs, **fields)


# Analyzers


@pytest.mark.parity(120, 123, 43)
def test_an_analyzer_asks_for_a_worker_for_each_range() -> None:
    result = run_handler(AnalyzeCsv, make_context(batch={}, task_context={"rows": 1000}))
    assert result.success
    assert result.metadata == {"path": "a.csv"}
    assert result.result == {
        "batch_processing_outcome": {
            "type": "create_batches",
            "worker_template_name": "process_csv",
            "worker_count": 5,
            "cursor_configs": [
                {
                    "batch_id": f"00{number + 1}",
                    "start_cursor": number * 200,
                    "end_cursor": number * 200 + 200,
                    "batch_size": 200,
                }
                for number in range(5)
            ],
            "total_items": 1000,
        },
        "path": "a.csv",
    }


@pytest.mark.parity(121, 129, 43)
def test_an_analyzer_says_that_there_is_nothing_to_divide_and_why() -> None:
    result = run_handler(AnalyzeCsv, make_context(batch={}, task_context={"rows": 0}))
    assert result.success
    assert result.result == {
        "batch_processing_outcome": {"type": "no_batches"},
        "reason": "the file is empty",
        "path": "a.csv",
    }
    assert no_batches_result().result == {"batch_processing_outcome": {"type": "no_batches"}}
    assert no_batches_result().metadata is None


@pytest.mark.parity(129)
def test_no_rows_are_no_batches_without_a_word_more() -> None:
    result = batch_success("process_csv", create_cursor_configs(0, 5), {"path": "a.csv"})
    assert result.result == {"batch_processing_outcome": {"type": "no_batches"}, "path": "a.csv"}


@pytest.mark.parity(41, 42)
def test_ranges_of_the_simple_form_get_ids_and_cursors_of_any_kind_keep_theirs() -> None:
    simple = batch_success("process_csv", create_cursor_ranges(250, 100)).result["batch_processing_outcome"]
    assert [(each["batch_id"], each["start_cursor"], each["batch_size"]) for each in simple["cursor_configs"]] == [
        ("001", 0, 100),
        ("002", 100, 100),
        ("003", 200, 50),
    ]
    months = [
        RustCursorConfig(batch_id=month, start_cursor=f"2025-{month}-01", end_cursor=f"2025-{month}-31", batch_size=9)
        for month in ("01", "03")
    ]
    mixed = batch_success("process", [*months, CursorConfig(start_cursor=5, end_cursor=6)])
    outcome = batch_outcome_of(mixed.result)
    assert isinstance(outcome, CreateBatchesOutcome)
    assert [each.batch_id for each in outcome.cursor_configs] == ["01", "03", "003"]
    assert outcome.total_items == 19


@pytest.mark.parametrize(
    ("template", "configs", "reason"),
    [
        ("w" * 58, create_cursor_configs(1, 1), "worker_template_name has 58 characters"),
        ("", create_cursor_configs(1, 1), "worker_template_name has 0 characters"),
        ("work", create_cursor_configs(9, 1) * 2, r"cursor_configs\[1\]\.batch_id is '001', as is that of"),
        (
            "work",
            [CursorConfig(start_cursor=0, end_cursor=9), CursorConfig(start_cursor=8, end_cursor=12)],
            r"cursor_configs\[1\] \(8 to 12\) overlaps cursor_configs\[0\] \(0 to 9\)",
        ),
        (
            "work",
            [CursorConfig(start_cursor=each, end_cursor=each + 1) for each in range(10_001)],
            "cursor_configs has 10001 batches, the limit is 10000",
        ),
    ],
)
def test_batches_that_the_engine_would_refuse_are_not_asked_for(template: str, configs: Any, reason: str) -> None:
    with pytest.raises(BatchError, match=rf"^batch_processing_outcome\.{reason}"):
        batch_success(template, configs)


def test_what_is_no_cursor_config_is_refused_with_its_place() -> None:
    configs: Any = [*create_cursor_configs(1, 1), {"batch_id": "002", "start_cursor": 1, "end_cursor": 2}]
    with pytest.raises(BatchError, match=r"cursor_configs\[1\] is no RustCursorConfig or CursorConfig but a dict"):
        batch_success("work", configs)


def test_metadata_cannot_take_the_place_of_the_outcome_nor_of_the_reason() -> None:
    with pytest.raises(ValueError, match="metadata has the key 'batch_processing_outcome'"):
        batch_success("work", create_cursor_configs(1, 1), {"batch_processing_outcome": 1})
    with pytest.raises(ValueError, match="metadata has the key 'reason'"):
        no_batches_result("empty", {"reason": "other"})
    assert no_batches_result(metadata={"reason": "other"}).result["reason"] == "other"


@pytest.mark.parity(43)
def test_the_outcome_of_a_result_is_found_and_checked() -> None:
    assert batch_outcome_of(no_batches_result("empty").result) == no_batches()
    asked = create_batches("work", 2, create_cursor_configs(20, 2), 20)
    assert batch_outcome_of(batch_success("work", create_cursor_configs(20, 2)).result) == asked
    others: list[Any] = [None, 5, [], {}, {"type": "no_batches"}]
    assert [batch_outcome_of(other) for other in others] == [None] * len(others)


@pytest.mark.parity(17)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "some_batches"}, ": Input tag 'some_batches' .*"),
        ({"worker_count": 3}, r"\.worker_count is 3, and there are 1 cursor_configs"),
        ({"total_items": -1}, r"\.total_items: .*greater than or equal to 0"),
        ({"cursor_configs": [{"batch_id": "1"}]}, r"\.cursor_configs\[0\]\.start_cursor: Field required"),
        (
            {"cursor_configs": [{**INPUTS["cursor"], "end_cursor": 1.5}]},
            r"\.cursor_configs\[0\]\.end_cursor: a cursor is",
        ),
    ],
)
def test_an_outcome_written_by_hand_is_refused_with_the_path_of_its_fault(change: dict[str, Any], reason: str) -> None:
    result = json.loads(encode(batch_success("work", create_cursor_configs(20, 1)).result))
    result["batch_processing_outcome"] |= change
    with pytest.raises(BatchError, match=rf"^batch_processing_outcome{reason}"):
        batch_outcome_of(result)


def test_the_most_batches_fit_into_a_result() -> None:
    assert len(encode(batch_success("work", create_cursor_configs(10**13, 10_000)).result)) < 1024 * 1024


# Workers


@pytest.mark.parity(32, 125)
def test_a_worker_reads_its_cursor_its_metadata_and_whether_it_is_a_placeholder() -> None:
    given = get_batch_worker_inputs(worker_context({**INPUTS, "__template_step_name": "process_csv"}))
    assert given.cursor == RustCursorConfig(batch_id="002", start_cursor=200, end_cursor=400, batch_size=200)
    assert given.batch_metadata.cursor_field == "row"
    assert given.batch_metadata.failure_strategy is FailureStrategy.ISOLATE
    assert given.is_no_op is False


@pytest.mark.parity(127)
@pytest.mark.parametrize(
    ("step_inputs", "fault"),
    [
        ({}, "inputs.cursor: Field required"),
        ({key: value for key, value in INPUTS.items() if key != "cursor"}, "inputs.cursor: Field required"),
        ({**INPUTS, "cursor": None}, "inputs.cursor: Input should be"),
        ({**INPUTS, "cursor": {**INPUTS["cursor"], "batch_size": "9"}}, "inputs.cursor.batch_size: Input should be"),
        ({**INPUTS, "batch_metadata": {"cursor_field": "row", "failure_strategy": "no"}}, "failure_strategy: Input"),
    ],
)
@pytest.mark.parametrize("handler", [ProcessCsv, batch_worker("process_csv")(lambda batch: batch)])
def test_a_worker_without_its_cursor_fails_for_good_and_says_what_is_missing(
    handler: Any, step_inputs: dict[str, Any], fault: str
) -> None:
    result = run_handler(handler, worker_context(step_inputs))
    assert (result.success, result.error_type, result.retryable) == (False, "batch_error", False)
    assert result.error_message is not None
    assert result.error_message.startswith(
        "step 'process_csv_002' is no batch worker, or was given wrong inputs: inputs"
    )
    assert fault in result.error_message
    assert issubclass(BatchError, PermanentError)


@pytest.mark.parity(24, 124)
def test_a_placeholder_is_done_before_it_begins_and_nothing_else_is() -> None:
    done = handle_no_op_worker(worker_context(PLACEHOLDER))
    assert done is not None
    assert done.success
    assert done.result == {
        "batch_id": "000",
        "no_op": True,
        "items_processed": 0,
        "items_succeeded": 0,
        "items_failed": 0,
        "items_skipped": 0,
    }
    assert run_handler(ProcessCsv, worker_context(PLACEHOLDER)) == done
    for other in (INPUTS, {}, {**INPUTS, "is_no_op": 1}, {**INPUTS, "is_no_op": "true"}):
        assert handle_no_op_worker(worker_context(other)) is None


def test_a_placeholder_needs_no_cursor() -> None:
    for cursor in (None, {}, {"start_cursor": 0}):
        done = handle_no_op_worker(worker_context({"is_no_op": True, "cursor": cursor}))
        assert done is not None
        assert "batch_id" not in done.result


def test_what_a_worker_did_is_counted_for_the_aggregator() -> None:
    result = run_handler(ProcessCsv, worker_context())
    assert result.result == {
        "items_processed": 200,
        "items_succeeded": 198,
        "items_failed": 2,
        "items_skipped": 0,
        "errors": [{"row": 201}, {"row": 202}],
        "error_count": 2,
    }
    full = batch_worker_success(
        10,
        items_succeeded=4,
        items_failed=1,
        items_skipped=2,
        results=[{"row": 1}],
        last_cursor={"page": 3},
        metadata={"source": "a.csv"},
    )
    assert full.result == {
        "items_processed": 10,
        "items_succeeded": 4,
        "items_failed": 1,
        "items_skipped": 2,
        "last_cursor": {"page": 3},
        "results": [{"row": 1}],
    }
    assert full.metadata == {"source": "a.csv"}
    assert batch_worker_success(10, items_failed=1, items_skipped=2).result["items_succeeded"] == 7
    assert batch_worker_success(1, items_failed=2).result["items_succeeded"] == 0
    assert batch_worker_success(1, last_cursor=0).result["last_cursor"] == 0


def test_a_worker_some_of_whose_items_failed_succeeds_and_says_so() -> None:
    result = batch_worker_partial_failure(
        10, 3, errors=[{"row": 7}], message="three rows are no numbers", metadata={"source": "a.csv"}
    )
    assert result.success
    assert result.metadata == {"source": "a.csv"}
    assert result.result == {
        "items_processed": 10,
        "items_succeeded": 7,
        "items_failed": 3,
        "items_skipped": 0,
        "errors": [{"row": 7}],
        "error_count": 1,
        "partial_failure": True,
        "partial_failure_message": "three rows are no numbers",
    }
    assert "partial_failure_message" not in batch_worker_partial_failure(2, 1).result


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True])
@pytest.mark.parametrize("name", ["items_processed", "items_succeeded", "items_failed", "items_skipped"])
def test_a_worker_counts_in_whole_numbers(name: str, wrong: Any) -> None:
    counts: dict[str, Any] = {"items_processed": 1, name: wrong}
    with pytest.raises(ValueError, match=f"{name} is a whole number from 0, not {wrong!r}"):
        batch_worker_success(**counts)


@pytest.mark.parity(126, 128)
def test_an_aggregator_adds_up_what_the_workers_did() -> None:
    workers = {
        "process_csv_001": run_handler(ProcessCsv, worker_context()).result,
        "process_csv_002": None,
        "process_csv_003": run_handler(ProcessCsv, worker_context()).result,
    }
    total = run_handler(AddUp, make_context(dependency_results=workers)).result
    assert (total["total_processed"], total["total_succeeded"], total["total_failed"]) == (400, 396, 4)
    assert (total["worker_count"], total["batch_count"], total["error_count"]) == (3, 2, 4)
    assert BatchableStepHandler.aggregate_worker_results([])["worker_count"] == 0


# Checkpoints


def test_a_checkpoint_goes_to_the_context_of_the_attempt() -> None:
    context = KeepingContext()

    class Resumes(BatchableStepHandler):
        def call(self, context: StepContext) -> None:
            assert self.checkpoint(300, 100, {"sum": 4.5})
            assert self.checkpoint({"page": 2})

    assert run_handler(Resumes, context).success
    assert context.kept == [
        Checkpoint(cursor=300, items_processed=100, accumulated={"sum": 4.5}),
        Checkpoint(cursor={"page": 2}),
    ]
    assert context.kept[1].model_dump() == {"cursor": {"page": 2}, "items_processed": 0, "accumulated": None}


def test_a_handlers_own_thread_names_the_context() -> None:
    named, bound = KeepingContext(), KeepingContext()
    with bound_to(bound):
        thread = threading.Thread(target=lambda: checkpoint("a", context=named))
        thread.start()
        thread.join()
        checkpoint("b")
    assert [each.cursor for each in named.kept] == ["a"]
    assert [each.cursor for each in bound.kept] == ["b"]


def test_a_handler_that_should_stop_learns_it_from_its_checkpoint() -> None:
    context = KeepingContext()
    assert checkpoint(1, context=context) is True
    context.cancelled = True
    assert checkpoint(2, context=context) is False
    assert [each.cursor for each in context.kept] == [1, 2]


def test_a_checkpoint_that_nothing_keeps_is_told() -> None:
    with pytest.raises(ConfigurationError, match="there is none here; give its context"):
        checkpoint(1)
    with pytest.raises(ConfigurationError, match="nothing keeps the checkpoints of step 'load'"):
        checkpoint(1, context=StepContext(make_claim(step_name="load")))


def test_a_checkpoint_has_at_most_64_kib_of_json_in_utf_8() -> None:
    around = len(encode(Checkpoint(cursor="")))
    room = CHECKPOINT_BYTES - around
    for most in ("é" * (room // 2) + "a" * (room % 2), "a" * room):
        assert len(encode(Checkpoint(cursor=most)).encode()) == CHECKPOINT_BYTES
    with pytest.raises(pydantic.ValidationError, match="is 65537 bytes of JSON, the limit is 65536"):
        Checkpoint(cursor="a" * (room + 1))
    with pytest.raises(pydantic.ValidationError, match="is 65538 bytes of JSON, the limit is 65536"):
        Checkpoint(cursor="é" + "a" * room)
    with pytest.raises(pydantic.ValidationError, match="limit is 65536"):
        Checkpoint(cursor=0, accumulated={"x": "a" * CHECKPOINT_BYTES})


@pytest.mark.parametrize(
    "wrong",
    [
        {"cursor": None},
        {"cursor": 1.5},
        {"cursor": 1, "items_processed": -1},
        {"cursor": 1, "items_processed": 2**64},
        {"cursor": 1, "items_processed": "3"},
        {"cursor": 1, "accumulated": [1]},
        {"cursor": 1, "accumulated": {"x": float("nan")}},
        {"cursor": 1, "accumulated": {"x": object()}},
        {"cursor": 1, "batch_id": "001"},
    ],
)
def test_what_is_no_checkpoint_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Checkpoint(**wrong)


# Functions as handlers


@batch_analyzer("divide")
@inputs("rows")
def divide(rows: int) -> Any:
    if rows < 0:
        return StepResult.fail("no such file", retryable=False)
    if rows == 7:
        return {"rows": rows}
    configs = create_cursor_configs(rows, 2)
    return create_batches("work", len(configs), configs, rows) if configs else no_batches()


@batch_analyzer("divide_async")
@inputs("rows")
async def divide_async(rows: int) -> Any:
    return divide(rows)


@batch_worker("work")
@inputs("rate")
@depends_on(path=("divide", str))
def work(batch: RustBatchWorkerInputs, context: StepContext, rate: int, path: str = "none") -> dict[str, Any]:
    return {"from": batch.cursor.start_cursor, "step": context.step_name, "rate": rate, "path": path}


@batch_worker("work_async")
async def work_async(batch: RustBatchWorkerInputs) -> StepResult:
    return batch_worker_success(batch.cursor.batch_size)


@pytest.mark.parity(120, 129)
@pytest.mark.parametrize("handler", [divide, divide_async])
def test_a_function_that_returns_an_outcome_is_an_analyzer(handler: Any) -> None:
    def run(rows: int) -> StepResult:
        return run_handler(handler, make_context(batch={}, task_context={"rows": rows}))

    assert run(20).result == batch_success("work", create_cursor_configs(20, 2)).result
    assert run(0).result == {"batch_processing_outcome": {"type": "no_batches"}}
    assert (run(-1).success, run(-1).error_message) == (False, "no such file")
    assert run(7).error_type == "batch_error"
    assert run(7).error_message == (
        "the analyzer 'divide' returned no outcome: it is made by batch_success or no_batches_result"
    )
    assert run(7).retryable is False


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (CreateBatchesOutcome(worker_template_name="w", worker_count=0, cursor_configs=[], total_items=0), "is empty"),
        (StepResult.succeed({"batch_processing_outcome": {"type": "none"}}), "Input tag 'none'"),
        (StepResult.succeed({"rows": 5}), "returned no outcome"),
        (None, "returned no outcome"),
    ],
)
def test_an_analyzer_that_asks_for_what_cannot_be_fails(returned: Any, reason: str) -> None:
    def analyze() -> Any:
        return returned

    result = run_handler(batch_analyzer("divide")(analyze))
    assert (result.success, result.error_type) == (False, "batch_error")
    assert reason in str(result.error_message)


def test_a_worker_that_is_a_function_gets_its_batch_its_context_and_what_it_asks_for() -> None:
    context = worker_context(task_context={"rate": 3}, dependency_results={"divide": "a.csv"})
    assert run_handler(work, context).result == {"from": 200, "step": "process_csv_002", "rate": 3, "path": "a.csv"}
    assert run_handler(work, worker_context(task_context={"rate": 3})).result["path"] == "none"
    assert run_handler(work, worker_context(task_context={"rate": "x"})).error_type == "ValidationError"
    assert run_handler(work_async, worker_context()).result["items_succeeded"] == 200


@pytest.mark.parity(124)
@pytest.mark.parametrize("handler", [work, work_async])
def test_a_placeholder_never_reaches_the_function(handler: Any) -> None:
    result = run_handler(handler, worker_context(PLACEHOLDER))  # without what `@inputs` asks for
    assert result.success
    assert result.result["no_op"] is True


def test_called_with_a_batch_a_worker_is_the_function_itself() -> None:
    given = RustBatchWorkerInputs.model_validate(INPUTS)
    idle = RustBatchWorkerInputs.model_validate(PLACEHOLDER)
    context = make_context(step_name="x")
    expected = {"from": 200, "step": "x", "rate": 1, "path": "p"}
    assert work(given, context, 1, "p") == expected
    assert work(batch=given, context=context, rate=1, path="p") == expected
    assert work(idle, context, rate=1)["from"] == 0
    assert work.__name__ == "work"
    assert inspect.iscoroutinefunction(work_async)


async def test_an_async_worker_is_awaited_with_a_batch_and_by_the_worker() -> None:
    given = RustBatchWorkerInputs.model_validate(INPUTS)
    assert (await work_async(given)).result["items_processed"] == 200
    assert (await run_handler_async(work_async, worker_context())).result["items_processed"] == 200


def by_another_name(batch: RustBatchWorkerInputs, attempt: StepContext) -> Any:
    return [batch.cursor.batch_id, attempt.step_name]


def by_an_evaluated_hint(batch: RustBatchWorkerInputs, attempt: Any) -> Any:
    return [batch.cursor.batch_id, attempt.step_name]


by_an_evaluated_hint.__annotations__["attempt"] = StepContext  # as without the import from __future__


def by_name_alone(*, batch: RustBatchWorkerInputs, context: Any) -> Any:
    return [batch.cursor.batch_id, context.step_name]


def with_a_default(context: StepContext, batch: Any = None) -> Any:
    return [batch.cursor.batch_id, context.step_name]


def with_more(batch: RustBatchWorkerInputs, context: StepContext, *rest: Any, **more: Any) -> Any:
    assert (rest, more) == ((), {})
    return [batch.cursor.batch_id, context.step_name]


def with_results(dependency_results: dict[str, Any], batch: Any, context: StepContext) -> Any:
    assert dependency_results == {}
    return [batch.cursor.batch_id, context.step_name]


@pytest.mark.parametrize(
    "function", [by_another_name, by_an_evaluated_hint, by_name_alone, with_a_default, with_more, with_results]
)
def test_a_worker_may_name_and_order_its_parameters_as_it_likes(function: Callable[..., Any]) -> None:
    assert run_handler(batch_worker("work")(function), worker_context()).result == ["002", "process_csv_002"]


def test_a_worker_need_not_ask_for_its_batch() -> None:
    handler = batch_worker("work")(lambda context: context.step_name)
    assert run_handler(handler, worker_context()).result == "process_csv_002"
    assert run_handler(handler, worker_context({})).error_type == "batch_error"


def test_decorators_may_stand_above_as_well() -> None:
    @inputs("rate")
    @batch_worker("work")
    def rated(batch: Any, rate: int) -> Any:
        return [batch.cursor.batch_id, rate]

    context = worker_context(task_context={"rate": 3})
    assert run_handler(rated, context).result == ["002", 3]


def test_a_worker_that_nothing_is_known_of_is_refused_when_it_is_registered() -> None:
    with pytest.raises(ConfigurationError, match=r"test_batch\.py:\d+: handler 'work': nothing .* parameter 'rows'"):
        HandlerRegistry().register("work", batch_worker("work")(lambda batch, rows: rows))
    with pytest.raises(ConfigurationError, match="'batch' cannot be given by name; drop '/'"):
        batch_worker("work")(lambda batch, /: batch)
    with pytest.raises(ConfigurationError, match="needs the callable's name"):
        batch_worker("")
    with pytest.raises(ConfigurationError, match="needs the callable's name"):
        batch_analyzer(" ")


@pytest.fixture
def module() -> Iterator[ModuleType]:
    found = ModuleType("handlers_of_batches")
    vars(found).update(divide=divide, work=work, ProcessCsv=ProcessCsv, create_cursor_configs=create_cursor_configs)
    return found


def test_handlers_of_batches_are_discovered_as_others_are(module: ModuleType) -> None:
    registry = HandlerRegistry()
    assert registry.discover(module) == ["divide", "process_csv", "work"]
    resolved = registry.resolve("work")
    assert resolved is not None
    context = worker_context(task_context={"rate": 3})
    assert resolved.call(context) == {"from": 200, "step": "process_csv_002", "rate": 3, "path": "none"}


# Names


def test_any_class_may_have_the_methods() -> None:
    class Combined(BatchableMixin, StepHandler):
        def call(self, context: StepContext) -> StepResult:
            return self.handle_no_op_worker(context) or self.success(self.get_batch_worker_inputs(context))

    assert run_handler(Combined, worker_context()).result == INPUTS


@pytest.mark.parity(130)
def test_the_table_for_migrants_names_what_is_here() -> None:
    table = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\| (.*) ?\|$", batch.__doc__ or "", re.MULTILINE)
    assert sorted(here for here, _, _ in table) == sorted(
        name for name, value in vars(BatchableMixin).items() if isinstance(value, staticmethod)
    )
    there = {typescript: (here, re.findall(r"`(\w+)`", ruby)) for here, typescript, ruby in table}
    assert there["batchSuccess"] == ("batch_success", ["batch_success", "create_batches_outcome"])
    assert there["noBatchesResult"] == ("no_batches_result", ["no_batches_outcome"])
    assert there["createCursorConfigs"] == ("create_cursor_configs", ["create_cursor_configs"])
    assert there["handleNoOpWorker"] == ("handle_no_op_worker", ["handle_no_op_worker"])
    assert there["getBatchWorkerInputs"] == ("get_batch_worker_inputs", ["get_batch_context"])
    assert there["aggregateWorkerResults"] == ("aggregate_worker_results", ["aggregate_batch_worker_results"])
    in_snake_case = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): here for name, (here, _) in there.items() if name}
    del in_snake_case["checkpoint_yield"]  # here it keeps the claim
    assert all(name == here for name, here in in_snake_case.items())


def test_the_module_holds_exactly_its_documented_names() -> None:
    assert set(batch.__all__) == {
        *("BatchableMixin", "BatchableStepHandler", "BatchableResult", "batch_analyzer", "batch_worker"),
        *("batch_success", "no_batches_result", "create_cursor_configs", "create_cursor_ranges", "MAX_BATCHES"),
        *("handle_no_op_worker", "get_batch_worker_inputs", "batch_worker_success", "batch_worker_partial_failure"),
        *("Checkpoint", "checkpoint", "BatchAggregation", "aggregate_worker_results"),
        *("aggregate_batch", "aggregate_batch_async"),
        *("BatchError", "batch_outcome_of", "worker_step_name"),
    }
    assert all(hasattr(batch, name) for name in batch.__all__)
