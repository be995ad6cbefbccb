"""From what a batchable step's handler returned to the workers that are made of it, and to what is recorded.

The list of cursors is told beside the result and is no part of it, so that ten thousand of them fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .batch_results import OUTCOME, analysis, batch_outcome_of
from .claims import BATCHABLE, Batches, Claim
from .cursors import BatchError, batch_id
from .jsontext import an
from .types import (
    BatchMetadata,
    CreateBatchesOutcome,
    Cursor,
    FailureStrategy,
    NoBatchesOutcome,
    RustCursorConfig,
)

INPUTS_CHARACTERS = 64 * 1024 * 1024
"""Of JSON for the inputs of all workers of a step."""
_OUTCOMES = (NoBatchesOutcome, CreateBatchesOutcome)
_PLACES = 2**63  # the database tells whether ranges overlap, as far as its integers reach


def is_division(value: Any) -> bool:
    """Whether a handler returned what only that of a batchable step may."""
    if isinstance(value, dict):
        return OUTCOME in value
    return isinstance(value, _OUTCOMES)


def divide(claim: Claim, value: Any) -> tuple[dict[str, Any], Batches]:
    """What is recorded as the step's result, and the workers to make; raises BatchError for what cannot be."""
    if claim.step_type != BATCHABLE:
        raise BatchError(
            f"step {claim.step_name!r} is of the type {claim.step_type!r}, and its handler returned an outcome of"
            f" batches; only a step of the type {BATCHABLE!r} can divide its work"
        )
    if isinstance(value, _OUTCOMES):
        value = analysis(value, {}, {}).result
    outcome = batch_outcome_of(value)
    if outcome is None:
        returned = "nothing" if value is None else an(type(value).__name__)
        raise BatchError(
            f"step {claim.step_name!r} is batchable, and its handler returned {returned};"
            " return batch_success(template, configs), or no_batches_result(reason)"
        )
    said: Mapping[str, Any] = json.loads(claim.batch or "{}")
    recorded = {**value, OUTCOME: outcome.model_dump(mode="json", exclude={"cursor_configs"})}
    return recorded, _batches(claim, outcome, said)


def _batches(claim: Claim, outcome: NoBatchesOutcome | CreateBatchesOutcome, said: Mapping[str, Any]) -> Batches:
    metadata = BatchMetadata(
        cursor_field=said.get("cursor_field") or "id",
        failure_strategy=FailureStrategy(said.get("failure_strategy") or FailureStrategy.CONTINUE_ON_FAILURE),
    )
    if isinstance(outcome, NoBatchesOutcome):
        nothing = RustCursorConfig(batch_id=batch_id(0), start_cursor=0, end_cursor=0, batch_size=0)
        return Batches([nothing.batch_id], [None], [None], [_head(nothing) + _tail(metadata, is_no_op=True)], True)
    template = said.get("worker_template")
    if template is not None and outcome.worker_template_name != template:
        raise BatchError(
            f"step {claim.step_name!r} asks for workers of {outcome.worker_template_name!r};"
            f" the batch_worker that depends on it is {template!r}"
        )
    configs = outcome.cursor_configs
    tail = _tail(metadata, is_no_op=False)
    ranges = [_range(config.start_cursor, config.end_cursor) for config in configs]
    batches = Batches(
        [config.batch_id for config in configs],
        [start for start, _ in ranges],
        [end for _, end in ranges],
        [_head(config) + tail for config in configs],
        False,
    )
    if batches.characters > INPUTS_CHARACTERS:
        raise BatchError(
            f"the cursors of step {claim.step_name!r} are {batches.characters} characters of JSON,"
            f" the limit is {INPUTS_CHARACTERS}"
        )
    return batches


def _range(start: Cursor, end: Cursor) -> tuple[int, int] | tuple[None, None]:
    """What the database holds against other ranges; an empty one overlaps nothing."""
    if isinstance(start, int) and isinstance(end, int) and -_PLACES <= start < end < _PLACES:
        return start, end
    return None, None


def _head(cursor: RustCursorConfig) -> str:
    """The beginning of a worker's inputs, a RustBatchWorkerInputs. A cursor was held to JSON when it was made."""
    return '{"cursor":' + cursor.model_dump_json()


def _tail(metadata: BatchMetadata, *, is_no_op: bool) -> str:
    """The rest, which is the same for all workers of a batch."""
    return f',"batch_metadata":{metadata.model_dump_json()},"is_no_op":{json.dumps(is_no_op)}}}'
