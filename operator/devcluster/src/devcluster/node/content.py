"""What ConfigMaps and Secrets hold, read from the API when a container is about to get it. Called by ``kubelet``."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from devcluster.node.client import CONFIG_MAPS, SECRETS, ApiClient, ApiError
from devcluster.node.environment import Reader, Source
from devcluster.node.objects import Key, KubeObject


def make_reader(client: ApiClient, namespace: str) -> Reader:
    """A reader of one namespace. It asks the API each time: what was applied before the pod is there for it."""

    async def read(source: Source, name: str) -> Mapping[str, bytes] | None:
        resource = CONFIG_MAPS if source == "ConfigMap" else SECRETS
        try:
            found = await client.get(resource, Key(namespace, name))
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        return decode_content(source, found)

    return read


def decode_content(source: Source, obj: KubeObject) -> dict[str, bytes]:
    """The entries as bytes."""
    data = obj.get("data") or {}
    if source == "Secret":
        return {name: base64.b64decode(value) for name, value in data.items()}
    binary = {name: base64.b64decode(value) for name, value in (obj.get("binaryData") or {}).items()}
    return {name: value.encode() for name, value in data.items()} | binary
