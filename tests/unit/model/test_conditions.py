"""What the condition of a step may say, and the words with which anything else is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasker.model.conditions import condition_fault
from tasker.model.limits import CONDITION_LENGTH


@pytest.mark.parametrize(
    "text",
    [
        "context.amount >= 1000.0",
        "has(results.check.ok) && results['fetch-price'].price < context.limit",
        "size(context.items) > 0 ? true : results.check.ok",
        "context.items.exists(item, item.price > context.limit)",
        "context.orders.all(order, order.items.exists(item, item.price > order.limit))",
        "results.all(all, all.all(all, all > 1))",
        "context.names.map(name, name != '', name + context.suffix).size() == 2",
        "type(context.amount) == int || type(context.amount) == double",
        "context.then < timestamp('2031-01-01T00:00:00Z')",
        "{'a': 1u, 'b': 0x1F}[context.key] == 1e3",
        "context.text != 'bare' // and words in a comment",
        "context.text != '''bare''' && context.text != \"it's\"",
        "context.text != r'\\' && context.text != b'\\' bare'",
        "true",
        "\n context.ok\n",
    ],
)
def test_a_condition_reads_the_context_the_results_and_what_its_macros_bind(text: str) -> None:
    assert condition_fault(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("amount > 1", "amount", id="not-in-the-context"),
        pytest.param("context.ok && (amount > (1))", "amount", id="beside-parentheses"),
        pytest.param("amount && (true)", "amount", id="before-a-parenthesis-that-calls-nothing"),
        pytest.param("context.ok || steps.check.ok", "steps", id="only-the-root-of-a-path"),
        pytest.param("context[key]", "key", id="as-an-index"),
        pytest.param("{key: 1}.size() > 0", "key", id="as-a-key"),
        pytest.param("has(inputs.amount)", "inputs", id="in-has"),
        pytest.param("results.all(x, x > y)", "y", id="not-what-the-macro-binds"),
        pytest.param("results.all(x, x > 1) && x", "x", id="after-its-macro"),
        pytest.param("x.all(x, x > 1)", "x", id="before-its-macro"),
        pytest.param("results.all(x, [1].all(y, y > x) && y)", "y", id="outside-the-inner-macro"),
        pytest.param("all(x, 1)", "x", id="a-function-called-as-a-macro-is"),
        pytest.param("context.text == r'\\' && bare", "bare", id="after-a-raw-string"),
        pytest.param("context.text == '''it's''' && bare", "bare", id="after-a-long-string"),
        pytest.param("true // 'no string begins here\n && bare", "bare", id="after-a-comment"),
        pytest.param(".context.ok", ".context", id="from-the-root-container"),
        pytest.param("second || first", "second", id="the-first-of-two"),
    ],
)
def test_any_other_variable_is_named(text: str, name: str) -> None:
    assert condition_fault(text) == f"reads {name!r}; there are only 'context' and 'results'"


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("context.amount >", "is not CEL: line 1, column 17: Syntax error: mismatched input '<EOF>' expecting {'[',"),
        ("context.ok and results.ok", "is not CEL: line 1, column 12: Syntax error: mismatched input 'and' expecting "),
        ("context.ok &&\n  (results.ok", "is not CEL: line 2, column 14: Syntax error: "),
        ("context.kind = 'a'", "is not CEL: line 1, column 14: Syntax error: token recognition error at: '= '"),
        ("'open\n", "is not CEL: line 1, column 1: Syntax error: token recognition error at: "),
        ("   ", "is not CEL: line 1, column 4: Syntax error: mismatched input '<EOF>' expecting "),
        ("ERROR: <input>:7:7: mine", "is not CEL: line 1, column 6: Syntax error: "),
        ("9223372036854775808 > 1", "is not CEL: line 1, column 1: invalid int literal"),
    ],
)
def test_what_does_not_parse_is_refused_with_the_parsers_reason_on_one_line(text: str, begins: str) -> None:
    fault = condition_fault(text)
    assert fault is not None
    assert fault.startswith(begins)
    assert "\n" not in fault


def test_the_reason_is_short_however_much_of_the_text_it_repeats() -> None:
    fault = condition_fault("'" + "a" * (CONDITION_LENGTH - 1))
    assert fault is not None
    assert fault.endswith("aaa…")
    assert len(fault) == len("is not CEL: ") + 256


@pytest.mark.parametrize("opened", ["(", "[", "{1:", "f(", "context.all(x,", "true?1:"])
def test_a_text_that_is_nested_too_deep_is_refused_and_does_no_harm(opened: str) -> None:
    fault = condition_fault(opened * (CONDITION_LENGTH // len(opened)))
    assert fault is not None
    assert "Recursion limit" in fault


def test_the_library_is_imported_for_the_first_condition_and_not_before() -> None:
    code = (
        "import sys, tasker.model.template\n"
        "from tasker.model.template import parse_template_spec\n"
        "step = {'name': 'a', 'handler': {'callable': 'do'}}\n"
        "parse_template_spec({'steps': [step]})\n"
        "before = 'cel' in sys.modules\n"
        "parse_template_spec({'steps': [{**step, 'when': 'true'}]})\n"
        "print(before, 'cel' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["False", "True"]
