"""What can go wrong, for handlers and for the worker: one small tree, and the rule that judges foreign exceptions.

A class's docstring is its message when none is given. Handlers raise the upper two branches; the worker and the
lifecycle functions raise the lower one.

    TaskerError
    ├── RetryableError            the attempt failed, another one may succeed; perhaps after `retry_after` seconds
    │   ├── TimeoutError_
    │   ├── NetworkError
    │   ├── RateLimitError
    │   └── ServiceUnavailableError
    ├── PermanentError            no further attempt can succeed
    │   ├── ValidationError
    │   ├── NotFoundError
    │   ├── AuthenticationError
    │   ├── AuthorizationError
    │   ├── ConfigurationError    also what a worker says of a wrong setting, file or handler
    │   └── BusinessLogicError
    └── WorkerError               the worker cannot do what was asked
        └── DatabaseError         it cannot reach its database, or is refused there
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import pydantic


class ErrorType(StrEnum):
    """The standard error types of a failed attempt. The type is free text; these are what the SDK itself writes."""

    PERMANENT_ERROR = "PermanentError"
    RETRYABLE_ERROR = "RetryableError"
    VALIDATION_ERROR = "ValidationError"
    HANDLER_ERROR = "HandlerError"
    TIMEOUT = "Timeout"
    RESULT_SCHEMA_ERROR = "ResultSchemaError"
    WHEN_ERROR = "WhenError"

    @property
    def retryable(self) -> bool:
        """Whether an attempt that failed so is worth another one when nothing else is said."""
        return self not in (
            ErrorType.PERMANENT_ERROR,
            ErrorType.VALIDATION_ERROR,
            ErrorType.RESULT_SCHEMA_ERROR,
            ErrorType.WHEN_ERROR,
        )


class TaskerError(Exception):
    """Something went wrong."""

    #: What is recorded as the failure's type; a subclass may set its own text.
    error_type: ClassVar[str] = ErrorType.HANDLER_ERROR
    retryable: ClassVar[bool] = True

    def __init__(self, message: str | None = None, *, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.metadata = metadata


class RetryableError(TaskerError):
    """The attempt failed; another one may succeed."""

    error_type: ClassVar[str] = ErrorType.RETRYABLE_ERROR

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """`retry_after`, in seconds, takes the place of the step's own backoff (the engine caps it)."""
        super().__init__(message, metadata=metadata)
        if retry_after is not None and not retry_after >= 0:
            raise ValueError(f"retry_after is a number of seconds from 0, not {retry_after!r}")
        self.retry_after = retry_after


class TimeoutError_(RetryableError):  # noqa: N801 - the builtin has the plain name
    """Something that the step waited for took too long."""

    error_type = ErrorType.TIMEOUT


class NetworkError(RetryableError):
    """Another system could not be reached."""

    error_type = "NetworkError"


class RateLimitError(RetryableError):
    """Another system asks for fewer requests."""

    error_type = "RateLimitError"


class ServiceUnavailableError(RetryableError):
    """Another system is unavailable for now."""

    error_type = "ServiceUnavailableError"


class PermanentError(TaskerError):
    """The step cannot succeed, however often it is tried."""

    error_type: ClassVar[str] = ErrorType.PERMANENT_ERROR
    retryable = False


class ValidationError(PermanentError):
    """An input of the step is missing or wrong."""

    error_type = ErrorType.VALIDATION_ERROR


class NotFoundError(PermanentError):
    """What the step works on does not exist."""

    error_type = "NotFoundError"


class AuthenticationError(PermanentError):
    """Another system does not accept who the step says it is."""

    error_type = "AuthenticationError"


class AuthorizationError(PermanentError):
    """Another system does not allow what the step asks for."""

    error_type = "AuthorizationError"


class ConfigurationError(PermanentError):
    """A setting, file or handler is missing or wrong."""

    error_type = "ConfigurationError"


class BusinessLogicError(PermanentError):
    """A rule of the business forbids what the step was asked to do."""

    error_type = "BusinessLogicError"


class WhenError(PermanentError):
    """The condition of a step cannot be judged."""

    error_type = ErrorType.WHEN_ERROR


class WorkerError(TaskerError):
    """The worker cannot do what was asked."""

    error_type = "WorkerError"


class DatabaseError(WorkerError):
    """The database cannot be reached, or refuses what was asked."""

    error_type = "DatabaseError"


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """How an exception counts: its recorded type, whether to try again, and after how many seconds at the earliest."""

    error_type: str
    retryable: bool
    retry_after: float | None = None


# Faults of the program or of its input: the next attempt would meet them again. OSError is checked before these,
# because some of its relatives are ValueErrors too (io.UnsupportedOperation).
_PERMANENT: tuple[type[BaseException], ...] = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
    ImportError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
)


def classify(exception: BaseException) -> Classification:
    """Judge what a handler raised.

    The SDK's own errors say it themselves. Programming and value errors are permanent, I/O errors retryable, anything
    unknown retryable. A group is permanent when one of its members is.
    """
    match exception:
        case RetryableError():
            return Classification(error_type=exception.error_type, retryable=True, retry_after=exception.retry_after)
        case TaskerError():
            return Classification(error_type=exception.error_type, retryable=exception.retryable)
        case pydantic.ValidationError():
            return Classification(error_type=ErrorType.VALIDATION_ERROR, retryable=False)
        case BaseExceptionGroup():
            members = [classify(member) for member in exception.exceptions]
            return next((member for member in members if not member.retryable), members[0])
        case OSError():
            return Classification(error_type=ErrorType.HANDLER_ERROR, retryable=True)
        case _:
            return Classification(error_type=ErrorType.HANDLER_ERROR, retryable=not isinstance(exception, _PERMANENT))
