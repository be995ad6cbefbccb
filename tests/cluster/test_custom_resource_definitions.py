"""A CRD from its creation to its end, and what its schema does to the objects: the same on every cluster."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from support.apiserver import Kubectl
from support.cluster import ClusterUnderTest
from support.waiting import eventually

GADGET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                "colour": {"type": "string", "default": "red", "enum": ["red", "blue"]},
                "replicas": {"type": "integer"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
            "x-kubernetes-validations": [
                {"rule": "self.colour != 'blue' || self.size > 2", "message": "blue gadgets are larger than 2"},
                {"rule": "self.size >= oldSelf.size", "message": "gadgets do not shrink"},
            ],
        },
        "status": {
            "type": "object",
            "properties": {
                "replicas": {"type": "integer"},
                "selector": {"type": "string"},
                "phase": {"type": "string"},
            },
        },
    },
}


def definition(group: str, **version: Any) -> dict[str, Any]:
    names = {"kind": "Gadget", "plural": "gadgets", "singular": "gadget", "shortNames": ["gd"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gadgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names,
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": GADGET_SCHEMA},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                        {"name": "Colour", "type": "string", "jsonPath": ".spec.colour", "priority": 1},
                    ],
                    **version,
                }
            ],
        },
    }


def establish(kubectl: Kubectl, crd: dict[str, Any]) -> None:
    """Until the kinds are served and discovery tells of them, which on a real server takes a moment longer."""
    kubectl.apply(crd)
    kubectl("wait", "--for=condition=Established", f"crd/{crd['metadata']['name']}", "--timeout=20s")
    versions = {f"{crd['spec']['group']}/{version['name']}" for version in crd["spec"]["versions"]}
    eventually(lambda: versions <= set(kubectl("api-versions").split()), what=f"discovery tells of {versions}")


@pytest.fixture(scope="module")
def group(any_cluster: ClusterUnderTest) -> Iterator[str]:
    """A group of its own with the CRD `gadgets`."""
    group = f"g{uuid.uuid4().hex[:6]}.example.com"
    kubectl = Kubectl(kubeconfig=any_cluster.kubeconfig)
    establish(kubectl, definition(group))
    yield group
    for gadget in kubectl.get(f"gadgets.{group}", "--all-namespaces")["items"]:
        # Of a test that failed while it held one.
        where = (gadget["metadata"]["name"], "--namespace", gadget["metadata"]["namespace"])
        kubectl.run("patch", f"gadgets.{group}", *where, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("delete", "crd", f"gadgets.{group}")


@pytest.fixture
def gadget(group: str) -> dict[str, Any]:
    return {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 3}}


def with_spec(gadget: dict[str, Any], **spec: Any) -> str:
    return json.dumps({**gadget, "spec": spec})


def test_an_object_gets_defaults_columns_and_a_generation(kubectl: Kubectl, group: str, gadget: dict[str, Any]) -> None:
    kubectl.apply(gadget)
    stored = kubectl.get("gd", "g")
    assert stored["spec"] == {"size": 3, "colour": "red"}
    assert stored["metadata"]["generation"] == 1
    assert kubectl("get", f"gadgets.{group}").splitlines()[0].split() == ["NAME", "SIZE"]
    assert kubectl("get", f"gadgets.{group}", "-o", "wide").splitlines()[1].split() == ["g", "3", "red"]


def test_invalid_objects_are_refused_with_path_and_reason(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    refused = kubectl.fails("create", "-f", "-", stdin=with_spec(gadget, size=11, colour="green"))
    assert 'The Gadget "g" is invalid:' in refused
    assert "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10" in refused
    assert 'spec.colour: Unsupported value: "green": supported values: "red", "blue"' in refused
    assert "spec.size: Required value" in kubectl.fails("create", "-f", "-", stdin=with_spec(gadget))
    rule = kubectl.fails("create", "-f", "-", stdin=with_spec(gadget, size=1, colour="blue"))
    assert "spec: Invalid value:" in rule
    assert "blue gadgets are larger than 2" in rule


def test_a_transition_rule_compares_with_the_stored_object(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    kubectl.apply(gadget)
    refused = kubectl.fails("patch", "gadget", "g", "--type=merge", "-p", '{"spec":{"size":2}}')
    assert "gadgets do not shrink" in refused
    kubectl("patch", "gadget", "g", "--type=merge", "-p", '{"spec":{"size":4}}')


def test_unknown_fields_are_refused_warned_of_or_ignored(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    text = with_spec(gadget, size=3, siez=4, free={"anything": {"goes": True}})
    assert 'strict decoding error: unknown field "spec.siez"' in kubectl.fails("create", "-f", "-", stdin=text)
    warned = kubectl.run("create", "--validate=warn", "-f", "-", stdin=text)
    assert warned.err == 'Warning: unknown field "spec.siez"\n'
    assert kubectl.get("gadget", "g")["spec"] == {"size": 3, "colour": "red", "free": {"anything": {"goes": True}}}
    kubectl("delete", "gadget", "g")
    assert kubectl.run("create", "--validate=ignore", "-f", "-", stdin=text).err == ""


def test_status_and_spec_are_written_apart(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    kubectl.apply({**gadget, "status": {"phase": "Dreamt"}})
    assert "status" not in kubectl.get("gadget", "g")
    both = json.dumps({"spec": {"size": 9}, "status": {"phase": "Ready"}})
    kubectl("patch", "gadget", "g", "--subresource=status", "--type=merge", "-p", both)
    stored = kubectl.get("gadget", "g")
    assert (stored["spec"]["size"], stored["status"], stored["metadata"]["generation"]) == (3, {"phase": "Ready"}, 1)
    kubectl("patch", "gadget", "g", "--type=merge", "-p", both)
    stored = kubectl.get("gadget", "g")
    assert (stored["spec"]["size"], stored["status"], stored["metadata"]["generation"]) == (9, {"phase": "Ready"}, 2)
    kubectl("label", "gadget", "g", "a=b")
    assert kubectl.get("gadget", "g")["metadata"]["generation"] == 2


def test_scale_works_on_a_custom_resource(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    gadget["spec"]["replicas"] = 1
    kubectl.apply(gadget)
    kubectl("scale", "gadget/g", "--replicas=4")
    assert kubectl.get("gadget", "g")["spec"]["replicas"] == 4
    status = json.dumps({"status": {"replicas": 2, "selector": "app=g"}})
    kubectl("patch", "gadget", "g", "--subresource=status", "--type=merge", "-p", status)
    scale = kubectl.get("gadget", "g", "--subresource=scale")
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["status"] == {"replicas": 2, "selector": "app=g"}


def test_a_finalizer_holds_an_object_until_it_is_taken_away(kubectl: Kubectl, gadget: dict[str, Any]) -> None:
    gadget["metadata"]["finalizers"] = ["example.com/hold"]
    kubectl.apply(gadget)
    kubectl("delete", "gadget", "g", "--wait=false")
    held = kubectl.get("gadget", "g")
    assert held["metadata"]["deletionTimestamp"]
    added = '{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}'
    refused = kubectl.fails("patch", "gadget", "g", "--type=merge", "-p", added)
    assert "no new finalizers can be added if the object is being deleted" in refused
    kubectl("patch", "gadget", "g", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert '"g" not found' in kubectl.fails("get", "gadget", "g")


def test_a_definition_that_is_wrong_is_refused(kubectl: Kubectl) -> None:
    wrong = definition("wrong.example.com")
    wrong["metadata"]["name"] = "gizmos.wrong.example.com"
    assert 'must be spec.names.plural+"."+spec.group' in kubectl.fails("create", "-f", "-", stdin=json.dumps(wrong))
    loose = definition("wrong.example.com", schema={"openAPIV3Schema": {"properties": {}}})
    refused = kubectl.fails("create", "-f", "-", stdin=json.dumps(loose))
    assert "openAPIV3Schema.type: Required value: must not be empty at the root" in refused


def test_a_second_version_shows_the_same_objects(kubectl: Kubectl) -> None:
    group = f"g{uuid.uuid4().hex[:6]}.example.com"
    crd = definition(group)
    second = {**crd["spec"]["versions"][0], "name": "v1beta1", "storage": False}
    crd["spec"]["versions"].append(second)
    establish(kubectl, crd)
    beta = {"apiVersion": f"{group}/v1beta1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 3}}
    kubectl.apply(beta)
    assert kubectl.get(f"gadgets.v1beta1.{group}", "g")["apiVersion"] == f"{group}/v1beta1"
    assert kubectl.get(f"gadgets.{group}", "g")["apiVersion"] == f"{group}/v1", (
        "the preferred version is the stable one"
    )
    kubectl("delete", "crd", f"gadgets.{group}")


def test_deleting_a_definition_deletes_its_objects_and_its_discovery(kubectl: Kubectl) -> None:
    group = f"g{uuid.uuid4().hex[:6]}.example.com"
    establish(kubectl, definition(group))
    gadget = {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 3}}
    kubectl.apply({**gadget, "metadata": {"name": "g", "finalizers": ["example.com/hold"]}})
    kubectl("delete", "crd", f"gadgets.{group}", "--wait=false")
    eventually(lambda: "deletionTimestamp" in kubectl.get(f"gadgets.{group}", "g")["metadata"])
    refused = kubectl.fails("create", "-f", "-", stdin=json.dumps({**gadget, "metadata": {"name": "late"}}))
    assert "terminating" in refused
    kubectl("patch", f"gadgets.{group}", "g", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("wait", "--for=delete", f"crd/gadgets.{group}", "--timeout=20s")
    eventually(lambda: group not in kubectl("api-versions"), what="discovery forgets the group")
    establish(kubectl, definition(group))
    assert kubectl.get(f"gadgets.{group}")["items"] == []
    kubectl("delete", "crd", f"gadgets.{group}")
