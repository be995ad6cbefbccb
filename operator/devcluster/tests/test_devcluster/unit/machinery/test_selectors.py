"""Selectors choose as on a real API server, and one that makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pytest

from devcluster.machinery.selectors import (
    InvalidSelector,
    format_label_selector,
    matches_label_selector,
    parse_field_selector,
    parse_label_selector,
)

LABELS = {"app": "web", "tier": "front", "n": "5", "example.test/x": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "app=web",
        "app==web,tier=front",
        "app!=db",
        "missing!=x",
        "app in (db, web)",
        "app notin (db,queue)",
        "missing notin (a)",
        "app",
        "!missing",
        "n>4,n<6",
        "example.test/x",
        "example.test/x=",
        "app in (web),!missing , tier",
    ],
)
def test_a_selector_selects(text: str) -> None:
    assert parse_label_selector(text).matches(LABELS)


@pytest.mark.parametrize(
    "text",
    ["app=db", "app!=web", "app in (a,b)", "app notin (web)", "missing", "!app", "n>5", "app>1", "app=web,tier=x"],
)
def test_a_selector_passes_over(text: str) -> None:
    assert not parse_label_selector(text).matches(LABELS)


def test_nothing_after_the_sign_means_an_empty_value() -> None:
    assert parse_label_selector("a=").matches({"a": ""})
    assert not parse_label_selector("a=").matches({"a": "b"})
    assert not parse_label_selector("a=").matches(None)


@pytest.mark.parametrize(
    "text", ["=x", "a b", "app in web", "app in (web", "app=web,", "app=a=b", "-x=1", "app=!!", "n>x", "a/b/c=1"]
)
def test_a_malformed_selector_is_refused(text: str) -> None:
    with pytest.raises(InvalidSelector):
        parse_label_selector(text)


def test_a_selector_inside_an_object_reads_labels_and_expressions() -> None:
    selector: dict[str, Any] = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front", "back"]},
            {"key": "gone", "operator": "DoesNotExist"},
        ],
    }
    assert matches_label_selector(selector, LABELS)
    assert not matches_label_selector(selector, {"app": "web"})
    assert format_label_selector(selector) == "app=web,tier in (back,front),!gone"
    with pytest.raises(InvalidSelector, match='"Near" is not a valid label selector operator'):
        matches_label_selector({"matchExpressions": [{"key": "a", "operator": "Near"}]}, LABELS)


POD = {
    "metadata": {"name": "p", "namespace": "ns"},
    "spec": {"nodeName": "local", "hostNetwork": True},
    "status": {"phase": "Running"},
}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("metadata.name=p", True),
        ("metadata.name==p,status.phase!=Failed", True),
        ("spec.nodeName=other", False),
        ("spec.nodeName!=", True),
        ("spec.hostNetwork=true", True),
        ("", True),
    ],
)
def test_a_field_selector_compares_fields(text: str, *, selected: bool) -> None:
    fields = ("status.phase", "spec.nodeName", "spec.hostNetwork")
    assert parse_field_selector(text, fields).matches_object(POD) is selected


def test_a_field_that_cannot_be_selected_is_named() -> None:
    with pytest.raises(InvalidSelector, match=r"field label not supported: spec\.color"):
        parse_field_selector("spec.color=red", ("status.phase",))
    with pytest.raises(InvalidSelector, match=r"field label not supported: metadata\.namespace"):
        parse_field_selector("metadata.namespace=x", namespaced=False)
    with pytest.raises(InvalidSelector, match=r"can't understand 'metadata\.name'"):
        parse_field_selector("metadata.name")


def test_a_list_by_name_can_be_told() -> None:
    selector = parse_field_selector("metadata.name=p")
    assert selector.required_value("metadata.name") == "p"
    assert selector.required_value("metadata.namespace") is None
    assert parse_field_selector("metadata.name!=p").required_value("metadata.name") is None
