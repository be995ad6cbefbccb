"""What the steps of a batch are given and return: analyzers an outcome, workers their counts, aggregators the sum.

Plain functions; `tasker_worker.batch` has them as methods too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic
from pydantic import TypeAdapter

from .aggregation import MAX_ERRORS, BatchAggregation, BoundedErrors, is_whole_number
from .context import StepContext
from .cursors import BatchError, check, described, with_ids
from .result import StepResult
from .types import (
    BatchProcessingOutcome,
    CreateBatchesOutcome,
    CursorConfig,
    NoBatchesOutcome,
    RustBatchWorkerInputs,
    RustCursorConfig,
    create_batches,
    no_batches,
)

OUTCOME = "batch_processing_outcome"
"""The key of an analyzer's result that holds its outcome."""

_outcomes: TypeAdapter[NoBatchesOutcome | CreateBatchesOutcome] = TypeAdapter(BatchProcessingOutcome)


def batch_success(
    template: str, configs: Sequence[RustCursorConfig | CursorConfig], metadata: Mapping[str, Any] | None = None
) -> StepResult:
    """The result of an analyzer that asks for a worker for each of `configs`, made from the step `template`.

    The result holds the outcome's wire form under `batch_processing_outcome` and what `metadata` holds beside it, where
    the workers find it as their dependency's; the step's metadata is the same. No configs are no batches.

    Raises BatchError for what the engine would refuse: more than 10,000 batches, an id twice, ranges of integers that
    overlap, a name that is too long; ValueError when `metadata` has the outcome's key.
    """
    if not configs:
        return no_batches_result(metadata=metadata)
    cursors = with_ids(configs)
    outcome = create_batches(template, len(cursors), cursors, sum(cursor.batch_size for cursor in cursors))
    check(outcome, OUTCOME)
    return analysis(outcome, metadata or {}, {})


def no_batches_result(reason: str | None = None, metadata: Mapping[str, Any] | None = None) -> StepResult:
    """The result of an analyzer that found nothing to divide: the outcome, the `reason`, and what `metadata` holds.

    Raises ValueError when `metadata` has a key of theirs.
    """
    return analysis(no_batches(), metadata or {}, {} if reason is None else {"reason": reason})


def analysis(
    outcome: NoBatchesOutcome | CreateBatchesOutcome, metadata: Mapping[str, Any], own: Mapping[str, Any]
) -> StepResult:
    """A result with the outcome, what is its `own` beside it, and `metadata`; ValueError when they share a key."""
    result = {OUTCOME: outcome.model_dump(mode="json"), **own}
    twice = sorted(result.keys() & metadata.keys())
    if twice:
        raise ValueError(f"metadata has the key {twice[0]!r}, which is one of the result's own")
    return StepResult.succeed({**result, **metadata}, dict(metadata) or None)


def batch_outcome_of(result: Any) -> NoBatchesOutcome | CreateBatchesOutcome | None:
    """The outcome in an analyzer's result, checked as the engine will; None when the result holds none.

    Raises BatchError with the path of the fault.
    """
    if not isinstance(result, Mapping) or OUTCOME not in result:
        return None
    try:
        outcome = _outcomes.validate_python(result[OUTCOME])
    except pydantic.ValidationError as error:
        raise BatchError(described(error, OUTCOME, skipped=("no_batches", "create_batches"))) from error
    if isinstance(outcome, CreateBatchesOutcome):
        check(outcome, OUTCOME)
    return outcome


def get_batch_worker_inputs(context: StepContext) -> RustBatchWorkerInputs:
    """What this batch worker was given: `cursor`, `batch_metadata` and `is_no_op`.

    Raises BatchError, which is not retried, with the path of what is missing or wrong.
    """
    try:
        return RustBatchWorkerInputs.model_validate(context.step_inputs)
    except pydantic.ValidationError as error:
        raise BatchError(
            f"step {context.step_name!r} is no batch worker, or was given wrong inputs: {described(error, 'inputs')}"
        ) from error


def handle_no_op_worker(context: StepContext) -> StepResult | None:
    """The result of a placeholder, which has nothing to do; None for every other step. To be asked first of all."""
    if context.step_inputs.get("is_no_op") is not True:
        return None
    cursor = context.step_inputs.get("cursor")
    known = {"batch_id": cursor["batch_id"]} if isinstance(cursor, dict) and "batch_id" in cursor else {}
    return StepResult.succeed({**known, "no_op": True, **_counts(0, 0, 0, 0)})


