"""A step's `when`: judged before the first attempt, never for long on the loop, refused with its text and reason."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from typing import Any

import pytest

from support.worker_engine import Rig, make_claim
from tasker_worker import HandlerRegistry, StepContext, cel_evaluation, conditions
from tasker_worker.claims import Outcome, OutcomeKind
from tasker_worker.conditions import is_quick, judge
from tasker_worker.errors import ErrorType, WhenError
from tasker_worker.testing import LocalRunner


def holds(condition: str, context: dict[str, Any] | None = None, results: dict[str, Any] | None = None) -> bool:
    return judge("pay", condition, json.dumps(context or {}), json.dumps(results or {}))


@pytest.mark.parametrize(
    ("condition", "context", "expected"),
    [
        ("context.amount > 1000", {"amount": 1500}, True),
        ("context.amount > 1000", {"amount": 1500.5}, True),
        ("context.amount > 1500", {"amount": 1500.5}, True),
        ("context.amount > 1500.5", {"amount": 1500}, False),
        ("context.amount >= 1500.0", {"amount": 1500}, True),
        ("context.amount <= 1500", {"amount": 1500.0}, True),
        ("context.amount == 1500", {"amount": 1500}, True),
        ("context.amount > 1000", {"amount": 2**70}, True),
        ("context.amount == 1500", {"amount": 1500.0}, True),
        ("context.amount == 1500.0", {"amount": 1500}, True),
        ("context.amount != 1500.0", {"amount": 1500}, False),
        ("context.amount in [1500.0]", {"amount": 1500}, True),
        # What people are told to write, for arithmetic does not mix the two kinds of numbers.
        ("double(context.amount) * 1.1 > 1600.0", {"amount": 1500}, True),
        ("double(context.amount) * 1.1 > 1600.0", {"amount": 1500.5}, True),
        ("context.kind == 'gift' && !context.urgent", {"kind": "gift", "urgent": False}, True),
        ("has(context.coupon) && context.coupon.percent > 5", {}, False),
        ("context.items.exists(item, item.price > 10)", {"items": [{"price": 5}, {"price": 12.5}]}, True),
        ("context.note.contains('é')", {"note": "café"}, True),
        ("context['two words'] == null", {"two words": None}, True),
    ],
)
def test_an_expression_sees_the_task_s_input(condition: str, context: dict[str, Any], expected: bool) -> None:
    assert holds(condition, context) is expected


def test_an_expression_sees_results_by_step_name() -> None:
    results = {"check": {"score": 0.7}, "check-2": [1, 2]}
    assert holds("results.check.score > 0.5 && results['check-2'][1] == 2", results=results)
    assert holds("'check' in results && !('other' in results)", results=results)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("context.amount", "its value is no boolean but 5"),
        ("'yes'", "its value is no boolean but 'yes'"),
        ("context", "its value is no boolean but {'amount': 5}"),
        ("context.missing > 1", "there is no 'missing'"),
        ("1 / 0 > 1", "division by zero"),
        ("amount > 1", "Undefined variable or function: 'amount'"),
        ("context.amount * 1.5 > 1.0", "No such overload"),
        ("context.amount > 'a'", "No such overload"),
        ("context.amount >", "ERROR: <input>:1:17: Syntax error: mismatched input '<EOF>'"),
        ("", "ERROR: <input>:1:1: Syntax error"),
        ("[" * 200 + "]" * 200 + " == []", "ERROR: <input>:1:97: Syntax error"),
    ],
)
def test_what_has_no_truth_value_is_told_with_the_expression_and_the_reason(condition: str, reason: str) -> None:
    with pytest.raises(WhenError) as refusal:
        holds(condition, {"amount": 5})
    message = str(refusal.value)
    assert message.startswith(f"the condition {condition!r} of step 'pay' cannot be judged: {reason}")
    assert len(message) < 1700
    assert (refusal.value.error_type, refusal.value.retryable) == ("WhenError", False)
    assert not ErrorType.WHEN_ERROR.retryable


def test_an_expression_has_at_most_4096_characters() -> None:
    assert holds("true" + " " * 4092)
    with pytest.raises(WhenError, match="it has 4097 characters, the limit is 4096"):
        holds("true" + " " * 4093)


def test_compiled_expressions_are_kept_up_to_a_bound() -> None:
    cel_evaluation._program.cache_clear()
    for _ in range(3):
        assert holds("context.amount == 5", {"amount": 5})
    told = cel_evaluation._program.cache_info()
    assert (told.hits, told.misses, told.maxsize) == (2, 1, 256)


def test_a_panic_of_the_library_is_told_as_any_fault_and_an_interrupt_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    errors = iter([PanicException("index"), KeyboardInterrupt()])

    def fails(condition: str) -> Any:
        raise next(errors)

    monkeypatch.setattr(cel_evaluation, "_program", fails)
    with pytest.raises(WhenError, match="cannot be judged: index"):
        holds("true")
    with pytest.raises(KeyboardInterrupt):
        holds("true")


NESTED = "context.items.all(a, context.items.all(b, a + b >= 0))"


@pytest.mark.parametrize(
    ("condition", "characters", "where"),
    [
        ("context.a > 1", 16 * 1024, "loop"),
        ("context.a > 1", 16 * 1024 + 1, "thread"),
        ("context.a > 1", 512 * 1024, "thread"),
        ("context.a > 1", 512 * 1024 + 1, "process"),
        ("context.all > 1", 16 * 1024, "loop"),
        ("context.l.all(x, true)", 11_800, "loop"),
        ("context.l.all(x, true)", 12_000, "thread"),
        ("context.l.all(x, true)", 190_000, "thread"),
        ("context.l.all(x, true)", 191_000, "process"),
        (NESTED, 20, "process"),
        ("context.l.map(x, x).filter (y, true) == []", 20, "process"),
        ("context.l. exists_one(x, " + "true || " * 400 + "true)", 20, "process"),
    ],
)
def test_what_an_expression_can_cost_decides_where_it_is_judged(
    condition: str, characters: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holds("true")  # the library is imported
    data = "x" * (characters - 2)
    monkeypatch.setattr(conditions, "_judge_elsewhere", lambda *_: False)
    monkeypatch.setattr(cel_evaluation, "evaluate", lambda *_: True)
    in_this_process = "loop" if is_quick(condition, data, "{}") else "thread"
    assert where == (in_this_process if judge("pay", condition, data, "{}") else "process")


def test_the_first_expression_is_not_judged_on_the_loop_for_the_library_is_slow_to_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conditions, "sys", type("", (), {"modules": {}}))
    assert not is_quick("true", "{}", "{}")


def test_what_may_take_long_is_judged_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    ran: list[dict[str, Any]] = []
    run = subprocess.run

    def noting(*arguments: Any, **settings: Any) -> Any:
        ran.append(settings)
        return run(*arguments, **settings)

    monkeypatch.setattr(subprocess, "run", noting)
    assert holds(NESTED, {"items": [1, 2]})
    assert ran[0]["env"].keys() == {"PYTHONPATH"}
    with pytest.raises(WhenError, match="cannot be judged: its value is no boolean but \\[1, 2\\]"):
        holds("context.items.map(a, context.items.filter(b, b == a)[0])", {"items": [1, 2], "é": "é"})
    assert len(ran) == 2


def test_an_expression_that_takes_too_long_is_ended_and_one_that_breaks_its_process_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conditions, "_SECONDS", 0.5)
    with pytest.raises(WhenError, match=r"cannot be judged: it takes longer than 0\.5 s"):
        holds("context.items" + ".all(a, context.items" * 20 + ".all(b, true" + ")" * 21, {"items": list(range(9))})
    broken = subprocess.CompletedProcess([], -11, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(WhenError, match="cannot be judged: its process ended with the code -11"):
        holds(NESTED, {"items": []})


# in a worker


def registry_of(**handlers: Any) -> HandlerRegistry:
    registry = HandlerRegistry()
    registry.register_all(handlers)
    return registry


class Counted:
    """Handlers of both kinds that count their calls."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def plain(self, context: StepContext) -> str:
        self.called.append(context.step_name)
        return "ran"

    async def on_the_loop(self, context: StepContext) -> str:
        return self.plain(context)

    @property
    def registry(self) -> HandlerRegistry:
        return registry_of(plain=self.plain, on_the_loop=self.on_the_loop)


