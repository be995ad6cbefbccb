"""Handlers of batches: one step divides the work, many work on a part each, one adds up what they did.

    @batch_analyzer("analyze_csv")
    @inputs("path")
    def analyze_csv(path: str):
        return batch_success("process_csv", create_cursor_configs(count_rows(path), workers=5))

    @batch_worker("process_csv")
    def process_csv(batch, context):
        failures = work_on(batch.cursor.start_cursor, batch.cursor.end_cursor)
        return batch_worker_success(batch.cursor.batch_size, items_failed=len(failures), errors=failures)

    @step_handler("sum_up")
    def sum_up(context):
        return aggregate_batch(context, "process_csv")

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
| `aggregate_batch` | | |
| `aggregate_batch_async` | | |
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeAlias, TypeVar

from .aggregation import BatchAggregation
from .batch_results import (
    aggregate_batch,
    aggregate_batch_async,
    aggregate_worker_results,
    analysis,
    batch_outcome_of,
    batch_success,
    batch_worker_partial_failure,
    batch_worker_success,
    get_batch_worker_inputs,
    handle_no_op_worker,
    no_batches_result,
)
from .binding import answer_before
from .checkpoints import checkpoint
from .context import StepContext
from .cursors import MAX_BATCHES, BatchError, create_cursor_configs, create_cursor_ranges, worker_step_name
from .errors import ConfigurationError
from .handler import StepHandler, step_handler
from .result import StepResult
from .types import Checkpoint, CreateBatchesOutcome, NoBatchesOutcome

__all__ = [
    "MAX_BATCHES",
    "BatchAggregation",
    "BatchError",
    "BatchableMixin",
    "BatchableResult",
    "BatchableStepHandler",
    "Checkpoint",
    "aggregate_batch",
    "aggregate_batch_async",
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

BatchableResult: TypeAlias = StepResult
"""What an analyzer returns: a success whose result holds an outcome, or a failure."""

Parameters = ParamSpec("Parameters")
Function = TypeVar("Function", bound=Callable[..., Any])

_BATCH = "batch"
_CONTEXT = "context"


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
    aggregate_batch = staticmethod(aggregate_batch)
    aggregate_batch_async = staticmethod(aggregate_batch_async)


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
        value = analysis(value, {}, {})
    if isinstance(value, StepResult) and (not value.success or batch_outcome_of(value.result) is not None):
        return value
    raise BatchError(f"the analyzer {name!r} returned no outcome: it is made by batch_success or no_batches_result")


def batch_worker(name: str) -> Callable[[Function], Function]:
    """Make a function the handler of a batch worker: `step_handler`, and what every worker begins with.

    A placeholder is answered without calling the function, and without reading what `@inputs` and `@depends_on` ask
    for. The function gets its inputs, a RustBatchWorkerInputs, as the parameter `batch`; the context as one called
    `context` or annotated as StepContext; and what `@inputs` and `@depends_on` ask for. Inputs that are missing or
    wrong fail the attempt for good, as `batch_error`.

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

        def complete(values: dict[str, Any]) -> None:
            batch = get_batch_worker_inputs(values[wanted or _CONTEXT])
            if _BATCH in parameters:
                values[_BATCH] = batch
            if wanted is None:
                del values[_CONTEXT]

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def work(*args: Any, **kwargs: Any) -> Any:
                if not args and _BATCH not in kwargs:
                    complete(kwargs)
                return await function(*args, **kwargs)
        else:

            @functools.wraps(function)
            def work(*args: Any, **kwargs: Any) -> Any:
                if not args and _BATCH not in kwargs:
                    complete(kwargs)
                return function(*args, **kwargs)

        work.__signature__ = _by_name(signature, needs_context=wanted is None)  # type: ignore[attr-defined]
        answer_before(work, handle_no_op_worker)
        return named(work)  # type: ignore[return-value]

    return decorate


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
