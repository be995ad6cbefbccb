"""Objects are completed and cut down as a real API server does it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devcluster.machinery.quantities import InvalidQuantity, canonical, parse_quantity
from devcluster.machinery.resources import builtin_resources
from support.definitions import builtin, custom, widget

SPEC: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mode": {"type": "string", "default": "auto"},
        "retry": {"type": "object", "default": {}, "properties": {"times": {"type": "integer", "default": 3}}},
        "limits": {"type": "object", "properties": {"cpu": {"type": "integer", "default": 1}}},
        "note": {"type": "string"},
        "maybe": {"type": "string", "nullable": True, "default": "x"},
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "kind": {"type": "string", "default": "k"}},
            },
        },
        "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


def test_defaults_fill_what_is_absent_down_the_tree() -> None:
    schema = custom(SPEC).schema
    given_object = widget({"steps": [{"name": "a"}, {"name": "b", "kind": "own"}]})
    before = repr(given_object)
    assert schema.default(given_object)["spec"] == {
        "steps": [{"name": "a", "kind": "k"}, {"name": "b", "kind": "own"}],
        "mode": "auto",
        "retry": {"times": 3},
        "maybe": "x",
    }
    assert repr(given_object) == before


def test_a_default_inside_an_absent_object_does_not_bring_the_object_about() -> None:
    assert "limits" not in custom(SPEC).schema.default(widget({}))["spec"]


def test_a_null_counts_as_absent_unless_it_is_allowed() -> None:
    filled = custom(SPEC).schema.default(widget({"mode": None, "note": None, "maybe": None}))["spec"]
    assert filled["mode"] == "auto"
    assert "note" not in filled
    assert filled["maybe"] is None


def test_unknown_fields_go_and_are_named_but_payloads_stay() -> None:
    schema = custom(SPEC).schema
    obj = widget({"mode": "x", "foo": 1, "steps": [{"name": "a", "bar": {}}], "anything": {"goes": [1]}})
    obj["metadata"]["nonsense"] = True
    obj["extra"] = 1
    assert schema.unknown_fields(obj) == [
        'unknown field "extra"',
        'unknown field "metadata.nonsense"',
        'unknown field "spec.foo"',
        'unknown field "spec.steps[0].bar"',
    ]
    kept = schema.prune(obj)
    assert kept["spec"] == {"mode": "x", "steps": [{"name": "a"}], "anything": {"goes": [1]}}
    assert "extra" not in kept
    assert schema.unknown_fields(kept) == []


def test_an_embedded_resource_keeps_its_kind_and_metadata() -> None:
    embedded = {
        "type": "object",
        "x-kubernetes-embedded-resource": True,
        "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    schema = custom({"type": "object", "properties": {"inner": embedded}}).schema
    inner = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "spec": {"a": 1, "b": 2}}
    assert schema.prune(widget({"inner": inner}))["spec"]["inner"] == {**inner, "spec": {"a": 1}}


def test_a_deployment_gets_what_kubernetes_gives_it() -> None:
    container = {
        "name": "c",
        "image": "registry:5000/app",
        "ports": [{"containerPort": 80}],
        "readinessProbe": {"httpGet": {"port": "http"}},
        "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
    }
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [container], "volumes": [{"name": "v"}, {"name": "m", "configMap": {"name": "cm"}}]},
    }
    obj = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "creationTimestamp": None},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    }
    done = builtin("Deployment").schema.default(obj)
    spec = done["spec"]
    assert "creationTimestamp" not in done["metadata"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Always"
    assert pod["terminationGracePeriodSeconds"] == 30
    assert pod["securityContext"] == {}
    assert pod["volumes"] == [
        {"name": "v", "emptyDir": {}},
        {"name": "m", "configMap": {"name": "cm", "defaultMode": 420}},
    ]
    [filled] = pod["containers"]
    assert filled["imagePullPolicy"] == "Always"
    assert filled["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert filled["readinessProbe"] == {
        "httpGet": {"port": "http", "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert filled["resources"] == {"limits": {"cpu": "500m", "memory": "1Gi"}}
    assert "serviceAccountName" not in pod


def test_recreate_brings_no_rolling_update() -> None:
    done = builtin("Deployment").schema.default({"spec": {"strategy": {"type": "Recreate"}}})
    assert done["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("app", "Always"),
        ("app:latest", "Always"),
        ("app:1", "IfNotPresent"),
        ("host:5000/app:1", "IfNotPresent"),
        ("app@sha256:00", "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    pod = builtin("Pod").schema.default({"spec": {"containers": [{"name": "c", "image": image}]}})
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_plain_text_of_a_secret_is_stored_encoded() -> None:
    done = builtin("Secret").schema.default({"data": {"a": "eA=="}, "stringData": {"b": "y"}})
    assert done["data"] == {"a": "eA==", "b": "eQ=="}
    assert "stringData" not in done
    assert done["type"] == "Opaque"


def test_a_namespace_is_born_active_with_its_finalizer_and_label() -> None:
    done = builtin("Namespace").schema.default({"metadata": {"name": "n"}})
    assert done["spec"] == {"finalizers": ["kubernetes"]}
    assert done["status"] == {"phase": "Active"}
    assert done["metadata"]["labels"] == {"kubernetes.io/metadata.name": "n"}


@pytest.mark.parametrize(
    ("given_text", "stored"),
    [
        ("1000m", "1"),
        ("0.5", "500m"),
        (1, "1"),
        (0.25, "250m"),
        ("1024Mi", "1Gi"),
        ("1500Mi", "1500Mi"),
        ("1e3", "1e3"),
        ("1000", "1k"),
        ("0", "0"),
        ("128Ki", "128Ki"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_quantity_has_one_spelling(given_text: Any, stored: str) -> None:
    assert canonical(given_text) == stored


@given(
    st.decimals(min_value="0.001", max_value=10**6, places=3), st.sampled_from(["", "k", "M", "m", "Ki", "Mi", "e3"])
)
def test_spelling_a_quantity_anew_keeps_its_value(number: Any, suffix: str) -> None:
    text = f"{number}{suffix}"
    if parse_quantity(text) >= parse_quantity("1n"):
        assert parse_quantity(canonical(text)) == parse_quantity(text)
    assert canonical(canonical(text)) == canonical(text)


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(InvalidQuantity):
        parse_quantity("1 Gi")


FIELDS = st.sampled_from(
    [
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "volumes",
        "name",
        "strategy",
        "type",
        "ports",
        "image",
        "resources",
        "limits",
        "data",
        "stringData",
        "labels",
        "selector",
        "versions",
        "names",
        "kind",
        "subjects",
        "roleRef",
        "schema",
        "sessionAffinity",
        "unknown",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "ClientIP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(builtin_resources()), st.dictionaries(FIELDS, VALUES, max_size=5))
def test_no_object_however_wrong_breaks_the_machinery(resource: Any, obj: dict[str, Any]) -> None:
    schema = resource.schema
    completed = schema.default(schema.prune(obj))
    assert schema.default(completed) == completed
    assert schema.unknown_fields(completed) == []
    schema.validate(completed)