@pytest.mark.parametrize("name", ["plain", "on_the_loop"])
async def test_a_handler_is_called_when_its_condition_holds_and_its_step_skipped_when_not(name: str) -> None:
    handlers = Counted()
    async with Rig(handlers.registry) as rig:
        condition = "context.amount > 1000 && results.check.ok"
        more = {"condition": condition, "dependency_results": '{"check": {"ok": true}}'}
        runs = make_claim(name, context='{"amount": 1500.5}', **more)
        skipped = make_claim(name, context='{"amount": 1000}', **more)
        await rig.work_off(runs, skipped)
        assert rig.engine.result_of(runs) == "ran"
        assert rig.engine.settled[skipped.fence] == Outcome(OutcomeKind.SKIP)
        assert (handlers.called, rig.metrics.succeeded, rig.metrics.skipped) == ([name], 1, 1)
        assert rig.executor.running == 0


async def test_a_condition_is_judged_before_the_first_attempt_alone() -> None:
    handlers = Counted()
    async with Rig(handlers.registry) as rig:
        again = make_claim("plain", condition="false", attempt=2)
        await rig.work_off(again)
        assert rig.engine.result_of(again) == "ran"


async def test_a_condition_that_cannot_be_judged_fails_its_step_for_good_and_no_other() -> None:
    handlers = Counted()
    async with Rig(handlers.registry) as rig:
        bad, unknown = make_claim("plain", condition="context.a"), make_claim("nobody", condition="false")
        await rig.work_off(bad, unknown, make_claim("on_the_loop", condition="true"))
        error = rig.engine.error_of(bad)
        assert (error.error_type, error.retryable, error.traceback) == ("WhenError", False, None)
        assert error.message == "the condition 'context.a' of step 'plain' cannot be judged: there is no 'a'"
        assert rig.engine.settled[unknown.fence].kind is OutcomeKind.SKIP, "nobody needs its handler"
        assert handlers.called == ["on_the_loop"]


