"""A step's `resultSchema`: what does not fit it is no result, and the message says where and why."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import pytest

from support.worker_engine import Rig, make_claim
from tasker_worker import ErrorType, HandlerRegistry, StepContext, StepResult, outcomes, schemas
from tasker_worker.outcomes import checked, from_value
from tasker_worker.schemas import fault_of_result, is_quick
from tasker_worker.testing import LocalRunner, make_context, run_handler

ORDER = {
    "type": "object",
    "required": ["total"],
    "properties": {
        "total": {"type": "number", "minimum": 0},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "payment": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["card"]}]},
        "a/b~c": {"type": "integer"},
    },
    "$defs": {
        "line": {"type": "object", "required": ["sku"], "unevaluatedProperties": False, "properties": {"sku": True}}
    },
}


def fault(schema: Any, result: Any) -> str | None:
    return fault_of_result(json.dumps(schema), json.dumps(result))


@pytest.mark.parametrize(
    ("schema", "result"),
    [
        (ORDER, {"total": 5, "lines": [{"sku": "tea"}], "payment": None}),
        (ORDER, {"total": 5.5, "a/b~c": 1.0, "more": True}),
        (True, None),
        ({"type": "integer"}, 10**30),
        ({"type": "string", "format": "date"}, "an annotation"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "object"}),
        ({"prefixItems": [{"type": "string"}], "items": False}, ["a"]),
    ],
)
def test_what_fits_has_no_fault(schema: Any, result: Any) -> None:
    assert fault(schema, result) is None


@pytest.mark.parametrize(
    ("schema", "result", "told"),
    [
        (ORDER, [], "does not fit its schema: at the root: [] is not of type 'object'"),
        (ORDER, {}, "does not fit its schema: at the root: 'total' is a required property"),
        (ORDER, {"total": "5"}, "does not fit its schema: at /total: '5' is not of type 'number'"),
        (ORDER, {"total": 1, "lines": [{"sku": 1}, {}]}, "does not fit its schema: at /lines/1: 'sku' is a required"),
        (ORDER, {"total": 1, "lines": [{"sku": 1, "x": 2}]}, "does not fit its schema: at /lines/0: Unevaluated prop"),
        (ORDER, {"total": 1, "payment": {}}, "does not fit its schema: at /payment: 'card' is a required property"),
        (ORDER, {"total": 1, "a/b~c": 1.5}, "does not fit its schema: at /a~1b~0c: 1.5 is not of type 'integer'"),
        (False, 1, "does not fit its schema: at the root: False schema does not allow 1"),
        ({"type": "objct"}, 1, "cannot be validated: its schema is none at /type: 'objct' is not valid"),
        ({"pattern": "("}, "a", "cannot be validated: its schema is none at /pattern: '(' is not a 'regex'"),
        ({"$ref": "#/$defs/no"}, 1, "cannot be validated: a reference of its schema leads nowhere: "),
        ({"$ref": "#"}, 1, "cannot be validated: its schema refers to itself without end"),
    ],
)
def test_a_fault_is_told_with_its_place_and_reason(schema: Any, result: Any, told: str) -> None:
    assert (fault(schema, result) or "").startswith(told)


def test_a_reason_is_cut_when_it_repeats_a_large_result() -> None:
    told = fault({"maxItems": 1}, ["x" * 100] * 1000) or ""
    assert told.endswith("…")
    assert len(told) < 1100


def test_nothing_is_fetched_for_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was wanted")

    monkeypatch.setattr(socket, "create_connection", refuses)
    monkeypatch.setattr(socket, "getaddrinfo", refuses)
    told = fault({"$ref": "http://schemas.example/order.json"}, 1)
    assert told is not None
    assert told.endswith("leads nowhere: Unresolvable: http://schemas.example/order.json")


def test_validators_are_kept_up_to_a_bound() -> None:
    schemas._validator.cache_clear()
    for result in (1, 2, 3):
        assert fault({"type": "integer"}, result) is None
    told = schemas._validator.cache_info()
    assert (told.hits, told.misses, told.maxsize) == (2, 1, 256)


def test_a_large_result_is_not_validated_on_the_loop_nor_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(True, 1) is None  # the library is imported
    assert is_quick("x" * 4096)
    assert not is_quick("x" * 4097)
    monkeypatch.setattr(schemas, "sys", type("", (), {"modules": {}}))
    assert not is_quick("1")


def test_a_failure_is_not_held_to_the_schema_and_a_fault_of_the_library_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = make_claim("x", result_schema='{"type": "string"}')
    failed = from_value(claim, StepResult.fail("no"))
    assert checked(claim, failed) is failed

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(outcomes, "fault_of_result", breaks)
    told = checked(claim, from_value(claim, "fits"))
    assert (told.error_type, told.retryable) == ("ResultSchemaError", False)
    assert told.message == "result of step 'x' cannot be validated: ZeroDivisionError: inside"
    assert not ErrorType.RESULT_SCHEMA_ERROR.retryable


def plain(context: StepContext) -> Any:
    return context.task_context.get("result")


async def on_the_loop(context: StepContext) -> Any:
    return plain(context)


async def after_waiting(context: StepContext) -> Any:
    await asyncio.sleep(0)
    return plain(context)


HANDLERS = {"plain": plain, "on_the_loop": on_the_loop, "after_waiting": after_waiting}


@pytest.mark.parametrize("size", [1, 5000])
@pytest.mark.parametrize("name", HANDLERS)
async def test_a_worker_records_what_fits_and_fails_what_does_not_for_good(name: str, size: int) -> None:
    registry = HandlerRegistry()
    registry.register_all(HANDLERS)
    schema = json.dumps({"items": {"type": "integer"}, "minItems": 1})
    async with Rig(registry) as rig:
        good = make_claim(name, result_schema=schema, context=json.dumps({"result": [1] * size}))
        bad = make_claim(name, result_schema=schema, context=json.dumps({"result": [*[1] * size, "x"]}))
        await rig.work_off(good, bad)
        assert rig.engine.result_of(good) == [1] * size
        error = rig.engine.error_of(bad)
        assert (error.error_type, error.retryable) == ("ResultSchemaError", False)
        assert error.message == (
            f"result of step {name!r} does not fit its schema: at /{size}: 'x' is not of type 'integer'"
        )
        assert (rig.metrics.succeeded, rig.metrics.failed, rig.executor.running) == (1, 1, 0)


async def test_the_loop_is_free_while_a_large_result_is_validated_and_the_step_has_its_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        began.set()
        go.wait(10)

    monkeypatch.setattr(outcomes, "fault_of_result", slow)
    monkeypatch.setattr(schemas, "is_quick", lambda _: False)
    registry = HandlerRegistry()
    registry.register_all(HANDLERS)
    async with Rig(registry) as rig:
        slow_one = make_claim("on_the_loop", result_schema="true", timeout_ms=500)
        rig.engine.queue.append(slow_one)
        rig.exchange.hint()
        await rig.until(began.is_set)
        other = make_claim("on_the_loop")
        await rig.work_off(other)
        assert slow_one.fence not in rig.engine.settled
        await rig.until(lambda: slow_one.fence in rig.engine.settled)
        assert rig.engine.error_of(slow_one).error_type == "Timeout"
        go.set()


async def test_without_a_thread_a_result_is_validated_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(schemas, "is_quick", lambda _: False)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    registry = HandlerRegistry()
    registry.register_all(HANDLERS)
    async with Rig(registry) as rig:
        claim = make_claim("on_the_loop", result_schema='{"type": "string"}')
        await rig.work_off(claim)
        assert rig.engine.error_of(claim).error_type == "ResultSchemaError"


def test_a_handler_alone_and_a_local_run_are_held_to_schemas_too() -> None:
    context = make_context(result_schema={"type": "string"}, task_context={"result": 5})
    assert run_handler(plain, context).error_type == "ResultSchemaError"
    registry = HandlerRegistry()
    registry.register("plain", plain)
    step = {"name": "a", "handler": {"callable": "plain"}, "resultSchema": {"type": "integer"}}
    assert LocalRunner({"steps": [step]}, registry).run({"result": 5}).results == {"a": 5}
    run = LocalRunner({"steps": [step]}, registry).run({"result": "5"})
    assert (run.state, run.attempts_of("a")) == ("error", 1)
    assert run.failures[0].result.error_message == (
        "result of step 'a' does not fit its schema: at the root: '5' is not of type 'integer'"
    )
