"""The canonical CRDs: small, described, bounded, and of one mind with the parser and the status builders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasker.controller.tasks.status import PHASES
from tasker.model.template import STEP_NAME
from tasker.model.transitions import TaskState

CRDS = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))


def load(plural: str) -> dict[str, Any]:
    [path] = [path for path in CRDS if path.stem == plural]
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def schema_of(plural: str, part: str) -> dict[str, Any]:
    [version] = load(plural)["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"][part]
    return found


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def every_node(plural: str) -> list[tuple[str, dict[str, Any]]]:
    return [*nodes(schema_of(plural, "spec"), "spec"), *nodes(schema_of(plural, "status"), "status")]


PLURALS = [path.stem for path in CRDS]


def test_the_three_kinds_are_there() -> None:
    assert PLURALS == ["tasks", "tasktemplates", "workerpools"]


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.stem)
def test_client_side_apply_can_take_them(path: Path) -> None:
    assert path.stat().st_size < 200 * 1024


@pytest.mark.parametrize("plural", PLURALS)
def test_every_field_is_described(plural: str) -> None:
    bare = [
        path for path, node in every_node(plural) if not path.endswith(("[]", ".*")) and not node.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("plural", PLURALS)
def test_every_list_that_people_write_is_bounded(plural: str) -> None:
    """The API server estimates what a CEL rule costs from these bounds."""
    unbounded = [
        path
        for path, node in nodes(schema_of(plural, "spec"), "spec")
        if node.get("type") == "array" and "maxItems" not in node
    ]
    assert unbounded == []


@pytest.mark.parametrize("plural", PLURALS)
def test_every_kind_has_status_category_and_columns(plural: str) -> None:
    spec = load(plural)["spec"]
    [version] = spec["versions"]
    assert "status" in version["subresources"]
    assert spec["names"]["categories"] == ["tasker"]
    assert version["additionalPrinterColumns"][-1]["name"] == "Age"


@pytest.mark.parametrize("name", ["a", "a-b", "a_b", "1a", "A", "-a", "a-", "", "a.b", "ä"])
def test_a_step_name_is_one_to_the_schema_when_it_is_one_to_the_parser(name: str) -> None:
    node = schema_of("tasktemplates", "spec")["properties"]["steps"]["items"]["properties"]["name"]
    by_schema = bool(re.search(node["pattern"], name)) and len(name) >= node["minLength"]
    assert by_schema == bool(STEP_NAME.fullmatch(name))


def test_a_task_shows_every_state_and_phase() -> None:
    status = schema_of("tasks", "status")["properties"]
    assert set(status["state"]["enum"]) == {str(state) for state in TaskState}
    assert set(status["phase"]["enum"]) == set(PHASES.values())


def test_the_scale_subresource_points_at_fields_that_exist() -> None:
    [version] = load("workerpools")["spec"]["versions"]
    scale = version["subresources"]["scale"]
    assert "replicas" in schema_of("workerpools", "spec")["properties"]
    assert {"replicas", "selector"} <= set(schema_of("workerpools", "status")["properties"])
    assert scale == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
