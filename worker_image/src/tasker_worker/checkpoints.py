"""How far an attempt is, kept while it runs, so that the next one need not begin anew."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, model_validator

from .context import StepContext
from .errors import ConfigurationError
from .jsontext import encode
from .logging import current_step
from .types import U64, Cursor, JsonObject

CHECKPOINT_BYTES = 64 * 1024
"""Of a checkpoint's JSON in UTF-8; the engine takes no more."""


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