def batch_worker_success(
    items_processed: int,
    *,
    items_succeeded: int | None = None,
    items_failed: int = 0,
    items_skipped: int = 0,
    results: Sequence[Any] | None = None,
    errors: Iterable[Any] = (),
    last_cursor: int | str | dict[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> StepResult:
    """The result of a worker, with the counts that an aggregator adds up.

    `items_succeeded` unsaid are those that neither failed nor were skipped. Of `errors` (JSON values) the first 100 are
    kept, and `error_count` says how many there were. Raises ValueError for a count that is none.
    """
    return StepResult.succeed(
        _work(items_processed, items_succeeded, items_failed, items_skipped, results, errors, last_cursor), metadata
    )


def batch_worker_partial_failure(
    items_processed: int,
    items_failed: int,
    *,
    items_succeeded: int | None = None,
    items_skipped: int = 0,
    results: Sequence[Any] | None = None,
    errors: Iterable[Any] = (),
    last_cursor: int | str | dict[str, Any] | None = None,
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> StepResult:
    """The result of a worker some of whose items failed: the same, and that it is a `partial_failure`."""
    work = _work(items_processed, items_succeeded, items_failed, items_skipped, results, errors, last_cursor)
    told = {} if message is None else {"partial_failure_message": message}
    return StepResult.succeed({**work, "partial_failure": True, **told}, metadata)


def _work(
    processed: int,
    succeeded: int | None,
    failed: int,
    skipped: int,
    results: Sequence[Any] | None,
    errors: Iterable[Any],
    last_cursor: int | str | dict[str, Any] | None,
) -> dict[str, Any]:
    work: dict[str, Any] = _counts(processed, succeeded, failed, skipped)
    bounded = BoundedErrors()
    bounded.extend(errors)
    if last_cursor is not None:
        work["last_cursor"] = last_cursor
    if results:
        work["results"] = list(results)
    if bounded.count:
        work |= {"errors": bounded.kept, "error_count": bounded.count}
    return work


def _counts(processed: int, succeeded: int | None, failed: int, skipped: int) -> dict[str, int]:
    given = {"items_processed": processed, "items_failed": failed, "items_skipped": skipped}
    if succeeded is not None:
        given["items_succeeded"] = succeeded
    for name, count in given.items():
        if not is_whole_number(count, 0):
            raise ValueError(f"{name} is a whole number from 0, not {count!r}")
    return {
        "items_processed": processed,
        "items_succeeded": max(0, processed - failed - skipped) if succeeded is None else succeeded,
        "items_failed": failed,
        "items_skipped": skipped,
    }


def aggregate_worker_results(results: Iterable[Any], max_errors: int = MAX_ERRORS) -> dict[str, Any]:
    """The sums of `aggregate_batch_results` as a plain result, and `worker_count`: all results, absent ones too."""
    aggregation = BatchAggregation(max_errors)
    aggregation.add_page(results)
    return _summed(aggregation)


def aggregate_batch(
    context: StepContext, node: str, max_errors: int = MAX_ERRORS, *, page_size: int = 100
) -> dict[str, Any]:
    """`aggregate_worker_results` of all workers of the `batch_worker` of that name, in memory for one page of results.

    For handlers in threads; those that are async await `aggregate_batch_async`. Raises what `context.batch_results` and
    reading from it raise, and what `aggregate_worker_results` does.
    """
    aggregation = BatchAggregation(max_errors)
    for page in context.batch_results(node, page_size=page_size):
        aggregation.add_page(page.values())
    return _summed(aggregation)


async def aggregate_batch_async(
    context: StepContext, node: str, max_errors: int = MAX_ERRORS, *, page_size: int = 100
) -> dict[str, Any]:
    """`aggregate_batch` for async handlers."""
    aggregation = BatchAggregation(max_errors)
    async for page in context.batch_results(node, page_size=page_size):
        aggregation.add_page(page.values())
    return _summed(aggregation)


def _summed(aggregation: BatchAggregation) -> dict[str, Any]:
    return {**aggregation.result().model_dump(), "worker_count": aggregation.worker_count}
