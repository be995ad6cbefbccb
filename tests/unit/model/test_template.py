"""What a template may say, and the exact words with which anything else is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tasker.errors import InvalidInput, InvalidTemplate
from tasker.model.retry import Backoff
from tasker.model.template import (
    FailureRule,
    LifecycleSpec,
    StalenessAction,
    StepType,
    TemplateSpec,
    parse_template_spec,
)


def step(name: str, *after: str, **more: Any) -> dict[str, Any]:
    written: dict[str, Any] = {"name": name, "handler": {"callable": "do"}, **more}
    return {**written, "dependsOn": list(after)} if after else written


def parse(*steps: Any, **spec: Any) -> TemplateSpec:
    return parse_template_spec({"steps": list(steps), **spec})


def refusal(written: Any) -> str:
    with pytest.raises(InvalidTemplate) as caught:
        parse_template_spec(written)
    error = caught.value
    assert isinstance(error, InvalidInput)
    assert str(error) == f"{error.path}: {error.reason}"
    return str(error)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        pytest.param(
            [step("a", "b"), step("b", "a")], "spec.steps: dependencies form a cycle: a → b → a", id="two-steps"
        ),
        pytest.param(
            [step("a", "c"), step("b", "a"), step("c", "b")],
            "spec.steps: dependencies form a cycle: a → b → c → a",
            id="three-steps-in-the-order-they-would-run",
        ),
        pytest.param(
            [step("root"), step("tail", "z"), step("x", "z", "root"), step("y", "x"), step("z", "y")],
            "spec.steps: dependencies form a cycle: x → y → z → x",
            id="only-the-cycle-not-what-hangs-on-it",
        ),
        pytest.param(
            [step("a", "b"), step("b", "a"), step("c", "d"), step("d", "c")],
            "spec.steps: dependencies form a cycle: a → b → a",
            id="the-first-of-two",
        ),
        pytest.param(
            [step("a", "missing")], "spec.steps[0].dependsOn[0]: unknown step 'missing'", id="unknown-dependency"
        ),
        pytest.param(
            [step("a"), step("b", "a", "A")], "spec.steps[1].dependsOn[1]: unknown step 'A'", id="names-are-exact"
        ),
        pytest.param(
            [step("a"), step("b", "a", "b")],
            "spec.steps[1].dependsOn[1]: step 'b' depends on itself",
            id="depends-on-itself",
        ),
        pytest.param(
            [step("a"), step("b", "a", "a")], "spec.steps[1].dependsOn[1]: 'a' is named twice", id="dependency-twice"
        ),
        pytest.param(
            [step("a"), step("b"), step("a")],
            "spec.steps[2].name: duplicate step name 'a' (first at spec.steps[0])",
            id="duplicate-name",
        ),
        pytest.param(
            [step("Pay")],
            "spec.steps[0].name: 'Pay' must be lower-case letters, digits, '-' or '_', "
            "with a letter or digit at both ends",
            id="upper-case-name",
        ),
        pytest.param(
            [step("pay-")],
            "spec.steps[0].name: 'pay-' must be lower-case letters, digits, '-' or '_', "
            "with a letter or digit at both ends",
            id="name-ends-with-a-dash",
        ),
        pytest.param([step("")], "spec.steps[0].name: must not be empty", id="empty-name"),
        pytest.param([step("a" * 64)], "spec.steps[0].name: is longer than 63 characters", id="long-name"),
        pytest.param([step("a"), step(1)], "spec.steps[1].name: must be a string", id="name-of-another-type"),  # type: ignore[arg-type]
        pytest.param(["a"], "spec.steps[0]: must be an object", id="step-of-another-type"),
        pytest.param([{"handler": {"callable": "do"}}], "spec.steps[0].name: is required", id="no-name"),
        pytest.param([{"name": "a"}], "spec.steps[0].handler: is required", id="no-handler"),
        pytest.param([{"name": "a", "handler": {}}], "spec.steps[0].handler.callable: is required", id="no-callable"),
        pytest.param(
            [{"name": "a", "handler": {"callable": ""}}],
            "spec.steps[0].handler.callable: must not be empty",
            id="empty-callable",
        ),
        pytest.param([step("a", retries=3)], "spec.steps[0].retries: is not a known field", id="unknown-field"),
        pytest.param(
            [step("a", depends_on=["b"]), step("b")],
            "spec.steps[0].depends_on: is not a known field",
            id="field-names-are-as-in-the-resource",
        ),
        pytest.param([step("a", dependsOn="b")], "spec.steps[0].dependsOn: must be a list", id="depends-on-text"),
        pytest.param(
            [step("a", dependsOn=[1])], "spec.steps[0].dependsOn[0]: must be a string", id="depends-on-a-number"
        ),
        pytest.param([step("a", retry=3)], "spec.steps[0].retry: must be an object", id="retry-of-another-type"),
        pytest.param(
            [step("a", retry={"maxAttempts": 0})],
            "spec.steps[0].retry.maxAttempts: must be at least 1",
            id="no-attempts",
        ),
        pytest.param(
            [step("a", retry={"maxAttempts": 101})],
            "spec.steps[0].retry.maxAttempts: must be at most 100",
            id="too-many-attempts",
        ),
        pytest.param(
            [step("a", retry={"maxAttempts": "3"})],
            "spec.steps[0].retry.maxAttempts: must be a whole number",
            id="attempts-in-quotes",
        ),
        pytest.param(
            [step("a", retry={"retryable": "yes"})],
            "spec.steps[0].retry.retryable: must be true or false",
            id="retryable-in-words",
        ),
        pytest.param(
            [step("a", retry={"jitter": 1.5})], "spec.steps[0].retry.jitter: must be at most 1", id="jitter-over-one"
        ),
        pytest.param(
            [step("a", retry={"jitter": "0.1"})], "spec.steps[0].retry.jitter: must be a number", id="jitter-in-quotes"
        ),
        pytest.param(
            [step("a", retry={"backoff": "quadratic"})],
            "spec.steps[0].retry.backoff: must be one of 'none', 'linear', 'exponential' or 'fibonacci'",
            id="unknown-backoff",
        ),
        pytest.param(
            [step("a", retry={"baseMs": 60_000})],
            "spec.steps[0].retry.maxMs: 30000 is less than baseMs 60000",
            id="base-over-maximum",
        ),
        pytest.param(
            [step("a", timeoutSeconds=1.5)],
            "spec.steps[0].timeoutSeconds: must be a whole number",
            id="timeout-in-fractions",
        ),
        pytest.param([step("a", timeoutSeconds=0)], "spec.steps[0].timeoutSeconds: must be at least 1", id="no-time"),
        pytest.param(
            [step("a", scheduleTimeoutSeconds=604_801)],
            "spec.steps[0].scheduleTimeoutSeconds: must be at most 604800",
            id="schedule-timeout-over-a-week",
        ),
        pytest.param(
            [{"name": "a", "handler": {"callable": "do", "initialization": [1]}}],
            "spec.steps[0].handler.initialization: must be an object",
            id="initialization-of-another-type",
        ),
        pytest.param(
            [{"name": "a", "handler": {"callable": "do", "initialization": {"rates": [1, float("nan")]}}}],
            "spec.steps[0].handler.initialization.rates[1]: is nan, which JSON does not have",
            id="initialization-that-is-not-json",
        ),
        pytest.param(
            [{"name": "a", "handler": {"callable": "do\0"}}],
            "spec.steps[0].handler.callable: holds the character U+0000, which Postgres cannot store",
            id="nul-in-a-name",
        ),
        pytest.param(
            [step("a", description="no \0")],
            "spec.steps[0].description: holds the character U+0000, which Postgres cannot store",
            id="description-that-is-no-text",
        ),
        pytest.param(
            [step("a", description="x" * 4097)],
            "spec.steps[0].description: is longer than 4096 characters",
            id="long-description",
        ),
        pytest.param(
            [step("a", type="approval")],
            "spec.steps[0].type: must be one of 'standard', 'decision', 'deferred_convergence', 'batchable' or"
            " 'batch_worker'",
            id="unknown-type",
        ),
        pytest.param(
            [step("a", type=1)],
            "spec.steps[0].type: must be one of 'standard', 'decision', 'deferred_convergence', 'batchable' or"
            " 'batch_worker'",
            id="type-of-another-type",
        ),
        pytest.param(
            [step("a", type="batchable"), step("b", dependsOn=["a"])],
            "spec.steps[0].type: a batchable step needs a batch_worker that depends on it: 'a' has none",
            id="batchable-without-worker",
        ),
        pytest.param(
            [
                step("a", type="batchable"),
                step("b", type="batch_worker", dependsOn=["a"]),
                step("c", type="batch_worker", dependsOn=["a"]),
            ],
            "spec.steps[0].type: a batchable step has one batch_worker, and b, c depend on 'a'",
            id="two-workers",
        ),
        pytest.param(
            [
                step("a", type="batchable", batch={"workerTemplate": "c"}),
                step("b", type="batch_worker", dependsOn=["a"]),
                step("c"),
            ],
            "spec.steps[0].batch.workerTemplate: 'c' is not the batch_worker 'b'",
            id="other-worker",
        ),
        pytest.param(
            [step("a"), step("b", type="batch_worker", dependsOn=["a"])],
            "spec.steps[1].dependsOn: a batch_worker depends on one step, which is batchable",
            id="worker-without-batchable",
        ),
        pytest.param(
            [
                step("a", type="batchable"),
                step("b", type="batch_worker", dependsOn=["a", "c"]),
                step("c"),
            ],
            "spec.steps[1].dependsOn: a batch_worker depends on one step, which is batchable",
            id="worker-of-two",
        ),
        pytest.param(
            [step("a", type="batchable"), step("w" * 58, type="batch_worker", dependsOn=["a"])],
            "spec.steps[1].name: has 58 characters; a batch_worker has 57 at most, for numbers follow",
            id="long-worker-name",
        ),
        pytest.param(
            [step("a", batch={})],
            "spec.steps[0].batch: is for batchable steps, and this is standard",
            id="batch-of-a-standard-step",
        ),
        pytest.param(
            [step("a"), step("route", "a", type="decision")],
            "spec.steps[1].type: a decision needs steps to choose from, and none depends on 'route'",
            id="decision-without-dependents",
        ),
        pytest.param(
            [step("a"), step("join", type="deferred_convergence")],
            "spec.steps[1].dependsOn: must not be empty: a deferred_convergence joins branches",
            id="convergence-of-nothing",
        ),
        pytest.param(
            [step("a", type="decision"), step("b", "a", "c")],
            "spec.steps[1].dependsOn[1]: unknown step 'c'",
            id="dependencies-before-types",
        ),
        pytest.param([step("a", when=True)], "spec.steps[0].when: must be a string", id="condition-of-another-type"),
        pytest.param([step("a", when="")], "spec.steps[0].when: must not be empty", id="empty-condition"),
        pytest.param(
            [step("a", when=f"true{' ' * 4093}")],
            "spec.steps[0].when: is longer than 4096 characters",
            id="long-condition",
        ),
        pytest.param(
            [step("a", when="context.text == '\0'")],
            "spec.steps[0].when: holds the character U+0000, which Postgres cannot store",
            id="condition-that-is-no-text",
        ),
        pytest.param(
            [step("a"), step("b", "a", when="results.a.ok & context.ok")],
            "spec.steps[1].when: is not CEL: line 1, column 14: Syntax error: token recognition error at: '& '",
            id="condition-that-does-not-parse",
        ),
        pytest.param(
            [step("a"), step("b", "a", when="steps.a.ok")],
            "spec.steps[1].when: reads 'steps'; there are only 'context' and 'results'",
            id="condition-over-another-variable",
        ),
    ],
)
def test_steps_are_refused_with_the_place_and_the_reason(steps: list[Any], message: str) -> None:
    assert refusal({"steps": steps}) == message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param([], "spec: must be an object", id="not-an-object"),
        pytest.param({}, "spec.steps: is required", id="no-steps"),
        pytest.param({"steps": []}, "spec.steps: must not be empty", id="empty-steps"),
        pytest.param({"steps": {"a": {}}}, "spec.steps: must be a list", id="steps-of-another-type"),
        pytest.param(
            {"version": "1.0", "steps": [step("a")]},
            "spec.version: '1.0' is not a semantic version like 1.0.0",
            id="two-part-version",
        ),
        pytest.param(
            {"version": "v1.0.0", "steps": [step("a")]},
            "spec.version: 'v1.0.0' is not a semantic version like 1.0.0",
            id="version-with-a-letter",
        ),
        pytest.param({"version": 1.0, "steps": [step("a")]}, "spec.version: must be a string", id="version-number"),
        pytest.param({"stepz": [], "steps": [step("a")]}, "spec.stepz: is not a known field", id="unknown-field"),
        pytest.param({"defaults": 3, "steps": [step("a")]}, "spec.defaults: must be an object", id="defaults"),
        pytest.param(
            {"defaults": {"retries": 3}, "steps": [step("a")]},
            "spec.defaults.retries: is not a known field",
            id="unknown-default",
        ),
        pytest.param(
            {"defaults": {"retry": "often"}, "steps": [step("a")]},
            "spec.defaults.retry: must be an object",
            id="default-retry-of-another-type",
        ),
        pytest.param(
            {"defaults": {"retry": {"maxAttempts": 0}}, "steps": [step("a")]},
            "spec.defaults.retry.maxAttempts: must be at least 1",
            id="default-attempts",
        ),
        pytest.param(
            {"defaults": {"handler": {"callable": "do"}}, "steps": [step("a")]},
            "spec.defaults.handler.callable: is not a known field",
            id="a-default-handler-has-only-configuration",
        ),
        pytest.param(
            {"defaults": {"handler": {"initialization": 1}}, "steps": [step("a")]},
            "spec.defaults.handler.initialization: must be an object",
            id="default-initialization",
        ),
        pytest.param(
            {"defaults": {"timeoutSeconds": "5"}, "steps": []},
            "spec.defaults.timeoutSeconds: must be a whole number",
            id="default-timeout-of-another-type",
        ),
        pytest.param(
            {"onFailure": "wait", "steps": [step("a")]},
            "spec.onFailure: must be one of 'fail' or 'block'",
            id="unknown-failure-rule",
        ),
        pytest.param({"lifecycle": 60, "steps": [step("a")]}, "spec.lifecycle: must be an object", id="lifecycle"),
        pytest.param(
            {"lifecycle": {"maxMinutes": 1}, "steps": [step("a")]},
            "spec.lifecycle.maxMinutes: is not a known field",
            id="unknown-limit",
        ),
        pytest.param(
            {"lifecycle": {"maxDurationSeconds": 0}, "steps": [step("a")]},
            "spec.lifecycle.maxDurationSeconds: must be at least 1",
            id="no-duration",
        ),
        pytest.param(
            {"lifecycle": {"maxWaitingForWorkerSeconds": 31_536_001}, "steps": [step("a")]},
            "spec.lifecycle.maxWaitingForWorkerSeconds: must be at most 31536000",
            id="limit-over-a-year",
        ),
        pytest.param(
            {"lifecycle": {"maxStepsInProcessSeconds": "60"}, "steps": [step("a")]},
            "spec.lifecycle.maxStepsInProcessSeconds: must be a whole number",
            id="limit-of-another-type",
        ),
        pytest.param(
            {"lifecycle": {"stalenessAction": "page"}, "steps": [step("a")]},
            "spec.lifecycle.stalenessAction: must be one of 'dlq', 'error' or 'none'",
            id="unknown-staleness-action",
        ),
        pytest.param(
            {"lifecycle": {"maxBlockedSeconds": 60}, "steps": [step("a")]},
            "spec.lifecycle.maxBlockedSeconds: needs onFailure: block, else no run is ever blocked",
            id="blocked-for-a-time-and-never-blocked",
        ),
    ],
)
def test_specs_are_refused_with_the_place_and_the_reason(spec: Any, message: str) -> None:
    assert refusal(spec) == message


def test_initialization_may_be_nested_32_levels_deep_and_not_33() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {} if levels == 1 else {"in": nested(levels - 1)}

    parse({"name": "a", "handler": {"callable": "do", "initialization": nested(32)}})
    message = refusal({"steps": [{"name": "a", "handler": {"callable": "do", "initialization": nested(33)}}]})
    assert message == f"spec.steps[0].handler.initialization{'.in' * 32}: is nested deeper than 32 levels"


def test_what_is_left_out_gets_the_documented_defaults() -> None:
    (only,) = parse(step("a")).steps
    assert (only.retry.retryable, only.retry.max_attempts, only.retry.backoff) == (True, 3, Backoff.EXPONENTIAL)
    assert (only.retry.base_ms, only.retry.max_ms, only.retry.jitter) == (1_000, 30_000, 0.1)
    assert (only.timeout_seconds, only.schedule_timeout_seconds) == (300, None)
    assert (only.handler.method, only.handler.resolver, only.handler.initialization) == ("call", None, {})
    assert (only.type, only.when, only.description) == (StepType.STANDARD, None, "")


def test_without_a_word_on_its_life_a_run_fails_and_has_no_limit() -> None:
    spec = parse(step("a"))
    assert (spec.on_failure, spec.lifecycle) == (FailureRule.FAIL, LifecycleSpec())
    assert spec.lifecycle.staleness_action is StalenessAction.DLQ
    assert set(spec.lifecycle.model_dump(exclude={"staleness_action"}).values()) == {None}


def test_a_life_with_limits_makes_another_revision() -> None:
    lifecycle = {
        "maxDurationSeconds": 1,
        "maxBlockedSeconds": 2,
        "maxWaitingForWorkerSeconds": 3,
        "maxWaitingForDependenciesSeconds": 4,
        "maxWaitingForRetrySeconds": 5,
        "maxStepsInProcessSeconds": 31_536_000,
        "stalenessAction": "error",
    }
    spec = parse(step("a"), onFailure="block", lifecycle=lifecycle)
    assert spec.on_failure is FailureRule.BLOCK
    assert spec.lifecycle.model_dump(mode="json", by_alias=True) == lifecycle
    assert len({spec.revision, parse(step("a"), onFailure="block").revision, parse(step("a")).revision}) == 3


def test_a_template_of_branches_that_join_again() -> None:
    spec = parse(
        step("route", type="decision", description="Who is asked."),
        step("approve", "route", type="standard", when=f"context.amount < 1000{' ' * 4075}"),
        step("review", "route"),
        step("done", "approve", "review", type="deferred_convergence"),
    )
    assert [each.type for each in spec.steps] == ["decision", "standard", "standard", "deferred_convergence"]
    assert len(spec.steps[1].when or "") == 4096
    assert spec.steps[0].description == "Who is asked."


def test_defaults_are_merged_under_each_step_and_its_own_words_win() -> None:
    spec = parse(
        step("plain"),
        {
            "name": "own",
            "handler": {"callable": "do", "initialization": {"rate": 2, "own": True}},
            "timeoutSeconds": 7,
            "retry": {"maxAttempts": 1},
        },
        defaults={
            "timeoutSeconds": 60,
            "retry": {"maxAttempts": 9, "backoff": "linear"},
            "handler": {"initialization": {"rate": 1, "shared": "x"}},
        },
    )
    plain, own = spec.steps
    assert (plain.timeout_seconds, own.timeout_seconds) == (60, 7)
    assert (plain.retry.max_attempts, plain.retry.backoff) == (9, Backoff.LINEAR)
    assert (own.retry.max_attempts, own.retry.backoff) == (1, Backoff.LINEAR)
    assert plain.handler.initialization == {"rate": 1, "shared": "x"}
    assert own.handler.initialization == {"rate": 2, "own": True, "shared": "x"}


def test_parsing_leaves_what_was_written_as_it_was() -> None:
    written = {"defaults": {"retry": {"maxAttempts": 2}, "timeoutSeconds": 5}, "steps": [step("a"), step("b", "a")]}
    before = repr(written)
    parse_template_spec(written)
    assert repr(written) == before


def test_a_fault_in_a_step_is_named_there_even_when_defaults_are_merged_in() -> None:
    defaults = {"retry": {"maxAttempts": 2}, "handler": {"initialization": {"a": 1}}}
    assert refusal({"defaults": defaults, "steps": [step("a", retry=3)]}) == "spec.steps[0].retry: must be an object"
    wrong = {"name": "a", "handler": {"callable": "do", "initialization": "x"}}
    assert (
        refusal({"defaults": defaults, "steps": [wrong]}) == "spec.steps[0].handler.initialization: must be an object"
    )


def test_a_step_that_is_not_retryable_starts_once_whatever_else_it_says() -> None:
    (only,) = parse(step("a", retry={"retryable": False, "maxAttempts": 5})).steps
    assert only.retry.effective_attempts == 1


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3", "1.0.0-rc.1", "1.0.0+build.5", "10.20.30-alpha-1+x.y"])
def test_semantic_versions_are_accepted(version: str) -> None:
    assert parse(step("a"), version=version).version == version


IN_EACH = {
    "production": {
        "ALL": {
            "timeoutSeconds": 60,
            "retry": {"maxAttempts": 9, "backoff": "linear"},
            "handler": {"initialization": {"rate": 2, "shared": "x"}},
        },
        "own": {"timeoutSeconds": 7, "retry": {"maxAttempts": 1}, "handler": {"initialization": {"rate": 3}}},
    },
    "test": {"own": {"retry": {"retryable": False}}},
}


def in_environment(environment: str | None, **spec: Any) -> TemplateSpec:
    plain = {"name": "plain", "handler": {"callable": "do", "method": "run", "initialization": {"rate": 1, "mine": 0}}}
    own = step("own", "plain", timeoutSeconds=5)
    return parse_template_spec({"steps": [plain, own], "environments": IN_EACH, **spec}, environment=environment)


def test_what_an_environment_says_is_put_over_the_steps_first_of_all_and_then_of_one() -> None:
    plain, own = in_environment("production").steps
    assert (plain.timeout_seconds, own.timeout_seconds) == (60, 7)
    assert (plain.retry.max_attempts, plain.retry.backoff, plain.retry.base_ms) == (9, Backoff.LINEAR, 1_000)
    assert (own.retry.max_attempts, own.retry.backoff) == (1, Backoff.LINEAR)
    assert plain.handler.initialization == {"rate": 2, "mine": 0, "shared": "x"}
    assert own.handler.initialization == {"rate": 3, "shared": "x"}
    assert (plain.handler.method, own.depends_on) == ("run", ("plain",))


def test_what_an_environment_leaves_out_stays() -> None:
    unchanged, own = in_environment("test").steps
    assert unchanged == in_environment(None).steps[0]
    assert own.retry == in_environment(None).steps[1].retry.model_copy(update={"retryable": False})
    assert (own.timeout_seconds, own.handler.initialization) == (5, {})


def test_an_environment_wins_over_defaults() -> None:
    defaults = {"timeoutSeconds": 90, "handler": {"initialization": {"shared": "default", "other": 1}}}
    plain, _ = in_environment("production", defaults=defaults).steps
    assert plain.timeout_seconds == 60
    assert plain.handler.initialization == {"rate": 2, "mine": 0, "shared": "x", "other": 1}


def test_other_environments_change_nothing() -> None:
    without = in_environment("development", environments={})
    assert in_environment("production", environments=None) == without
    assert in_environment("development") == in_environment(None) == without
    assert in_environment("development").revision == in_environment(None).revision == without.revision
    assert len({in_environment(name).revision for name in ("production", "test", "development")}) == 3


@pytest.mark.parametrize(
    ("environments", "message"),
    [
        pytest.param([], "spec.environments: must be an object", id="not-an-object"),
        pytest.param(
            {"prod": {}},
            "spec.environments.prod: must be one of test, development, production",
            id="unknown-environment",
        ),
        pytest.param({"test": None}, "spec.environments.test: must be an object", id="environment-of-another-type"),
        pytest.param({"test": {"ALL": 3}}, "spec.environments.test.ALL: must be an object", id="step-of-another-type"),
        pytest.param({"test": {"b": {}}}, "spec.environments.test.b: unknown step 'b'", id="unknown-step"),
        pytest.param({"test": {"all": {}}}, "spec.environments.test.all: unknown step 'all'", id="all-is-in-capitals"),
        pytest.param(
            {"test": {"a": {"dependsOn": []}}},
            "spec.environments.test.a.dependsOn: is not a known field",
            id="what-no-environment-changes",
        ),
        pytest.param(
            {"test": {"ALL": {"handler": {"callable": "other"}}}},
            "spec.environments.test.ALL.handler.callable: is not a known field",
            id="nor-the-callable",
        ),
        pytest.param(
            {"test": {"a": {"retry": {"maxAttempts": 0}}}},
            "spec.environments.test.a.retry.maxAttempts: must be at least 1",
            id="no-attempts",
        ),
        pytest.param(
            {"test": {"a": {"timeoutSeconds": None}}},
            "spec.environments.test.a.timeoutSeconds: must be a whole number",
            id="null",
        ),
        pytest.param(
            {"test": {"ALL": {"handler": {"initialization": {"to": float("inf")}}}}},
            "spec.environments.test.ALL.handler.initialization.to: is inf, which JSON does not have",
            id="initialization-that-is-not-json",
        ),
        pytest.param(
            {"test": {"ALL": {"retry": {"baseMs": 30_001}}, "a": {"timeoutSeconds": 1}}},
            "spec.environments.test.ALL.retry: makes maxMs 30000 less than baseMs 30001 for step 'a'",
            id="base-over-the-steps-maximum",
        ),
        pytest.param(
            {"test": {"ALL": {"retry": {"baseMs": 50}}, "a": {"retry": {"maxMs": 49}}}},
            "spec.environments.test.a.retry: makes maxMs 49 less than baseMs 50 for step 'a'",
            id="maximum-under-the-base-of-all",
        ),
        pytest.param(
            {"test": {"ALL": {"retry": {"maxMs": 2_000}}, "a": {"retry": {"baseMs": 2_001}}}},
            "spec.environments.test.a.retry: makes maxMs 2000 less than baseMs 2001 for step 'a'",
            id="base-over-the-maximum-of-all",
        ),
    ],
)
def test_environments_are_refused_with_the_place_and_the_reason_wherever_one_is(
    environments: Any, message: str
) -> None:
    assert refusal({"steps": [step("a")], "environments": environments}) == message


def test_what_is_wrong_of_all_may_be_put_right_for_each() -> None:
    written = {"ALL": {"retry": {"baseMs": 60_000}}, "a": {"retry": {"maxMs": 90_000}}}
    spec = parse_template_spec({"steps": [step("a")], "environments": {"test": written}}, environment="test")
    assert (spec.steps[0].retry.base_ms, spec.steps[0].retry.max_ms) == (60_000, 90_000)


def test_the_revision_is_the_same_for_the_same_content_however_it_is_written() -> None:
    plain = parse(step("a"), step("b", "a"))
    reordered = parse_template_spec(
        {"steps": [{"handler": {"callable": "do"}, "name": "a"}, step("b", "a")], "version": "1.0.0"}
    )
    spelled_out = parse(step("a", timeoutSeconds=300), step("b", "a"))
    by_default = parse(step("a"), step("b", "a"), defaults={"timeoutSeconds": 300})
    assert len({plain.revision, reordered.revision, spelled_out.revision, by_default.revision}) == 1
    # Pinned, because it is stored: another value here makes every template of every installation a new revision.
    assert plain.revision == "da5e60cd8a3d71bb"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(parse(step("a"), step("b")), id="an-arrow"),
        pytest.param(parse(step("a"), step("c", "a")), id="a-name"),
        pytest.param(parse(step("a"), step("b", "a"), version="1.0.1"), id="the-version"),
        pytest.param(parse(step("a", timeoutSeconds=301), step("b", "a")), id="a-timeout"),
        pytest.param(parse(step("a", retry={"maxAttempts": 4}), step("b", "a")), id="a-retry"),
        pytest.param(parse(step("b", "a"), step("a")), id="the-order-of-the-steps"),
        pytest.param(parse(step("a", type="decision"), step("b", "a")), id="a-type"),
        pytest.param(parse(step("a"), step("b", "a", when="true")), id="a-condition"),
        pytest.param(parse(step("a"), step("b", "a"), identity={"strategy": "strict"}), id="the-identity"),
        pytest.param(parse(step("a"), step("b", "a"), concurrency={"maxTasks": 1}), id="the-limit"),
    ],
)
def test_the_revision_changes_with_what_runs(changed: TemplateSpec) -> None:
    assert changed.revision != parse(step("a"), step("b", "a")).revision


def test_the_revision_does_not_change_with_what_does_not_run() -> None:
    described = parse(step("a", description="old words"), description="new words", ttlSecondsAfterFinished=60)
    assert described.revision == parse(step("a")).revision
    silent = parse(step("a"), identity={"strategy": "alwaysUnique"}, concurrency={})
    assert silent.revision == parse(step("a")).revision


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"identity": {"strategy": "loose"}}, "spec.identity.strategy: must be one of"),
        ({"identity": {"windowSeconds": 60}}, "spec.identity.windowSeconds: needs a strategy other than alwaysUnique"),
        ({"identity": {"strategy": "strict", "windowSeconds": 0}}, "spec.identity.windowSeconds: must be at least 1"),
        ({"identity": {"key": "x"}}, "spec.identity.key: is not a known field"),
        ({"concurrency": {"maxTasks": 0}}, "spec.concurrency.maxTasks: must be at least 1"),
        ({"concurrency": {"maxTasks": 1.5}}, "spec.concurrency.maxTasks: must be a whole number"),
        ({"concurrency": {"maxTask": 1}}, "spec.concurrency.maxTask: is not a known field"),
    ],
)
def test_a_wrong_identity_or_limit_is_refused_with_the_place_and_the_reason(
    written: dict[str, Any], message: str
) -> None:
    assert refusal({"steps": [step("a")], **written}).startswith(message)


def test_a_template_of_10000_steps_is_parsed_in_under_a_second() -> None:
    steps = [
        step(f"s{layer}-{place}", *(f"s{layer - 1}-{(place + k) % 100}" for k in range(3) if layer))
        for layer in range(100)
        for place in range(100)
    ]
    began = time.process_time()
    spec = parse_template_spec({"steps": steps, "defaults": {"timeoutSeconds": 60}})
    assert len(spec.steps) == 10_000 and spec.revision
    assert time.process_time() - began < 1.0


def test_a_cycle_through_10000_steps_is_found_without_recursion() -> None:
    steps = [step(f"s{place}", f"s{(place - 1) % 10_000}") for place in range(10_000)]
    message = refusal({"steps": steps})
    assert message.startswith("spec.steps: dependencies form a cycle: s0 → s1 → s2")
    assert message.endswith("s9998 → s9999 → s0")
