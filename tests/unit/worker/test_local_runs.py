"""The testing module: handlers alone, and whole templates in memory."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasker.model.retry import Backoff, retry_delay_ms
from tasker.model.template import parse_template_spec
from tasker_worker import HandlerRegistry, PermanentError, RetryableError, StepContext, StepHandler, depends_on
from tasker_worker.errors import ConfigurationError
from tasker_worker.logging import current_step
from tasker_worker.testing import LocalClock, LocalRunner, _retry_delay, make_context, run_handler, run_handler_async


class Charge(StepHandler):
    handler_name = "charge"

    async def call(self, context: StepContext) -> Any:
        return self.success({"paid": context.get_input("amount")}, metadata={"seconds": 1})

    def refund(self, context: StepContext) -> Any:
        return self.failure("no refunds", "RefundError", False)


def _registry(**handlers: Any) -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    return registry


def _template(*steps: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {"steps": [{"handler": {"callable": step["name"]}, **step} for step in steps], **spec}}


def test_a_handler_can_be_tried_alone() -> None:
    result = run_handler(Charge, make_context(task_context={"amount": 5}))
    assert (result.success, result.result, result.metadata) == (True, {"paid": 5}, {"seconds": 1})
    refused = run_handler(Charge, method="refund")
    assert (refused.success, refused.error_message, refused.error_type, refused.retryable) == (
        False,
        "no refunds",
        "RefundError",
        False,
    )


def test_results_and_contexts_are_given_as_json_gives_them() -> None:
    context = make_context(task_context={"at": date(2026, 1, 1)}, dependency_results={"a": {Decimal("1.5")}})
    result = run_handler(lambda context: [context.get_input("at"), context.dependency_results, UUID(int=1)], context)
    assert result.result == ["2026-01-01", {"a": ["1.5"]}, str(UUID(int=1))]


def test_what_the_engine_would_refuse_is_a_failure_here_too() -> None:
    result = run_handler(lambda context: {"items": object()})
    assert result.error_message == "result of step 'step' is not JSON: $.items is an object"
    assert run_handler(lambda context: exit(3)).error_message == "handler called sys.exit(3)"


async def test_a_handler_can_be_tried_inside_a_loop() -> None:
    assert (await run_handler_async(Charge, make_context(task_context={"amount": 5}))).result == {"paid": 5}


def test_a_diamond_runs_in_order_and_hands_results_on() -> None:
    @depends_on(left="b", right="c")
    def average(left: int, right: int) -> float:
        return (left + right) / 2

    registry = _registry(
        a=lambda context: context.get_input("value") ** 2,
        b=lambda context: context.get_dependency_result("a") + 25,
        c=lambda context: context.get_dependency_result("a") * 2,
        d=average,
    )
    template = _template(
        {"name": "d", "dependsOn": ["b", "c"]},
        {"name": "b", "dependsOn": ["a"]},
        {"name": "c", "dependsOn": ["a"]},
        {"name": "a"},
    )
    run = LocalRunner(template, registry).run({"value": 4})
    assert run.state == "complete"
    assert run.results == {"a": 16, "b": 41, "c": 32, "d": 36.5}
    order = [attempt.step for attempt in run.attempts]
    assert (order[0], order[-1]) == ("a", "d")


def test_retries_wait_on_the_runs_own_clock() -> None:
    def flaky(context: StepContext) -> Any:
        if context.attempt < 3:
            raise RetryableError("not yet")
        return context.attempt

    clock = LocalClock()
    run = LocalRunner(_template({"name": "flaky"}), _registry(flaky=flaky), clock=clock).run()
    assert run.state == "complete"
    assert [attempt.at for attempt in run.attempts] == [0, 1, 3]
    assert clock.now == 3
    assert run.attempts_of("flaky") == 3
    assert len(run.failures) == 2


def test_a_run_can_be_taken_step_by_step() -> None:
    clock = LocalClock()
    runner = LocalRunner(
        _template({"name": "a"}, defaults={"retry": {"baseMs": 5000, "backoff": "linear"}}),
        _registry(a=lambda context: "done"),
        clock=clock,
    )
    runner.fail("a")

    async def drive() -> None:
        run = runner.start()
        assert await run.run_ready() == 1
        assert (run.state, run.next_due) == ("waiting_for_retry", 5)
        clock.advance(4.9)
        assert await run.run_ready() == 0
        clock.advance(0.1)
        assert await run.run_ready() == 1
        assert run.state == "complete"

    asyncio.run(drive())


def test_a_permanent_failure_ends_what_depends_on_it_and_nothing_else() -> None:
    def fails(context: StepContext) -> Any:
        raise PermanentError("declined")

    registry = _registry(pay=fails, ship=lambda context: 1, audit=lambda context: 2)
    template = _template({"name": "pay"}, {"name": "ship", "dependsOn": ["pay"]}, {"name": "audit"})
    run = LocalRunner(template, registry).run()
    assert run.state == "error"
    assert run.results == {"audit": 2}
    [failure] = run.failures
    assert (failure.step, failure.result.error_message) == ("pay", "declined")


def test_faults_can_be_put_in() -> None:
    registry = _registry(work=lambda context: context.attempt)
    template = _template({"name": "work", "timeoutSeconds": 5, "retry": {"maxAttempts": 5, "backoff": "none"}})
    runner = LocalRunner(template, registry)
    runner.crash("work")
    runner.time_out("work")
    runner.fail("work", error=OSError("gone"))
    run = runner.run()
    assert run.results == {"work": 4}
    assert [(each.result.error_type, each.result.error_message) for each in run.failures] == [
        ("worker_crash_loop", "the worker was lost"),
        ("Timeout", "step 'work' exceeded its timeout of 5 s"),
        ("HandlerError", "OSError: gone"),
    ]
    with pytest.raises(ConfigurationError, match="the template has no step 'other'"):
        runner.fail("other")


def test_attempts_end_at_the_maximum_and_a_step_that_is_not_retryable_has_one() -> None:
    for retry, attempts in (({"maxAttempts": 2}, 2), ({"maxAttempts": 5, "retryable": False}, 1)):
        runner = LocalRunner(_template({"name": "a", "retry": retry}), _registry(a=lambda context: 1))
        runner.fail("a", times=10)
        run = runner.run()
        assert (run.state, run.attempts_of("a")) == ("error", attempts)


def test_configuration_method_and_attempt_counts_reach_the_handler() -> None:
    class Work(StepHandler):
        def special(self, context: StepContext) -> Any:
            return [context.get_config("a"), context.get_config("b"), context.max_retries]

    step = {"name": "work", "handler": {"callable": "work", "method": "special", "initialization": {"b": 2}}}
    template = _template(step, defaults={"handler": {"initialization": {"a": 1, "b": 1}}, "retry": {"maxAttempts": 7}})
    assert LocalRunner(template, _registry(work=Work)).run().results == {"work": [1, 2, 6]}


def test_an_unknown_callable_fails_its_step() -> None:
    run = LocalRunner(_template({"name": "a"}), HandlerRegistry()).run()
    assert run.failures[0].result.error_message == "no handler is registered for the callable 'a'"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (_template(), "the template has no steps"),
        (_template({"name": "a"}, {"name": "a"}), "two steps of the template are named 'a'"),
        (_template({"name": "a", "dependsOn": ["b"]}), "step 'a' depends on 'b', which the template does not have"),
        (
            _template({"name": "a", "dependsOn": ["b"]}, {"name": "b", "dependsOn": ["a"]}),
            "the steps depend on each other: a → b → a",
        ),
    ],
)
def test_a_template_that_cannot_run_is_refused(template: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        LocalRunner(template)
    assert str(refusal.value) == message


@pytest.mark.parametrize("backoff", list(Backoff))
def test_waits_are_those_of_the_engine(backoff: Backoff) -> None:
    for failures, (base, most) in itertools.product(range(1, 12), [(1000, 30_000), (250, 100_000), (0, 0)]):
        ours = _retry_delay({"backoff": str(backoff), "baseMs": base, "maxMs": most}, failures, None)
        assert ours * 1000 == retry_delay_ms(backoff, base_ms=base, max_ms=most, failures=failures)
    assert _retry_delay({}, 1, 99_999) * 1000 == retry_delay_ms(
        backoff, base_ms=0, max_ms=0, failures=1, retry_after_ms=99_999_000
    )


def test_a_context_that_nothing_is_said_of_is_that_of_a_first_attempt_of_three() -> None:
    context = make_context()
    assert (context.step_name, context.attempt, context.max_retries, context.correlation_id) == ("step", 1, 2, "test")
    assert (context.namespace, context.template_name, context.template_version) == ("default", "template", "1.0.0")
    assert (context._claim.timeout_ms, context._claim.callable, context._claim.method) == (300_000, "step", "call")
    assert (context._claim.resolver, context._claim.ready_at, context.deadline) == (None, None, None)
    assert (context._claim.kind, context._claim.step_id, context._claim.fence) == ("claim", 1, 1)
    assert context.task_context == context.step_inputs == context.step_config == context.dependency_results == {}
    assert context.task_uuid != context.step_uuid
    assert context.task_uuid != make_context().task_uuid


def test_a_context_is_what_is_said_of_it() -> None:
    deadline = datetime(2026, 1, 1, tzinfo=UTC)
    context = make_context(
        step_name="pay",
        task_context={"a": 1},
        step_inputs={"b": 2},
        step_config={"c": 3},
        dependency_results={"d": 4},
        attempt=2,
        max_attempts=5,
        timeout_seconds=1.5,
        deadline=deadline,
        task_uuid="t",
        step_uuid="s",
        correlation_id="k",
        namespace="shop",
        template_name="order",
        template_version="2.0.0",
        callable_name="charge",
        method="refund",
    )
    assert (context.step_name, context.attempt, context.max_retries, context.deadline) == ("pay", 2, 4, deadline)
    assert (context.task_context, context.step_inputs, context.step_config) == ({"a": 1}, {"b": 2}, {"c": 3})
    assert (context.dependency_results, context.task_uuid, context.step_uuid) == ({"d": 4}, "t", "s")
    assert (context.correlation_id, context.namespace) == ("k", "shop")
    assert (context.template_name, context.template_version) == ("order", "2.0.0")
    assert (context._claim.timeout_ms, context._claim.callable, context._claim.method) == (1500, "charge", "refund")


@pytest.mark.parametrize(("count", "given"), [(100, 100), (101, 1)])
def test_a_step_with_more_than_a_hundred_steps_before_it_is_given_its_parents_results_only(
    count: int, given: int
) -> None:
    steps: list[dict[str, Any]] = [
        {"name": f"s{place}", "dependsOn": [f"s{place - 1}"] if place else [], "handler": {"callable": "work"}}
        for place in range(count)
    ]
    steps.append({"name": "last", "dependsOn": [f"s{count - 1}"]})

    async def work(context: StepContext) -> None: ...

    async def last(context: StepContext) -> int:
        return len(context.dependency_results)

    assert LocalRunner(_template(*steps), _registry(work=work, last=last)).run().results["last"] == given


def test_faults_say_what_they_stand_for_and_a_wait_has_its_most() -> None:
    runner = LocalRunner(_template({"name": "a"}), _registry(a=lambda context: 1))
    runner.fail("a")
    runner.time_out("a")
    run = runner.run()
    assert [(each.result.error_type, each.result.error_message) for each in run.failures] == [
        ("RetryableError", "put in by the test"),
        ("Timeout", "step 'a' exceeded its timeout of 300 s"),
    ]
    assert [each.at for each in run.attempts] == [0.0, 1.0, 3.0]
    runner.crash("a")
    [lost] = runner.run().failures
    assert (lost.result.error_type, lost.result.error_message) == ("worker_crash_loop", "the worker was lost")
    assert (lost.result.retryable, lost.result.retry_after) == (True, 0)
    runner.clock.now = 0.0
    runner.fail("a", error=RetryableError("later", retry_after=4000))
    assert [each.at for each in runner.run().attempts] == [0.0, 3600.0]
    with pytest.raises(ConfigurationError, match="the template has no step 'b'"):
        runner.crash("b")


def test_defaults_of_the_template_hold_where_a_step_says_nothing() -> None:
    def fails(context: StepContext) -> Any:
        raise RetryableError(f"{context._claim.timeout_ms} {context.max_retries} {context.step_config}")

    template = _template(
        {"name": "a", "handler": {"callable": "fails", "initialization": {"own": 1}}},
        {"name": "b", "handler": {"callable": "fails"}, "timeoutSeconds": 7, "retry": {"maxAttempts": 1}},
        defaults={
            "timeoutSeconds": 9,
            "retry": {"maxAttempts": 2, "baseMs": 500, "backoff": "none"},
            "handler": {"initialization": {"shared": 1}},
        },
    )
    run = LocalRunner(template, _registry(fails=fails)).run()
    assert run.state == "error"
    assert (run.attempts_of("a"), run.attempts_of("b")) == (2, 1)
    assert {each.step: each.result.error_message for each in run.attempts} == {
        "a": "9000 1 {'shared': 1, 'own': 1}",
        "b": "7000 0 {'shared': 1}",
    }
    assert {each.at for each in run.attempts} == {0.0}


async def test_a_handler_that_is_cancelled_from_outside_is_cancelled_and_its_own_cancellation_is_a_failure() -> None:
    began = asyncio.Event()

    async def waits(context: StepContext) -> None:
        began.set()
        await asyncio.Event().wait()

    async def cancels(context: StepContext) -> None:
        raise asyncio.CancelledError

    running = asyncio.get_running_loop().create_task(run_handler_async(waits))
    await asyncio.wait_for(began.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await run_handler_async(cancels)
    assert (result.success, result.error_message) == (False, "handler raised CancelledError")


def test_the_text_of_a_run_is_what_became_of_it_and_not_what_it_was_made_of() -> None:
    text = repr(LocalRunner(_template({"name": "a"}), _registry(a=lambda context: 1)).run())
    assert "results={'a': 1}" in text
    assert "runner=" not in text
    assert " steps=" not in text


def test_handlers_of_modules_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handlers_of_a_local_run.py").write_text(
        "from tasker_worker import step_handler\n\n@step_handler('a')\ndef a(context): return 'found'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runner = LocalRunner(_template({"name": "a"}), modules=["handlers_of_a_local_run"])
    assert runner.run().results == {"a": "found"}


def test_a_handler_alone_is_told_its_deadline_and_its_step_is_on_its_lines() -> None:
    def handler(context: StepContext) -> list[Any]:
        return [context.deadline is not None, current_step.get() is context]

    async def on_the_loop(context: StepContext) -> list[Any]:
        return handler(context)

    for each in (handler, on_the_loop):
        assert run_handler(each).result == [True, True]
    assert current_step.get() is None


def test_faults_come_as_often_as_is_said() -> None:
    for put_in in (LocalRunner.fail, LocalRunner.time_out, LocalRunner.crash):
        runner = LocalRunner(
            _template({"name": "a", "retry": {"maxAttempts": 9}}), _registry(a=lambda context: context.attempt)
        )
        put_in(runner, "a")
        assert runner.run().results == {"a": 2}
        put_in(runner, "a", times=3)
        assert runner.run().results == {"a": 4}


def test_what_a_handler_alone_raises_is_a_failure_with_its_wait_in_seconds() -> None:
    def handler(context: StepContext) -> None:
        raise RetryableError("later", retry_after=2.5)

    async def on_the_loop(context: StepContext) -> None:
        handler(context)

    for each in (handler, on_the_loop):
        result = run_handler(each)
        assert (result.error_message, result.retryable, result.retry_after) == ("later", True, 2.5)


def test_what_a_template_leaves_unsaid_is_what_the_engine_takes_it_for() -> None:
    def handler(context: StepContext) -> list[Any]:
        return [context.step_name, context._claim.timeout_ms / 1000, context.max_retries + 1]

    template = _template({"name": "a"}, {"name": "b", "retry": {"retryable": False}})
    engines = parse_template_spec(template["spec"]).steps
    run = LocalRunner(template, _registry(a=handler, b=handler)).run()
    assert [run.results[each.name] for each in engines] == [
        [each.name, each.timeout_seconds, each.retry.effective_attempts] for each in engines
    ]
    for failures in range(1, 8):
        retry = engines[0].retry
        assert _retry_delay({}, failures, None) * 1000 == retry_delay_ms(
            retry.backoff, base_ms=retry.base_ms, max_ms=retry.max_ms, failures=failures
        )


def test_a_backoff_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there is no backoff 'sometimes'"):
        _retry_delay({"backoff": "sometimes"}, 1, None)
