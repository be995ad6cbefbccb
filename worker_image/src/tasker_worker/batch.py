"""Handlers of batches: one step divides the work, many work on a part each, one adds up what they did.

    @batch_analyzer("analyze_csv")
    @inputs("path")
    def analyze_csv(path: str):
        return batch_success("process_csv", create_cursor_configs(count_rows(path), workers=5))

    @batch_worker("process_csv")
    def process_csv(batch, context):
        failures = work_on(batch.cursor.start_cursor, batch.cursor.end_cursor)
        return batch_worker_success(batch.cursor.batch_size, items_failed=len(failures), errors=failures)

or as classes, with the same functions as methods:

    class ProcessCsv(BatchableStepHandler):
        handler_name = "process_csv"

        def call(self, context):
            if nothing_to_do := self.handle_no_op_worker(context):
                return nothing_to_do
            cursor = self.get_batch_worker_inputs(context).cursor
            ...

For those who come from the original system, the names there:

| here | TypeScript | Ruby |
|---|---|---|
| `batch_success` | `batchSuccess` | `batch_success`, `create_batches_outcome` |
| `no_batches_result` | `noBatchesResult` | `no_batches_outcome` |
| `create_cursor_configs` | `createCursorConfigs` | `create_cursor_configs` |
| `create_cursor_ranges` | `createCursorRanges` | |
| `handle_no_op_worker` | `handleNoOpWorker` | `handle_no_op_worker` |
| `get_batch_worker_inputs` | `getBatchWorkerInputs` | `get_batch_context` |
| `batch_worker_success` | `batchWorkerSuccess` | `batch_worker_success` |
| `batch_worker_partial_failure` | | |
| `checkpoint` | `checkpointYield` | `checkpoint_yield` |
| `aggregate_worker_results` | `aggregateWorkerResults` | `aggregate_batch_worker_results` |
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from .aggregation import MAX_ERRORS, BatchAggregation, BoundedErrors, is_whole_number
from .context import StepContext
from .cursors import (
    MAX_BATCHES,
    BatchError,
    check,
    create_cursor_configs,
    create_cursor_ranges,
    described,
    with_ids,
    worker_step_name,
)
from .errors import ConfigurationError
from .handler import StepHandler, step_handler
from .jsontext import encode
from .logging import current_step
from .result import StepResult
from .types import (
    U64,
    BatchProcessingOutcome,
    CreateBatchesOutcome,
    Cursor,
    CursorConfig,
    JsonObject,
    NoBatchesOutcome,
    RustBatchWorkerInputs,
    RustCursorConfig,
    create_batches,
    no_batches,
)

__all__ = [
    "MAX_BATCHES",
    "BatchAggregation",
    "BatchError",
    "BatchableMixin",
    "BatchableStepHandler",
    "Checkpoint",
    "aggregate_worker_results",
    "batch_analyzer",
    "batch_outcome_of",
    "batch_success",
    "batch_worker",
    "batch_worker_partial_failure",
    "batch_worker_success",
    "checkpoint",
    "create_cursor_configs",
    "create_cursor_ranges",
    "get_batch_worker_inputs",
    "handle_no_op_worker",
    "no_batches_result",
    "worker_step_name",
]

OUTCOME = "batch_processing_outcome"
"""The key of an analyzer's result that holds its outcome."""
CHECKPOINT_BYTES = 64 * 1024
"""Of a checkpoint's JSON in UTF-8; the engine takes no more."""

Parameters = ParamSpec("Parameters")
Function = TypeVar("Function", bound=Callable[..., Any])

_outcomes: TypeAdapter[NoBatchesOutcome | CreateBatchesOutcome] = TypeAdapter(BatchProcessingOutcome)


# What an analyzer returns ---------------------------------------------------------------------------------------------


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
    return _analysis(outcome, metadata or {}, {})