async def test_other_steps_do_not_wait_for_a_condition_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slow(*_: Any) -> bool:
        go.wait(10)
        return False

    monkeypatch.setattr(conditions, "judge", slow)
    monkeypatch.setattr(conditions, "is_quick", lambda *_: False)
    handlers = Counted()
    async with Rig(handlers.registry) as rig:
        late, others = make_claim("plain", condition="true"), [make_claim("on_the_loop") for _ in range(5)]
        await rig.work_off(*others, later_than=(late,))
        assert late.fence not in rig.engine.settled
        go.set()
        await rig.until(lambda: late.fence in rig.engine.settled)
        assert rig.engine.settled[late.fence].kind is OutcomeKind.SKIP


async def test_a_step_whose_lease_is_lost_while_its_condition_is_judged_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go = threading.Event(), threading.Event()

    def slow(*_: Any) -> bool:
        asked.set()
        return go.wait(10)

    monkeypatch.setattr(conditions, "judge", slow)
    monkeypatch.setattr(conditions, "is_quick", lambda *_: False)
    handlers = Counted()
    async with Rig(handlers.registry) as rig:
        claim = make_claim("plain", condition="true")
        rig.engine.queue.append(claim)
        rig.exchange.hint()
        await rig.until(asked.is_set)
        assert rig.exchange.held[claim.fence].lose()
        go.set()
        await rig.until(lambda: not rig.exchange.held)
        assert handlers.called == []
        assert claim.fence not in rig.engine.settled
        assert rig.metrics.results_discarded == 0


async def test_a_system_without_a_process_or_a_thread_for_a_condition_costs_no_attempt_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> bool:
        raise BlockingIOError(11, os.strerror(11))

    monkeypatch.setattr(conditions, "judge", fails)
    monkeypatch.setattr(conditions, "is_quick", lambda *_: False)
    async with Rig(Counted().registry) as rig:
        claim = make_claim("plain", condition="true")
        await rig.work_off(claim)
        assert rig.engine.error_of(claim).retryable is True
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
        rig.executor._threads._idle = rig.executor._threads._threads = 0
        refused = make_claim("plain", condition="true")
        await rig.work_off(refused)
        assert rig.engine.settled[refused.fence].kind is OutcomeKind.RELEASE
        assert rig.executor.out_of_threads


def _no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_local_run_skips_what_its_conditions_say_and_what_depends_on_it() -> None:
    def step(name: str, *after: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "dependsOn": list(after), "handler": {"callable": "work"}, **more}

    template = {
        "steps": [
            step("check"),
            step("large", "check", when="context.amount > 1000 && results.check == 'check'"),
            step("small", "check", when="context.amount <= 1000"),
            step("after_large", "large"),
            step("both", "large", "small"),
            step("any", "large", "small", type="deferred_convergence"),
        ]
    }
    runner = LocalRunner(template, registry_of(work=lambda context: context.step_name))
    runner.fail("small")
    run = runner.run({"amount": 5})
    assert (run.state, sorted(run.results)) == ("complete", ["any", "check", "small"])
    assert run.skipped == ["large", "after_large", "both"]
    assert (run.attempts_of("large"), run.attempts_of("small")) == (0, 2)
    failed = LocalRunner({"steps": [step("bad", when="context.no")]}, runner.registry).run()
    assert (failed.state, failed.failures[0].result.error_type) == ("error", "WhenError")
