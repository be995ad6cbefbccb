"""The wire types of batches: what a batchable step answers, what each of its workers is given, how far one says it is.

Every shape is defined here and nowhere else; on the wire it is the JSON object that its model dumps, key for key. The
models are strict: a number of another range, a text for a number, or a key that the shape does not have is refused
with its path, where it enters.

    analyzer   returns   BatchProcessingOutcome: `no_batches` or `create_batches` with a RustCursorConfig each worker
    worker     is given  RustBatchWorkerInputs: its cursor, the batch's metadata, and whether it is a mere placeholder
    aggregator returns   BatchAggregationResult, from the results of the workers

Positions start at 0; a range holds its start and not its end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from .aggregation import BatchAggregationResult, aggregate_batch_results
from .jsontext import NotJson, encode

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = [
    "BatchAggregationResult",
    "BatchMetadata",
    "BatchProcessingOutcome",
    "Checkpoint",
    "CreateBatchesOutcome",
    "Cursor",
    "CursorConfig",
    "FailureStrategy",
    "NoBatchesOutcome",
    "RustBatchWorkerInputs",
    "RustCursorConfig",
    "aggregate_batch_results",
    "create_batches",
    "is_create_batches",
    "is_no_batches",
    "no_batches",
]

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
CHECKPOINT_BYTES = 64 * 1024
"""Of a checkpoint's JSON in UTF-8; the engine takes no more."""

U32 = Annotated[int, Field(ge=0, le=U32_MAX)]
U64 = Annotated[int, Field(ge=0, le=U64_MAX)]


def _as_json(value: Any) -> Any:
    """A text, number or object as it is stored; what is inside an object becomes JSON as results do."""
    try:
        return json.loads(encode(value))
    except NotJson as error:
        raise ValueError(f"the value {error}") from None


def _checked_cursor(value: Any) -> Any:
    if type(value) is int and 0 <= value <= U64_MAX:  # most are, of thousands in one outcome
        return value
    if isinstance(value, bool) or not isinstance(value, int | str | dict):
        raise ValueError(f"a cursor is an integer, a text or an object, not {type(value).__name__}")
    return _as_json(value)


JsonObject: TypeAlias = Annotated[dict[str, JsonValue], BeforeValidator(_as_json)]
"""An object of any shape."""

Cursor: TypeAlias = Annotated[int | str | dict[str, JsonValue], BeforeValidator(_checked_cursor)]
"""A position in the data: an integer (a row, an id), a text (a timestamp, a page's token), or an object (several)."""


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RustCursorConfig(_Wire):
    """One batch: its id and its range. The engine's own shape, for outcomes and for what workers are given."""

    batch_id: str
    start_cursor: Cursor
    """The first position of the batch."""
    end_cursor: Cursor
    """The first position after it."""
    batch_size: U32
    """How many items the batch has, as far as that is known; for progress alone."""


class CursorConfig(_Wire):
    """One batch in the simple, older form: a range of integers. The batch's id follows from its place in the list."""

    start_cursor: int
    end_cursor: int
    batch_size: U32 = Field(default_factory=lambda others: others["end_cursor"] - others["start_cursor"])
    """Unsaid, the length of the range."""

    @model_validator(mode="after")
    def _forwards(self) -> CursorConfig:
        if self.end_cursor < self.start_cursor:
            raise ValueError(f"end_cursor {self.end_cursor} lies before start_cursor {self.start_cursor}")
        if self.batch_size > U32_MAX:  # the length of the range, for one that is said was held to that
            raise ValueError(f"the range has {self.batch_size} items, the limit is {U32_MAX}")
        return self


class NoBatchesOutcome(_Wire):
    """There is nothing to divide."""

    type: Literal["no_batches"] = "no_batches"


class CreateBatchesOutcome(_Wire):
    """One worker is to be made for each cursor, from the step of the template that is named."""

    type: Literal["create_batches"] = "create_batches"
    worker_template_name: str
    worker_count: U32
    cursor_configs: list[RustCursorConfig]
    """In the order of the workers. Whether they are as many as `worker_count` says is checked where it matters."""
    total_items: U64


BatchProcessingOutcome: TypeAlias = Annotated[NoBatchesOutcome | CreateBatchesOutcome, Field(discriminator="type")]
"""What a batchable step answers, told apart by `type`."""


def no_batches() -> NoBatchesOutcome:
    """The outcome of a step that found nothing to divide."""
    return NoBatchesOutcome()


def create_batches(
    worker_template_name: str, worker_count: int, cursor_configs: Sequence[RustCursorConfig], total_items: int
) -> CreateBatchesOutcome:
    """The outcome of a step that asks for `worker_count` workers, one for each cursor.

    Raises ValueError when there are more or fewer cursors, and pydantic.ValidationError, which is one too, for a value
    outside of its range.
    """
    if len(cursor_configs) != worker_count:
        raise ValueError(f"worker_count is {worker_count}, and there are {len(cursor_configs)} cursor_configs")
    return CreateBatchesOutcome(
        worker_template_name=worker_template_name,
        worker_count=worker_count,
        cursor_configs=list(cursor_configs),
        total_items=total_items,
    )


def is_no_batches(outcome: BatchProcessingOutcome) -> TypeIs[NoBatchesOutcome]:
    """Whether nothing is to be divided; a type checker then knows which of the two it has."""
    return isinstance(outcome, NoBatchesOutcome)


def is_create_batches(outcome: BatchProcessingOutcome) -> TypeIs[CreateBatchesOutcome]:
    """Whether workers are asked for; a type checker then knows `worker_count` and `total_items`."""
    return isinstance(outcome, CreateBatchesOutcome)


class FailureStrategy(StrEnum):
    """What the failure of one worker for good means to the others."""

    CONTINUE_ON_FAILURE = "continue_on_failure"
    """The others go on, and what follows sees successes and failures."""
    FAIL_FAST = "fail_fast"
    """The others are cancelled, and the task fails."""
    ISOLATE = "isolate"
    """The others go on, and the failed worker is kept as a dead letter."""


def _only_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"a failure strategy is a text, not {type(value).__name__}")
    return value


class BatchMetadata(_Wire):
    """What the template says of the batch, as far as a worker needs it."""

    cursor_field: str
    """The name of the field that cursors are positions in."""
    failure_strategy: Annotated[FailureStrategy, Field(strict=False), BeforeValidator(_only_text)]


class RustBatchWorkerInputs(_Wire):
    """The inputs of one batch worker. Keys beyond the three are kept, for engines lay more beside them."""

    model_config = ConfigDict(extra="allow")

    cursor: RustCursorConfig
    batch_metadata: BatchMetadata
    is_no_op: bool
    """A placeholder: there was nothing to divide, and this worker has nothing to do."""


class Checkpoint(_Wire):
    """How far an attempt came, for the next one to go on from: at most 64 KiB of JSON."""

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