def no_batches_result(reason: str | None = None, metadata: Mapping[str, Any] | None = None) -> StepResult:
    """The result of an analyzer that found nothing to divide: the outcome, the `reason`, and what `metadata` holds.

    Raises ValueError when `metadata` has a key of theirs.
    """
    return _analysis(no_batches(), metadata or {}, {} if reason is None else {"reason": reason})


def _analysis(
    outcome: NoBatchesOutcome | CreateBatchesOutcome, metadata: Mapping[str, Any], own: Mapping[str, Any]
) -> StepResult:
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


# What a worker is given and returns -----------------------------------------------------------------------------------


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


# How far a worker is --------------------------------------------------------------------------------------------------


class Checkpoint(BaseModel):
    """How far an attempt came, for the next one to go on from: at most 64 KiB of JSON."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    cursor: Cursor
    """Where to go on."""
    items_processed: U64 = 0
    accumulated: JsonObject | None = None
    """What was gathered up to there."""

    @model_validator(mode="after")
    def _small_enough(self) -> Checkpoint:
        size = len(encode(self).encode())
        if size > CHECKPOINT_BYTES:
            raise ValueError(f"the checkpoint is {size} bytes of JSON, the limit is {CHECKPOINT_BYTES}")
        return self


@runtime_checkable
class KeepsCheckpoints(Protocol):
    """A context that keeps checkpoints: it hands them on without waiting, for a handler may be on the event loop."""

    def save_checkpoint(self, checkpoint: Checkpoint, /) -> None: ...


def checkpoint(
    cursor: int | str | dict[str, Any],
    items_processed: int = 0,
    accumulated: dict[str, Any] | None = None,
    *,
    context: StepContext | None = None,
) -> bool:
    """Keep how far this attempt is, so that the next one need not begin anew; False when the handler should stop.

    `context` is needed only in threads that the handler started itself, without a copy of its own `contextvars`.
    Raises pydantic.ValidationError for a cursor that is none and above 64 KiB, ConfigurationError outside of an attempt
    and where nothing keeps checkpoints.
    """
    attempt = context or current_step.get()
    if attempt is None:
        raise ConfigurationError("a checkpoint is of an attempt, and there is none here; give its context")
    if not isinstance(attempt, KeepsCheckpoints):
        raise ConfigurationError(f"nothing keeps the checkpoints of step {attempt.step_name!r}")
    attempt.save_checkpoint(Checkpoint(cursor=cursor, items_processed=items_processed, accumulated=accumulated))
    return not attempt.cancelled


# What the workers did together ----------------------------------------------------------------------------------------


def aggregate_worker_results(results: Iterable[Any], max_errors: int = MAX_ERRORS) -> dict[str, Any]:
    """The sums of `aggregate_batch_results` as a plain result, and `worker_count`: all results, absent ones too."""
    aggregation = BatchAggregation(max_errors)
    aggregation.add_page(results)
    return {**aggregation.result().model_dump(), "worker_count": aggregation.worker_count}


# Handlers -------------------------------------------------------------------------------------------------------------


class BatchableMixin:
    """The functions of this module as methods, for any class."""

    create_cursor_configs = staticmethod(create_cursor_configs)
    create_cursor_ranges = staticmethod(create_cursor_ranges)
    batch_success = staticmethod(batch_success)
    no_batches_result = staticmethod(no_batches_result)
    handle_no_op_worker = staticmethod(handle_no_op_worker)
    get_batch_worker_inputs = staticmethod(get_batch_worker_inputs)
    batch_worker_success = staticmethod(batch_worker_success)
    batch_worker_partial_failure = staticmethod(batch_worker_partial_failure)
    checkpoint = staticmethod(checkpoint)
    aggregate_worker_results = staticmethod(aggregate_worker_results)


class BatchableStepHandler(BatchableMixin, StepHandler):
    """A step as a class, with what analyzers, workers and aggregators of batches need."""


def batch_analyzer(name: str) -> Callable[[Callable[Parameters, Any]], Callable[Parameters, Any]]:
    """Make a function the handler of a batchable step: `step_handler`, and what it returns is an outcome.

    That is what `batch_success` and `no_batches_result` give, an outcome of `create_batches` or `no_batches`, or a
    failure. Anything else fails the attempt for good: the engine would not know how many workers to make.
    """
    named = step_handler(name)

    def decorate(function: Callable[Parameters, Any]) -> Callable[Parameters, Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def analyze(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:
                return _as_analysis(name, await function(*args, **kwargs))
        else:

            @functools.wraps(function)
            def analyze(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:
                return _as_analysis(name, function(*args, **kwargs))

        return named(analyze)

    return decorate


def _as_analysis(name: str, value: Any) -> StepResult:
    if isinstance(value, NoBatchesOutcome | CreateBatchesOutcome):
        value = _analysis(value, {}, {})
    if isinstance(value, StepResult) and (not value.success or batch_outcome_of(value.result) is not None):
        return value
    raise BatchError(f"the analyzer {name!r} returned no outcome: it is made by batch_success or no_batches_result")


def batch_worker(name: str) -> Callable[[Function], Function]:
    """Make a function the handler of a batch worker: `step_handler`, and what every worker begins with.

    A placeholder is answered without calling the function; what `@inputs` and `@depends_on` ask for is read before, and
    needs a default when a placeholder may be without it. The function gets its inputs, a RustBatchWorkerInputs, as
    the parameter `batch`; the context as one called `context` or annotated as StepContext; and what `@inputs` and
    `@depends_on` ask for. Inputs that are missing or wrong fail the attempt for good, as `batch_error`.

    Called with a `batch`, as in a test, it is the function itself.
    """
    named = step_handler(name)

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = signature.parameters
        for parameter in parameters.values():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ConfigurationError(
                    f"{function.__qualname__}: {parameter.name!r} cannot be given by name; drop '/'"
                )
        wanted = _context_parameter(parameters.values())

        def prepared(values: dict[str, Any]) -> StepResult | None:
            """Complete the arguments, unless the answer is known without them."""
            context = values[wanted or _CONTEXT]
            done = handle_no_op_worker(context)
            if done is None:
                batch = get_batch_worker_inputs(context)
                if _BATCH in parameters:
                    values[_BATCH] = batch
                if wanted is None:
                    del values[_CONTEXT]
            return done

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def work(*args: Any, **kwargs: Any) -> Any:
                if not args and _BATCH not in kwargs:
                    done = prepared(kwargs)
                    if done is not None:
                        return done
                return await function(*args, **kwargs)
        else:

            @functools.wraps(function)
            def work(*args: Any, **kwargs: Any) -> Any:
                if not args and _BATCH not in kwargs:
                    done = prepared(kwargs)
                    if done is not None:
                        return done
                return function(*args, **kwargs)

        work.__signature__ = _by_name(signature, needs_context=wanted is None)  # type: ignore[attr-defined]
        return named(work)  # type: ignore[return-value]

    return decorate


_BATCH = "batch"
_CONTEXT = "context"


def _context_parameter(parameters: Iterable[inspect.Parameter]) -> str | None:
    """The name of the parameter that gets the context; None when the function does not ask for it."""
    for parameter in parameters:
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        if parameter.name == _CONTEXT or text.rpartition(".")[2] == StepContext.__name__:
            return parameter.name
    return None


def _by_name(signature: inspect.Signature, *, needs_context: bool) -> inspect.Signature:
    """What is to be given from outside: all but the batch, by name alone, and the context in any case.

    A handler's context is given by place when it is all there is to give; by name it cannot be taken for a batch.
    """
    kept = [
        each.replace(kind=each.KEYWORD_ONLY) if each.kind is each.POSITIONAL_OR_KEYWORD else each
        for each in signature.parameters.values()
        if each.name != _BATCH
    ]
    if needs_context:
        kept.append(inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY))
    return signature.replace(parameters=sorted(kept, key=lambda each: each.kind))
