"""What a template's inputSchema refuses becomes no row; what it was checked against is what the run gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from support.engine import NAMESPACE, Lab, step
from tasker.engine import inputs
from tasker.engine.inputs import CheckedInput
from tasker.engine.templates import step_rows
from tasker.errors import Busy, InvalidContext, TemplateNotFound
from tasker.model.schemas import context_fault
from tasker.model.task import TaskRequest
from tasker.model.template import parse_template_spec

POSITIVE = {"type": "object", "properties": {"total": {"type": "number", "minimum": 0}}, "required": ["total"]}
LABORIOUS = {"properties": {"numbers": {"items": {"type": "integer"}}}}
NUMBERS = {"numbers": [1] * 5000}


async def refusal(lab: Lab, **request: Any) -> tuple[str, str]:
    with pytest.raises(InvalidContext) as caught:
        await lab.submit(**request)
    return caught.value.pointer, caught.value.reason


async def runs(lab: Lab) -> int:
    count: int = await lab.value("select count(*) from tasker.tasks")
    return count


async def test_a_context_against_the_schema_is_refused_and_no_row_is_written(lab: Lab) -> None:
    await lab.template(step("a"), inputSchema=POSITIVE)
    assert await refusal(lab, context={"total": -1}) == ("/total", "must be at least 0")
    assert await refusal(lab) == ("/total", "is required")
    good, bad = (TaskRequest(template_name="order", context={"total": total}) for total in (1, "1"))
    with pytest.raises(InvalidContext, match=r"^spec\.context/total: must be a number, not a string$"):
        await lab.engine.tasks.submit(NAMESPACE, [good, bad, good])
    assert await runs(lab) == 0, "all or none"
    [one, other] = await lab.engine.tasks.submit(NAMESPACE, [good, good])
    assert (one.created, one.context_fault, other.created) == (True, None, True)
    assert await runs(lab) == 2


async def test_where_the_template_warns_the_run_is_made_and_the_fault_told_once(lab: Lab) -> None:
    await lab.template(step("a"), inputSchema=POSITIVE, schemaEnforcement="warn")
    request = TaskRequest(template_name="order", context={"total": -1}, origin_uid="uid-1")
    [first] = await lab.engine.tasks.submit(NAMESPACE, [request])
    assert first.created
    assert str(first.context_fault) == "spec.context/total: must be at least 0"
    [again] = await lab.engine.tasks.submit(NAMESPACE, [request])
    assert (again.task_uuid, again.created, again.context_fault) == (first.task_uuid, False, None)


async def test_where_the_template_does_not_look_anything_goes(lab: Lab) -> None:
    await lab.template(step("a"), inputSchema=POSITIVE, schemaEnforcement="off")
    [made] = await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="order", context={"total": -1})])
    assert (made.created, made.context_fault) == (True, None)


async def test_each_version_has_its_own_schema_and_a_name_that_is_not_there_none(lab: Lab) -> None:
    await lab.template(step("a"), version="1.0.0", inputSchema=POSITIVE)
    await lab.template(step("a"), version="2.0.0")
    await lab.template(step("b"), name="other", inputSchema={"required": ["b"]})
    assert await refusal(lab, template_version="1.0.0") == ("/total", "is required")
    assert await refusal(lab, template="other") == ("/b", "is required")
    await lab.submit()
    await lab.submit(template_version="2.0.0")
    for request in ({"template": "missing"}, {"template_version": "3.0.0"}):
        with pytest.raises(TemplateNotFound):
            await lab.submit(**request)
    with pytest.raises(TemplateNotFound):
        await lab.submit(namespace="elsewhere")


async def test_rules_that_are_no_longer_kept_are_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "RULES_KEPT", 1)
    for name in ("one", "two"):
        await lab.template(step("a"), name=name, inputSchema={"required": [name]})
    requests = [TaskRequest(template_name=name, context={name: 1}) for name in ("one", "two")]
    for _ in range(2):
        await lab.engine.tasks.submit(NAMESPACE, requests)
        for name in ("one", "two"):
            assert await refusal(lab, template=name) == (f"/{name}", "is required")


async def test_submitting_again_is_harmless_whatever_the_template_asks_by_now(lab: Lab) -> None:
    await lab.template(step("a"))
    task = await lab.submit(context={"total": -1}, origin_uid="uid-1")
    await lab.template(step("a"), inputSchema=POSITIVE)
    request = TaskRequest(template_name="order", context={"total": -1}, origin_uid="uid-1")
    [again] = await lab.engine.tasks.submit(NAMESPACE, [request])
    assert (again.task_uuid, again.created) == (task, False)
    assert await refusal(lab, context={"total": -1}, origin_uid="uid-2") == ("/total", "must be at least 0")


def change_after_each_check(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], Awaitable[object]]
) -> list[int]:
    """Has `change` called with the number of the check between the check and the submission; the numbers so far."""
    check, checks = lab.engine.tasks._inputs.check, list[int]()

    async def checked(namespace: str, requests: Sequence[TaskRequest]) -> list[CheckedInput]:
        answer = await check(namespace, requests)
        checks.append(len(checks) + 1)
        await change(checks[-1])
        return answer

    monkeypatch.setattr(lab.engine.tasks._inputs, "check", checked)
    return checks


async def test_a_run_gets_the_revision_that_its_context_was_checked_against(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.template(step("a"))
    checks = change_after_each_check(lab, monkeypatch, lambda _: lab.template(step("b"), inputSchema=POSITIVE))
    [made] = await lab.engine.tasks.submit(NAMESPACE, [TaskRequest(template_name="order", context={"total": -1})])
    assert checks == [1]
    assert (await lab.steps(made.task_uuid)).keys() == {"a"}
    assert made.context_fault is None
    assert await refusal(lab, context={"total": -1}) == ("/total", "must be at least 0")


async def test_a_template_that_comes_after_the_check_is_not_there_yet(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_after_each_check(lab, monkeypatch, lambda _: lab.template(step("a"), inputSchema=POSITIVE))
    with pytest.raises(TemplateNotFound, match=r"^no template order in namespace shop$"):
        await lab.submit(context={"total": -1})
    assert await runs(lab) == 0
    assert await refusal(lab, context={"total": -1}) == ("/total", "must be at least 0")


async def test_what_takes_long_is_checked_elsewhere_and_holds_up_only_its_like_in_its_namespace(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(schema: Mapping[str, Any], context: Any) -> tuple[str, str] | None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        return context_fault(schema, context)

    monkeypatch.setattr(inputs, "context_fault", held)
    for namespace in (NAMESPACE, "other"):
        await lab.template(step("a"), namespace=namespace, inputSchema=LABORIOUS)
    bad = {"numbers": [*NUMBERS["numbers"], "x"]}
    first = asyncio.create_task(lab.submit(context=bad))
    try:
        await begun.wait()
        for place in (1, 2):
            with pytest.raises(Busy) as caught:
                await lab.submit(context=NUMBERS)
            assert caught.value.seconds == place
        await lab.submit(context={"numbers": [1]})
        await lab.submit(context={"numbers": [1]}, namespace="other")
        second = asyncio.create_task(lab.submit(context=NUMBERS, namespace="other"))
    finally:
        go_on.set()
    with pytest.raises(InvalidContext, match=r"^spec\.context/numbers/5000: must be a whole number"):
        await first
    await second
    await lab.submit(context=NUMBERS)
    assert await runs(lab) == 4


@pytest.mark.parametrize(("enforcement", "expected"), [("enforce", {"type": "null"}), ("warn", None), ("off", None)])
def test_a_steps_result_schema_goes_with_it_where_it_is_to_be_enforced(enforcement: str, expected: Any) -> None:
    spec = parse_template_spec(
        {"steps": [step("a", resultSchema={"type": "null"}), step("b")], "schemaEnforcement": enforcement}
    )
    assert [row["result_schema"] for row in step_rows(spec)] == [expected, None]


async def test_a_template_with_schemas_is_stored_as_it_was_written(lab: Lab) -> None:
    schema = {"$defs": {"b": {"const": 1e23}, "a": {"enum": [-0.0, None]}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    await lab.template(step("a", resultSchema=schema), inputSchema=schema)
    (row,) = await lab.rows("select spec from tasker.templates")
    assert str(row["spec"]["input_schema"]) == str(schema) == str(row["spec"]["steps"][0]["result_schema"])
