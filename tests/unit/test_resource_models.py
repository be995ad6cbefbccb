"""The models of resources and their CRDs are equal, field by field: names, types, bounds, enums, defaults, required.

What a model does not say is listed here with its reason; a field that only one of the two has is always a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tasker.controller.kube.resources.task import TaskSpec, TaskStatus
from tasker.controller.kube.resources.task_template import TaskTemplateStatus, TemplateOutline
from tasker.controller.kube.resources.worker_pool import WorkerPoolSpec, WorkerPoolStatus
from tasker.model.template import DefaultsSpec, EnvironmentsSpec, TemplateSpec

CRDS = Path(__file__).parents[2] / "crds"

MODELS: list[tuple[str, str, type[BaseModel]]] = [
    ("tasks", "spec", TaskSpec),
    ("tasks", "status", TaskStatus),
    ("tasktemplates", "spec", TemplateSpec),
    ("tasktemplates", "spec.defaults", DefaultsSpec),
    ("tasktemplates", "spec.environments", EnvironmentsSpec),
    ("tasktemplates", "status", TaskTemplateStatus),
    ("workerpools", "spec", WorkerPoolSpec),
    ("workerpools", "status", WorkerPoolStatus),
]

NOT_IN_THE_MODEL = {
    ("tasktemplates", "spec.defaults"): "merged into the steps before the spec is checked; a model of its own",
    ("tasktemplates", "spec.environments"): "merged over the steps after the spec is checked; a model of its own",
}

# What the CRD alone bounds: the engine takes larger graphs than a resource may hold, and a name that a step depends on
# must be a step's, so it is bounded already. A status is ours: another release may know more words than this one.
BOUND_BY_THE_CRD_ALONE = {
    ("tasktemplates", "spec.steps", "maxItems"),
    ("tasktemplates", "spec.steps[].dependsOn", "maxItems"),
    ("tasktemplates", "spec.environments.*", "maxProperties"),
    ("tasktemplates", "spec.steps[].dependsOn[]", "minLength"),
    ("tasktemplates", "spec.steps[].dependsOn[]", "maxLength"),
    ("tasks", "status.state", "enum"),
    ("tasks", "status.phase", "enum"),
    *((plural, "status.conditions", "maxItems") for plural in ("tasks", "tasktemplates", "workerpools")),
    *((plural, "status.conditions[].type", "maxLength") for plural in ("tasks", "tasktemplates", "workerpools")),
}

FACETS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "enum")


def crd_schema(plural: str, path: str) -> dict[str, Any]:
    """The part of a CRD's schema at a path like spec.defaults."""
    [version] = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())["spec"]["versions"]
    node: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    for name in path.split("."):
        node = node["properties"][name]
    return node


