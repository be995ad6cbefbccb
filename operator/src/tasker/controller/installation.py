"""Which installation this operator is: what is noted in the database that belongs to it.

The name that the chart gave it, and the uid of the cluster's namespace kube-system, which no other cluster has and
which stays whatever is installed anew. An operator that may not read that one goes by the namespace it belongs to,
which it may read with rights in that namespace alone.
"""

from __future__ import annotations

import asyncio

from tasker.controller.kube.client import NAMESPACE, Cluster, ClusterError
from tasker.engine import Engine
from tasker.errors import ConfigurationError, StoreUnavailable

_CLUSTER_NAMESPACE = "kube-system"
_CHECK_SECONDS = 5.0
_FORBIDDEN = 403


async def take_database(cluster: Cluster, engine: Engine, installation: str) -> None:
    """Makes sure that the database is this installation's, and takes it when it is nobody's.

    `installation` is a namespace and a name. Raises `ForeignInstallation` when the database is another's,
    `ConfigurationError` when the namespace that tells is not there, `ClusterError`, `StoreUnavailable`.
    """
    await engine.installation.take(f"{installation}@{await _cluster_uid(cluster, installation)}")


async def leave_adopted_database(engine: Engine) -> None:
    """Raises `ForeignInstallation` once the database was given to another installation."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        try:
            await engine.installation.require()
        except StoreUnavailable:
            continue  # the loops that work say so


async def _cluster_uid(cluster: Cluster, installation: str) -> str:
    name = _CLUSTER_NAMESPACE
    try:
        manifest = await cluster.get(NAMESPACE, None, name)
    except ClusterError as error:
        if error.status != _FORBIDDEN:
            raise
        name = installation.partition("/")[0]
        manifest = await cluster.get(NAMESPACE, None, name)
    if manifest is None:
        raise ConfigurationError(f"TASKER_INSTALLATION={installation!r}: the cluster has no namespace {name}")
    return str(manifest["metadata"]["uid"])
