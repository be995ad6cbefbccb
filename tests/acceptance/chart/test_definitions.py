"""The custom resource definitions: the same in crds/ and in both charts, and small enough to be applied in any way."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from support.chart import OWN_DATABASE, of_kind, render
from support.definitions import CRD_FOLDER
from support.helm import Helm, Manifest

CRDS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CRD_FOLDER.glob("*.yaml"))}
KEEP = {"helm.sh/resource-policy": "keep"}


def by_name(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in of_kind(manifests, "CustomResourceDefinition")}


@pytest.mark.parametrize(
    ("chart", "kept", "dropped"),
    [
        ("tasker", OWN_DATABASE, OWN_DATABASE | {"crds": {"keep": False}}),
        ("tasker-crds", {}, {"keep": False}),
    ],
)
def test_the_charts_definitions_are_the_canonical_ones(
    helm: Helm, chart: str, kept: dict[str, Any], dropped: dict[str, Any]
) -> None:
    canonical = {crd["metadata"]["name"]: crd for crd in CRDS.values()}
    assert by_name(helm.template(chart, dropped)) == canonical
    rendered = by_name(helm.template(chart, kept))
    for crd in rendered.values():
        assert crd["metadata"].pop("annotations") == KEEP
    assert rendered == canonical


def test_the_definitions_can_be_left_to_others(helm: Helm) -> None:
    assert by_name(render(helm, "least")) == {}


def test_the_chart_of_definitions_holds_nothing_else(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.lint("tasker-crds", {})
    assert {each["kind"] for each in helm.template("tasker-crds", {})} == {"CustomResourceDefinition"}


@pytest.mark.parametrize("name", sorted(CRDS))
def test_each_definition_is_below_200_kb(name: str) -> None:
    """Client-side apply keeps the whole object as JSON in an annotation, of which 256 KiB fit."""
    assert (CRD_FOLDER / name).stat().st_size < 200_000
    assert len(yaml.safe_dump(CRDS[name], indent=4)) < 200_000
