"""Wrong values are refused before anything is rendered, with the path and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.chart import OWN_DATABASE
from support.helm import CHARTS, Helm, HelmError

SHA = "sha256:" + "g" * 64

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"replicaCount": 3}, "at '':", "additional properties 'replicaCount' not allowed"),
    ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy':", "one of 'Always', 'IfNotPresent', 'Never'"),
    ({"image": {"repository": ""}}, "at '/image/repository':", "minLength"),
    ({"image": {"digest": SHA}}, "at '/image/digest':", "does not match pattern"),
    ({"image": {"name": "x"}}, "at '/image':", "additional properties 'name' not allowed"),
    ({"environment": "prod"}, "at '/environment':", "one of 'test', 'development', 'production'"),
    ({"watchNamespaces": "orders"}, "at '/watchNamespaces':", "got string, want array"),
    ({"watchNamespaces": ["Orders"]}, "at '/watchNamespaces/0':", "does not match pattern"),
    ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces':", "items at 0 and 1 are equal"),
    ({"database": {"url": "postgresql:///x"}}, "at '/database':", "additional properties 'url' not allowed"),
    ({"database": {"ports": [70000]}}, "at '/database/ports/0':", "maximum: got 70,000, want 65,535"),
    ({"database": {"existingSecret": "My Secret"}}, "at '/database/existingSecret':", "does not match pattern"),
    ({"defaultPool": {"slots": 0}}, "at '/defaultPool/slots':", "minimum: got 0, want 1"),
    ({"defaultPool": {"maxReplicas": "ten"}}, "at '/defaultPool/maxReplicas':", "got string, want integer"),
    ({"defaultPool": {"replicaz": 1}}, "at '/defaultPool':", "additional properties 'replicaz' not allowed"),
    ({"defaultPool": {"scaling": {"mode": "magic"}}}, "at '/defaultPool/scaling/mode':", "one of 'operator'"),
    ({"defaultPool": {"handlers": ["not a module"]}}, "at '/defaultPool/handlers/0':", "does not match pattern"),
    ({"logLevel": "verbose"}, "at '/logLevel':", "one of 'debug', 'info', 'warning', 'error'"),
    ({"crds": {"enabled": "yes"}}, "at '/crds/enabled':", "got string, want boolean"),
    ({"env": [{"name": "DATABASE_URL", "value": "x"}]}, "at '/env/0/name':", "'not' failed"),
    ({"env": [{"name": "TASKER_ENV", "value": "test"}]}, "at '/env/0/name':", "'not' failed"),
    ({"containerSecurityContext": {"privileged": True}}, "at '/containerSecurityContext/privileged':", "must be false"),
    ({"podSecurityContext": {"runAsUser": 0}}, "at '/podSecurityContext/runAsUser':", "minimum: got 0, want 1"),
    ({"resources": {"limits": {"memory": "lots"}}}, "at '/resources/limits/memory':", "does not match pattern"),
    ({"fullnameOverride": "x" * 41}, "at '/fullnameOverride':", "does not match pattern"),
    ({"postgresql": {"password": "p@ss word"}}, "at '/postgresql/password':", "does not match pattern"),
    ({"migration": {"backoffLimit": -1}}, "at '/migration/backoffLimit':", "minimum: got -1, want 0"),
]


@pytest.mark.parametrize(("values", "path", "reason"), WRONG, ids=[json.dumps(values)[:60] for values, *_ in WRONG])
def test_a_wrong_value_is_refused_with_its_path_and_reason(
    helm: Helm, values: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(HelmError) as refused:
        helm.template("tasker", merged(OWN_DATABASE, values))
    message = str(refused.value)
    assert "values don't meet the specifications of the schema" in message
    assert path in message
    assert reason in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "database.existingSecret is required: name a Secret with the connection URL of your Postgres"),
        (
            OWN_DATABASE | {"postgresql": {"enabled": True}},
            "database.existingSecret and postgresql.enabled exclude each other",
        ),
        (
            OWN_DATABASE | {"defaultPool": {"minReplicas": 20}},
            "defaultPool.maxReplicas (10) must not be below defaultPool.minReplicas (20)",
        ),
        (
            OWN_DATABASE | {"defaultPool": {"replicas": 2}},
            "defaultPool.replicas may be set only with defaultPool.scaling.mode external or manual",
        ),
        (
            OWN_DATABASE | {"serviceAccount": {"create": False}},
            "serviceAccount.name is required when serviceAccount.create is false",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(helm: Helm, values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.template("tasker", values)
    assert message in str(refused.value)


def test_the_chart_of_definitions_is_as_strict(helm: Helm) -> None:
    with pytest.raises(HelmError, match="additional properties 'keeep' not allowed"):
        helm.template("tasker-crds", {"keeep": True})


@pytest.mark.parametrize("chart", ["tasker", "tasker-crds"])
def test_the_schema_names_every_value_and_closes_every_object(chart: str) -> None:
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    assert values.keys() | {"global"} == schema["properties"].keys()
    # Parts of other APIs that are passed on as they are, and maps from names that people choose.
    assert open_objects(schema, "") <= {
        "/properties/global",
        "/properties/affinity/properties/nodeAffinity",
        "/properties/affinity/properties/podAffinity",
        "/properties/affinity/properties/podAntiAffinity",
        "/properties/containerSecurityContext/properties/appArmorProfile",
        "/properties/podSecurityContext/properties/appArmorProfile",
        "/properties/env/items/properties/valueFrom",
        "/properties/topologySpreadConstraints/items/properties/labelSelector",
        "/properties/networkPolicy/properties/ingressFrom/items/properties/podSelector",
        "/properties/networkPolicy/properties/ingressFrom/items/properties/namespaceSelector",
        "/properties/networkPolicy/properties/ingressFrom/items/properties/ipBlock",
        "/properties/networkPolicy/properties/extraEgress/items/properties/ports/items",
        "/properties/networkPolicy/properties/extraEgress/items/properties/to/items",
        "/properties/extraObjects/items",
        "/$defs/workerPoolSpec/properties/affinity",
        "/$defs/workerPoolSpec/properties/volumes/items",
    }


def open_objects(node: Any, path: str) -> set[str]:
    """The paths of object schemas that take any key."""
    return set(_open_objects(node, path))


def _open_objects(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        if "object" in node.get("type", ()) and "additionalProperties" not in node:
            yield path
        for key, value in node.items():
            yield from _open_objects(value, f"{path}/{key}")


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in more.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