class ModelSchema:
    """A model's JSON schema with its references and its optional types resolved."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._root = model.model_json_schema(by_alias=True)
        self.root = self.resolve(self._root)

    def resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            target = self._root["$defs"][node["$ref"].rpartition("/")[2]]
            return {**self.resolve(target), **{key: value for key, value in node.items() if key != "$ref"}}
        if "anyOf" in node:
            [inner] = [each for each in node["anyOf"] if each != {"type": "null"}]
            return {**self.resolve(inner), **{key: value for key, value in node.items() if key != "anyOf"}}
        return node


def is_plain_json(node: dict[str, Any]) -> bool:
    """An object that the model carries on as it is."""
    return node.get("type") == "object" and "properties" not in node and node.get("additionalProperties") is True


def differences(
    plural: str, path: str, crd: dict[str, Any], model: dict[str, Any], schema: ModelSchema
) -> Iterator[str]:
    if crd.get("type") != model.get("type"):
        yield f"{path}: type {crd.get('type')} in the CRD, {model.get('type')} in the model"
    for facet in FACETS:
        if (plural, path, facet) not in BOUND_BY_THE_CRD_ALONE and crd.get(facet) != model.get(facet):
            yield f"{path}: {facet} {crd.get(facet)} in the CRD, {model.get(facet)} in the model"
    if is_plain_json(model):
        return
    if "items" in crd and "items" in model:
        yield from differences(plural, f"{path}[]", crd["items"], schema.resolve(model["items"]), schema)
    written, typed = crd.get("additionalProperties"), model.get("additionalProperties")
    if isinstance(written, dict) and isinstance(typed, dict):
        yield from differences(plural, f"{path}.*", written, schema.resolve(typed), schema)
    if "properties" in crd or "properties" in model:
        yield from field_differences(plural, path, crd, model, schema)


def field_differences(
    plural: str, path: str, crd: dict[str, Any], model: dict[str, Any], schema: ModelSchema
) -> Iterator[str]:
    in_crd, in_model = crd.get("properties", {}), model.get("properties", {})
    for name in sorted(set(in_crd) | set(in_model)):
        field = f"{path}.{name}"
        if (plural, field) in NOT_IN_THE_MODEL:
            continue
        if name not in in_model or name not in in_crd:
            yield f"{field}: only in the {'CRD' if name in in_crd else 'model'}"
            continue
        required = [name in side.get("required", ()) for side in (crd, model)]
        if required[0] != required[1]:
            yield f"{field}: required is {required[0]} in the CRD, {required[1]} in the model"
        written, typed = in_crd[name], schema.resolve(in_model[name])
        if not required[0]:
            yield from default_differences(field, written, typed)
        yield from differences(plural, field, written, typed, schema)


def default_differences(field: str, crd: dict[str, Any], model: dict[str, Any]) -> Iterator[str]:
    """A default is in both. Under `steps` the CRD states it in words: a default there would hide what was left out."""
    value = model.get("default")
    if crd.get("type") == "object":
        return  # the fields of the object have theirs
    if "default" in crd:
        if crd["default"] != value:
            yield f"{field}: default {crd['default']!r} in the CRD, {value!r} in the model"
        return
    stated = re.search(r"Defaults to ([\w.]+)\.(?: |$)", crd["description"])
    expected = stated.group(1) if stated is not None else None
    if field.startswith(("spec.steps", "spec.defaults", "spec.environments")):
        shown = None if value in (None, [], (), "") else str(value).lower() if isinstance(value, bool) else str(value)
        if field.startswith("spec.steps") and shown != expected:
            yield f"{field}: the description states the default {expected}, the model has {shown}"
    elif value not in (None, [], (), ""):
        yield f"{field}: no default in the CRD, {value!r} in the model"


@pytest.mark.parametrize(("plural", "path", "model"), MODELS, ids=lambda value: getattr(value, "__name__", value))
def test_the_model_and_the_crd_are_equal(plural: str, path: str, model: type[BaseModel]) -> None:
    schema = ModelSchema(model)
    assert list(differences(plural, path, crd_schema(plural, path), schema.root, schema)) == []


def test_the_outline_of_a_template_is_a_part_of_its_spec() -> None:
    for name, field in TemplateOutline.model_fields.items():
        whole = TemplateSpec.model_fields[name]
        assert (field.alias, field.annotation, field.default, field.metadata) == (
            whole.alias,
            whole.annotation,
            whole.default,
            whole.metadata,
        )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda crd: crd["properties"].pop("slots"), "spec.slots: only in the model"),
        (
            lambda crd: crd["properties"]["nodeSelector"]["additionalProperties"].update(type="integer"),
            "spec.nodeSelector.*: type integer in the CRD, string in the model",
        ),
        (lambda crd: crd["properties"].update(more={"type": "string"}), "spec.more: only in the CRD"),
        (
            lambda crd: crd["properties"]["slots"].update(default=11),
            "spec.slots: default 11 in the CRD, 10 in the model",
        ),
        (
            lambda crd: crd["properties"]["slots"].update(maximum=5),
            "spec.slots: maximum 5 in the CRD, 1000 in the model",
        ),
        (
            lambda crd: crd["properties"]["scaling"]["properties"]["mode"]["enum"].append("x"),
            "spec.scaling.mode: enum ['operator', 'external', 'manual', 'x'] in the CRD, "
            "['operator', 'external', 'manual'] in the model",
        ),
        (
            lambda crd: crd["properties"]["handlersFrom"].update(required=[]),
            "spec.handlersFrom.configMapRef: required is False in the CRD, True in the model",
        ),
    ],
)
def test_a_difference_is_found(change: Any, expected: str) -> None:
    crd = crd_schema("workerpools", "spec")
    change(crd)
    schema = ModelSchema(WorkerPoolSpec)
    assert list(differences("workerpools", "spec", crd, schema.root, schema)) == [expected]
