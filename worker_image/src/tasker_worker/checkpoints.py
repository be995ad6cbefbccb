"""How far an attempt is, kept while it runs, so that the next one need not begin anew."""

from __future__ import annotations

from typing import Any

from .context import StepContext
from .errors import ConfigurationError
from .logging import current_step
from .types import Checkpoint


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
    attempt.save_checkpoint(Checkpoint(cursor=cursor, items_processed=items_processed, accumulated=accumulated))
    return not attempt.cancelled
