"""What an installation is called: its name, and the cluster by the uid of a namespace that it may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from support.virtual_time import START_SECONDS, run_in_virtual_time, virtual_now
from tasker.controller.installation import leave_adopted_database, take_database
from tasker.controller.kube.client import Cluster, ClusterError, Resource
from tasker.engine import Engine
from tasker.errors import ConfigurationError, ForeignInstallation, StoreUnavailable


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


async def test_what_is_no_refusal_is_not_taken_for_one() -> None:
    """Else a server that is briefly away would make it another installation's database."""

    class Broken(Namespaces):
        async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any] | None:
            raise ClusterError("busy", status=500)

    with pytest.raises(ClusterError, match="busy"):
        await taken_by(Broken({"kube-system": "1", "prod": "2"}))


async def test_an_error_names_the_setting_and_the_namespace() -> None:
    with pytest.raises(ConfigurationError) as told:
        await taken_by(Namespaces({}))
    assert str(told.value) == "TASKER_INSTALLATION='prod/tasker': the cluster has no namespace kube-system"


def test_the_operator_goes_when_its_database_is_given_to_another_and_not_when_it_is_away() -> None:
    """The owner is looked up every five seconds."""
    asked: list[float] = []

    class Adopted:
        @property
        def installation(self) -> Adopted:
            return self

        async def require(self) -> None:
            asked.append(virtual_now() - START_SECONDS)
            if len(asked) == 2:
                raise StoreUnavailable("away")
            if len(asked) == 4:
                raise ForeignInstallation("of another")

    with pytest.raises(ForeignInstallation):
        run_in_virtual_time(lambda: leave_adopted_database(cast("Engine", Adopted())))
    assert asked == [5.0, 10.0, 15.0, 20.0]
