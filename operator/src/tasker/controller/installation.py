"""Which installation this operator is: what is noted in the database that belongs to it.

The name that the chart gave it, and the uid of the namespace it belongs to, which no other cluster has and which stays
when the release is installed anew. Reading that one namespace is a right the operator has anyway.
"""

from __future__ import annotations

import asyncio

from tasker.controller.kube.client import NAMESPACE, Cluster
from tasker.engine import Engine
from tasker.errors import ConfigurationError, StoreUnavailable

_LOOK_SECONDS = 5.0


async def take_database(cluster: Cluster, engine: Engine, installation: str) -> None:
    """Makes sure that the database is this installation's, and takes it when it is nobody's.

    Raises `ForeignInstallation` when it is another's, `ClusterError` and `StoreUnavailable`, and `ConfigurationError`
    when the installation's namespace is not there.
    """
    namespace = installation.partition("/")[0]
    manifest = await cluster.get(NAMESPACE, None, namespace)
    if manifest is None:
        raise ConfigurationError(f"TASKER_INSTALLATION={installation!r}: there is no namespace {namespace}")
    await engine.installation.take(f"{installation}@{manifest['metadata']['uid']}")


async def leave_adopted_database(engine: Engine) -> None:
    """Raises `ForeignInstallation` once the database was given to another installation."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            await engine.installation.require()
        except StoreUnavailable:
            continue  # the loops that work say so
