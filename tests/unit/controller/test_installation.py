"""What an installation is called: its name, and the cluster by the uid of a namespace that it may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tasker.controller.installation import take_database
from tasker.controller.kube.client import Cluster, ClusterError, Resource
from tasker.engine import Engine
from tasker.errors import ConfigurationError


@dataclass
class Namespaces:
    """A cluster of namespaces by name, some of which may not be read."""

    uids: dict[str, str]
    forbidden: frozenset[str] = frozenset()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any] | None:
        assert (resource.kind, namespace) == ("Namespace", None)
        if name in self.forbidden:
            raise ClusterError("no", status=403)
        return {"metadata": {"name": name, "uid": self.uids[name]}} if name in self.uids else None


@dataclass
class Taken:
    """An engine that notes who took its database."""

    by: list[str] = field(default_factory=list)

    @property
    def installation(self) -> Taken:
        return self

    async def take(self, installation: str) -> None:
        self.by.append(installation)


async def taken_by(cluster: Namespaces) -> str:
    engine = Taken()
    await take_database(cast("Cluster", cluster), cast("Engine", engine), "prod/tasker")
    [installation] = engine.by
    return installation


async def test_the_cluster_is_known_by_its_oldest_namespace() -> None:
    assert await taken_by(Namespaces({"kube-system": "1", "prod": "2"})) == "prod/tasker@1"


async def test_with_rights_in_its_own_namespace_alone_it_goes_by_that() -> None:
    assert await taken_by(Namespaces({"kube-system": "1", "prod": "2"}, frozenset({"kube-system"}))) == "prod/tasker@2"


async def test_what_cannot_be_known_is_told() -> None:
    with pytest.raises(ConfigurationError, match="the cluster has no namespace prod"):
        await taken_by(Namespaces({}, frozenset({"kube-system"})))
