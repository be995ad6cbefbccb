"""What a handler returns: a success with a result, or a failure that says whether to try again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ErrorType


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The outcome of one attempt.

    A handler may also return the bare result (a dict, a model, None, any JSON value), which is a success.
    """

    success: bool
    result: Any = None
    """Any JSON value, or a pydantic model; only of a success."""
    error_message: str | None = None
    error_type: str | None = None
    retryable: bool = False
    retry_after: float | None = None
    """Seconds until the next attempt, in place of the step's backoff; only of a retryable failure."""
    metadata: Mapping[str, Any] | None = None
    """JSON that is stored beside the result or the error."""

    def __post_init__(self) -> None:
        if self.retry_after is not None and not self.retry_after >= 0:
            raise ValueError(f"retry_after is a number of seconds from 0, not {self.retry_after!r}")

    @classmethod
    def succeed(cls, result: Any = None, metadata: Mapping[str, Any] | None = None) -> StepResult:
        """A success with its result."""
        return cls(success=True, result=result, metadata=metadata)

    @classmethod
    def fail(
        cls,
        message: str,
        error_type: str = ErrorType.HANDLER_ERROR,
        retryable: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        retry_after: float | None = None,
    ) -> StepResult:
        """A failure. `retryable` unsaid follows the type: permanent and validation errors are not tried again."""
        if retryable is None:
            known = {str(each): each for each in ErrorType}.get(error_type)
            retryable = known is None or known.retryable
        return cls(
            success=False,
            error_message=message,
            error_type=str(error_type),
            retryable=retryable,
            retry_after=retry_after,
            metadata=metadata,
        )
