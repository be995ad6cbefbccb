"""What a template may say, and the exact words with which anything else is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tasker.errors import InvalidInput, InvalidTemplate
from tasker.model.retry import Backoff
from tasker.model.template import TemplateSpec, parse_template_spec


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


def test_the_revision_is_the_same_for_the_same_content_however_it_is_written() -> None:
    plain = parse(step("a"), step("b", "a"))
    reordered = parse_template_spec(
        {"steps": [{"handler": {"callable": "do"}, "name": "a"}, step("b", "a")], "version": "1.0.0"}
    )
    spelled_out = parse(step("a", timeoutSeconds=300), step("b", "a"))
    by_default = parse(step("a"), step("b", "a"), defaults={"timeoutSeconds": 300})
    assert len({plain.revision, reordered.revision, spelled_out.revision, by_default.revision}) == 1
    # Pinned, because it is stored: another value here makes every template of every installation a new revision.
    assert plain.revision == "c74e460d3954ecfa"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(parse(step("a"), step("b")), id="an-arrow"),
        pytest.param(parse(step("a"), step("c", "a")), id="a-name"),
        pytest.param(parse(step("a"), step("b", "a"), version="1.0.1"), id="the-version"),
        pytest.param(parse(step("a", timeoutSeconds=301), step("b", "a")), id="a-timeout"),
        pytest.param(parse(step("a", retry={"maxAttempts": 4}), step("b", "a")), id="a-retry"),
        pytest.param(parse(step("b", "a"), step("a")), id="the-order-of-the-steps"),
    ],
)
def test_the_revision_changes_with_what_runs(changed: TemplateSpec) -> None:
    assert changed.revision != parse(step("a"), step("b", "a")).revision


def test_the_revision_does_not_change_with_what_does_not_run() -> None:
    assert parse(step("a"), description="new words", ttlSecondsAfterFinished=60).revision == parse(step("a")).revision


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
