"""The environment of a container's process, and the arguments with their references filled in. Called by ``kubelet``.

The references are Kubernetes' own: ``$(NAME)`` in a value or an argument is the variable defined before it,
``$$(NAME)`` is the text ``$(NAME)``, and an unknown name stays as it is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from devcluster.node.objects import KubeObject

HOST_ADDRESS = "127.0.0.1"

# What a process on this machine needs to run at all. The rest of the node's own environment is nobody's business.
_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
)
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")

Source = Literal["ConfigMap", "Secret"]
Reader = Callable[[Source, str], Awaitable[Mapping[str, bytes] | None]]
"""Gives the content of a ConfigMap or Secret of the pod's namespace; None when there is none."""


class ConfigError(Exception):
    """The container cannot be started as its spec says; the message is the one kubectl shows."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder on this machine that stands for a path in the container."""

    path: str
    folder: str


def place_on_host(value: str, mounts: Sequence[Mount]) -> str:
    """A path in a mounted volume as the path where it really is; any other value unchanged.

    Processes share this machine's file system: this stands in for a mount namespace. The longest mount path wins.
    """
    for mount in sorted(mounts, key=lambda mount: len(mount.path), reverse=True):
        root = mount.path.rstrip("/")
        if value == root or value.startswith(f"{root}/"):
            return mount.folder + value[len(root) :]
    return value


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with its references filled in."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return variables.get(name, match.group(0))

    return _REFERENCE.sub(fill, text)


async def build_environment(
    pod: KubeObject, container: Mapping[str, Any], *, read: Reader, mounts: Sequence[Mount], port: int | None
) -> dict[str, str]:
    """All variables of the container's process. `port`: the node's own choice of a port, told as PORT.

    Raises ``ConfigError`` for a ConfigMap, Secret or entry that is missing and not optional.
    """
    defined: dict[str, str] = {"HOSTNAME": pod["metadata"]["name"], "PYTHONUNBUFFERED": "1"}
    if port is not None:
        defined["PORT"] = str(port)
    for source in container.get("envFrom") or ():
        defined |= await _read_all(source, read)
    for variable in container.get("env") or ():
        name = variable["name"]
        if name == "PORT" and port is not None:
            value: str | None = str(port)
        elif variable.get("valueFrom"):
            value = await _read_one(pod, variable["valueFrom"], read)
        else:
            value = expand(variable.get("value") or "", defined)
        if value is not None:
            defined[name] = place_on_host(value, mounts)
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | defined


def build_arguments(container: Mapping[str, Any], environment: Mapping[str, str], mounts: Sequence[Mount]) -> list[str]:
    """The container's args, references filled in and mounted paths placed."""
    return [place_on_host(expand(argument, environment), mounts) for argument in container.get("args") or ()]


async def _read_all(source: Mapping[str, Any], read: Reader) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    kind: Source = "ConfigMap" if "configMapRef" in source else "Secret"
    reference = source.get("configMapRef") or source.get("secretRef") or {}
    content = await read(kind, reference.get("name", ""))
    if content is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{reference.get("name", "")}" not found')
    return {f"{prefix}{name}": _text(value, kind, name) for name, value in content.items() if _is_variable_name(name)}


async def _read_one(pod: KubeObject, source: Mapping[str, Any], read: Reader) -> str | None:
    if "fieldRef" in source:
        return read_field(pod, source["fieldRef"]["fieldPath"])
    kind: Source = "ConfigMap" if "configMapKeyRef" in source else "Secret"
    reference = source.get("configMapKeyRef") or source.get("secretKeyRef")
    if reference is None:
        raise ConfigError(f"an environment variable from {', '.join(source)} is not supported by this node")
    name, entry = reference.get("name", ""), reference["key"]
    content = await read(kind, name)
    if content is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    if entry not in content:
        if reference.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {entry} in {kind} {pod['metadata'].get('namespace', '')}/{name}")
    return _text(content[entry], kind, entry)


def read_field(pod: KubeObject, path: str) -> str:
    """The value of a fieldRef. Raises ``ConfigError`` for a field that cannot be referred to."""
    metadata, spec = pod["metadata"], pod["spec"]
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']*)'\]", path)
    if match:
        return str((metadata.get(match.group(1)) or {}).get(match.group(2), ""))
    simple: dict[str, str] = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.podIP": HOST_ADDRESS,
        "status.podIPs": HOST_ADDRESS,
        "status.hostIP": HOST_ADDRESS,
        "status.hostIPs": HOST_ADDRESS,
    }
    if path in {"metadata.labels", "metadata.annotations"}:
        items = metadata.get(PurePosixPath(path).suffix[1:]) or {}
        return "\n".join(f'{name}="{value}"' for name, value in sorted(items.items()))
    if path not in simple:
        raise ConfigError(f"the field {path} is not supported by this node")
    return simple[path]


def _text(value: bytes, kind: str, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the entry {name} of a {kind} is not UTF-8 text: it cannot be an environment variable"
        ) from error


def _is_variable_name(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name
