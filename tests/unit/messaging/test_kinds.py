"""The kinds of messages: what they hold, what they refuse, and that they come back as they went."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

from support.messaging import MemoryWorld
from tasker.messaging import (
    MessageClient,
    SimpleStepMessage,
    StepExecutionError,
    StepExecutionResult,
    TaskRequestMessage,
)
from tasker.model.task import TaskRequest
from tasker.model.validation import first_fault

TASK, STEP = UUID(int=1), UUID(int=2)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

MESSAGES: dict[str, tuple[BaseModel, dict[str, Any]]] = {
    "step": (
        SimpleStepMessage(task_uuid=TASK, step_uuid=STEP, correlation_id="c"),
        {"task_uuid": str(TASK), "step_uuid": str(STEP), "correlation_id": "c"},
    ),
    "request": (
        TaskRequestMessage(
            template_name="order", context={"a": [1, None]}, tags=("x",), request_id=TASK, requested_at=NOON
        ),
        {
            "template_name": "order",
            "template_version": None,
            "context": {"a": [1, None]},
            "priority": 0,
            "correlation_id": None,
            "parent_correlation_id": None,
            "initiator": None,
            "source_system": None,
            "reason": None,
            "tags": ["x"],
            "deadline_seconds": None,
            "request_id": str(TASK),
            "requested_at": "2030-01-01T12:00:00Z",
        },
    ),
    "success": (
        StepExecutionResult.succeeded(STEP, {"total": 5}, execution_time_ms=12, metadata={"carrier": "post"}),
        {
            "step_uuid": str(STEP),
            "success": True,
            "result": {"total": 5},
            "error": None,
            "execution_time_ms": 12,
            "metadata": {"carrier": "post"},
        },
    ),
    "failure": (
        StepExecutionResult.failed(
            STEP,
            "the gateway is busy",
            error_type="RetryableError",
            error_code="GATEWAY_BUSY",
            retryable=True,
            retry_after_seconds=2.5,
            execution_time_ms=7,
            context={"gateway": "a"},
        ),
        {
            "step_uuid": str(STEP),
            "success": False,
            "result": None,
            "error": {
                "message": "the gateway is busy",
                "error_type": "RetryableError",
                "error_code": "GATEWAY_BUSY",
                "retryable": True,
                "retry_after_seconds": 2.5,
                "context": {"gateway": "a"},
            },
            "execution_time_ms": 7,
            "metadata": {},
        },
    ),
}


@pytest.mark.parity(328)
@pytest.mark.parametrize("name", MESSAGES)
async def test_a_message_goes_as_plain_json_and_comes_back_as_it_was(world: MemoryWorld, name: str) -> None:
    message, body = MESSAGES[name]
    service = world.service()
    await service.ensure_queue("queue")
    client = MessageClient(service)
    await client.send("queue", message)
    [received] = await client.receive("queue", type(message))
    assert received.message.body == body
    assert received.content == message


@pytest.mark.parity(328)
@pytest.mark.parametrize(
    ("kind", "body", "path", "reason"),
    [
        (SimpleStepMessage, {"step_uuid": str(STEP), "correlation_id": "c"}, "body.task_uuid", "is required"),
        (SimpleStepMessage, {"task_uuid": "x", "step_uuid": str(STEP), "correlation_id": "c"}, "body.task_uuid", ""),
        (
            SimpleStepMessage,
            {"task_uuid": str(TASK), "step_uuid": str(STEP), "correlation_id": ""},
            "body.correlation_id",
            "must not be empty",
        ),
        (
            SimpleStepMessage,
            {"task_uuid": str(TASK), "step_uuid": str(STEP), "correlation_id": "c", "more": 1},
            "body.more",
            "is not a known field",
        ),
        (TaskRequestMessage, {}, "body.template_name", "is required"),
        (TaskRequestMessage, {"template_name": "a", "context": [1]}, "body.context", "must be an object"),
        (
            TaskRequestMessage,
            {"template_name": "a", "priority": 101},
            "body",
            "priority: 101 is not between -100 and 100",
        ),
        (
            TaskRequestMessage,
            {"template_name": "a", "deadline_seconds": 0},
            "body",
            "deadlineSeconds: must be more than 0 and at most 31536000",
        ),
        (
            TaskRequestMessage,
            {"template_name": "a", "requested_at": "2030-01-01T12:00:00"},
            "body.requested_at",
            "input should have timezone info",
        ),
        (
            StepExecutionResult,
            {"step_uuid": str(STEP), "success": False},
            "body",
            "a failure needs its error",
        ),
        (
            StepExecutionResult,
            {
                "step_uuid": str(STEP),
                "success": True,
                "error": {"message": "x", "error_type": "x", "retryable": False},
            },
            "body",
            "a success has no error",
        ),
        (
            StepExecutionResult,
            {
                "step_uuid": str(STEP),
                "success": False,
                "result": 1,
                "error": {"message": "x", "error_type": "x", "retryable": False},
            },
            "body",
            "a failure has no result",
        ),
        (
            StepExecutionResult,
            {"step_uuid": str(STEP), "success": True, "execution_time_ms": -1},
            "body.execution_time_ms",
            "must be at least 0",
        ),
        (
            StepExecutionError,
            {"message": "x", "error_type": "x", "retryable": False, "retry_after_seconds": 1},
            "body",
            "retry_after_seconds is given, and the error is not retryable",
        ),
        (
            StepExecutionError,
            {"message": "x", "error_type": "x", "retryable": True, "retry_after_seconds": -1},
            "body.retry_after_seconds",
            "must be at least 0",
        ),
    ],
)
def test_what_is_no_such_message_is_refused_with_its_place(
    kind: type[BaseModel], body: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    told_path, told_reason = first_fault(caught.value, "body")
    assert told_path == path
    assert told_reason.startswith(reason)


def test_a_request_is_what_the_engine_takes() -> None:
    message = TaskRequestMessage(
        template_name="order",
        template_version="1.0.0",
        context={"a": 1},
        priority=3,
        correlation_id="c",
        parent_correlation_id="p",
        initiator="ann",
        source_system="shop",
        reason="r",
        tags=("x", "y"),
        deadline_seconds=60,
    )
    assert message.request() == TaskRequest(
        template_name="order",
        template_version="1.0.0",
        context={"a": 1},
        priority=3,
        correlation_id="c",
        parent_correlation_id="p",
        initiator="ann",
        source_system="shop",
        reason="r",
        tags=("x", "y"),
        deadline_seconds=60.0,
    )


def test_each_request_has_an_id_and_a_time_of_its_own() -> None:
    first, second = TaskRequestMessage(template_name="a"), TaskRequestMessage(template_name="a")
    assert first.request_id != second.request_id
    assert first.requested_at.tzinfo is not None
