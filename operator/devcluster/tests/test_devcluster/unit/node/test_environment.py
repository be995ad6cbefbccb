"""References in variables and arguments, and mounted paths, become what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from devcluster.node.environment import (
    ConfigError,
    Mount,
    Source,
    build_arguments,
    build_environment,
    expand,
    place_on_host,
    read_field,
)

POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "shop", "uid": "u1", "labels": {"b": "2", "a": "1"}},
    "spec": {"nodeName": "n1"},
}
CONTENT: Mapping[tuple[str, str], Mapping[str, bytes]] = {
    ("ConfigMap", "settings"): {"mode": b"fast", "a=b": b"never"},
    ("Secret", "binary"): {"blob": b"\xff"},
}


async def read(source: Source, name: str) -> Mapping[str, bytes] | None:
    """A namespace with one ConfigMap and one Secret."""
    return CONTENT.get((source, name))


async def environment(*variables: dict[str, Any], **fields: Any) -> dict[str, str]:
    """What a container with these variables gets."""
    container = {"name": "c", "env": list(variables), **fields}
    return await build_environment(POD, container, read=read, mounts=[], port=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)$(B)y", "x12y"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NONE) $A ${A} $", "$(NONE) $A ${A} $"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_kubernetes_own(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_only_paths_in_a_mount_are_placed_and_the_longest_wins() -> None:
    mounts = [Mount(path="/etc/app", folder="/real/app"), Mount(path="/etc/app/keys/", folder="/real/keys")]
    assert place_on_host("/etc/app", mounts) == "/real/app"
    assert place_on_host("/etc/app/x", mounts) == "/real/app/x"
    assert place_on_host("/etc/app/keys", mounts) == "/real/keys"
    assert place_on_host("/etc/app/keys/k", mounts) == "/real/keys/k"
    assert place_on_host("/etc/apple", mounts) == "/etc/apple"
    assert place_on_host("file:/etc/app", mounts) == "file:/etc/app"


async def test_later_variables_see_earlier_ones_only() -> None:
    given = await environment(
        {"name": "A", "value": "$(B)"}, {"name": "B", "value": "1"}, {"name": "C", "value": "$(B)"}
    )
    assert (given["A"], given["C"]) == ("$(B)", "1")


async def test_entry_that_cannot_be_a_variable_is_left_out() -> None:
    given = await environment(envFrom=[{"configMapRef": {"name": "settings"}}])
    assert given["mode"] == "fast"
    assert "a=b" not in given


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "none" not found'),
        ({"configMapKeyRef": {"name": "settings", "key": "k"}}, "couldn't find key k in ConfigMap shop/settings"),
        ({"secretKeyRef": {"name": "binary", "key": "blob"}}, "not UTF-8 text"),
        ({"fieldRef": {"fieldPath": "spec.containers"}}, "the field spec.containers is not supported"),
    ],
)
async def test_what_cannot_be_had_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await environment({"name": "A", "valueFrom": source})


def test_fields_of_the_pod() -> None:
    assert read_field(POD, "metadata.namespace") == "shop"
    assert read_field(POD, "metadata.labels['a']") == "1"
    assert read_field(POD, "metadata.annotations['a']") == ""
    assert read_field(POD, "metadata.labels") == 'a="1"\nb="2"'
    assert read_field(POD, "spec.nodeName") == "n1"
    assert read_field(POD, "spec.serviceAccountName") == "default"


def test_arguments_are_filled_in_and_placed() -> None:
    mounts = [Mount(path="/in", folder="/real")]
    arguments = build_arguments({"args": ["--n=$(N)", "/in/file", "/other"]}, {"N": "3"}, mounts)
    assert arguments == ["--n=3", "/real/file", "/other"]
