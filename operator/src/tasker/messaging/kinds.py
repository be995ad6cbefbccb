"""The kinds of messages that this system itself sends, held to their shape on both sides of a queue.

Any pydantic model may be sent by `client.MessageClient`; these are the ones that have a meaning here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from tasker.errors import InvalidTask
from tasker.model.task import TaskRequest

Text = Annotated[str, Field(min_length=1)]


class _Kind(BaseModel):
    """A message: frozen, and of exactly these fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SimpleStepMessage(_Kind):
    """A step that is to be looked at: its ids alone, for the database has all the rest."""

    task_uuid: UUID
    step_uuid: UUID
    correlation_id: Text


class TaskRequestMessage(_Kind):
    """A run that is asked for. `request_id` tells one request from its repetitions."""

    template_name: Text
    template_version: Text | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    priority: int = 0
    correlation_id: Text | None = None
    parent_correlation_id: Text | None = None
    initiator: Text | None = None
    source_system: Text | None = None
    reason: Text | None = None
    tags: tuple[Text, ...] = ()
    deadline_seconds: float | None = None
    request_id: UUID = Field(default_factory=uuid4)
    requested_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _can_be_submitted(self) -> TaskRequestMessage:
        try:
            self.request().check()
        except InvalidTask as error:
            raise _refusal(f"{error.path.removeprefix('spec.')}: {error.reason}") from error
        return self

    def request(self) -> TaskRequest:
        """The run, as the engine takes it."""
        return TaskRequest(**self.model_dump(exclude={"request_id", "requested_at"}))


class StepExecutionError(_Kind):
    """Why a step failed. `retry_after_seconds` takes the place of the step's backoff."""

    message: Text
    error_type: Text
    error_code: Text | None = None
    retryable: bool
    retry_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _waits_only_when_tried_again(self) -> StepExecutionError:
        if self.retry_after_seconds is not None and not self.retryable:
            raise _refusal("retry_after_seconds is given, and the error is not retryable")
        return self


class StepExecutionResult(_Kind):
    """What became of one execution of a step: a result, or an error, never both."""

    step_uuid: UUID
    success: bool
    result: JsonValue = None
    error: StepExecutionError | None = None
    execution_time_ms: Annotated[int, Field(ge=0)] = 0
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> StepExecutionResult:
        if self.success and self.error is not None:
            raise _refusal("a success has no error")
        if not self.success and self.error is None:
            raise _refusal("a failure needs its error")
        if not self.success and self.result is not None:
            raise _refusal("a failure has no result")
        return self

    @classmethod
    def succeeded(
        cls,
        step_uuid: UUID,
        result: Any = None,
        *,
        execution_time_ms: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> StepExecutionResult:
        """The handler returned `result`."""
        return cls(
            step_uuid=step_uuid,
            success=True,
            result=result,
            execution_time_ms=execution_time_ms,
            metadata=dict(metadata or {}),
        )

    @classmethod
    def failed(
        cls,
        step_uuid: UUID,
        message: str,
        *,
        error_type: str,
        retryable: bool,
        error_code: str | None = None,
        retry_after_seconds: float | None = None,
        execution_time_ms: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> StepExecutionResult:
        """The handler raised, or ran out of time."""
        return cls(
            step_uuid=step_uuid,
            success=False,
            error=StepExecutionError(
                message=message,
                error_type=error_type,
                error_code=error_code,
                retryable=retryable,
                retry_after_seconds=retry_after_seconds,
                context=dict(context or {}),
            ),
            execution_time_ms=execution_time_ms,
        )


def _refusal(reason: str) -> PydanticCustomError:
    """Of a message whose fields do not go together. A ValueError would have "Value error" put before its text."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason})
