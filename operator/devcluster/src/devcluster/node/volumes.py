"""A pod's volumes as folders on this machine. Called by ``kubelet``.

A configMap, secret, projected or downwardAPI volume is written into a fresh folder and shown through one symbolic link
that is replaced as a whole, so that a reader sees the old content or the new, never half of each. Refreshing it is
the same call again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from devcluster.node.environment import ConfigError, Mount, Reader, Source, read_field
from devcluster.node.objects import KubeObject, find_named

_DEFAULT_MODE = 0o644
_LINK = "..data"


async def write_volumes(pod: KubeObject, folder: Path, read: Reader) -> None:
    """Make or refresh all volumes of a pod below `folder`. Raises ``ConfigError`` for content that is missing."""
    for volume in pod["spec"].get("volumes") or ():
        place = folder / volume["name"]
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "emptyDir" not in volume:
            _show(place, await _content(pod, volume, read))


def mounts_of(container: Mapping[str, Any], folder: Path) -> list[Mount]:
    """Where the container's mount paths really are."""
    mounts = []
    for mount in container.get("volumeMounts") or ():
        place = folder / mount["name"]
        if mount.get("subPath"):
            place = place / _inside(mount["subPath"])
        mounts.append(Mount(path=mount["mountPath"], folder=str(place)))
    return mounts


def make_subfolders(mounts: Sequence[Mount]) -> None:
    """Make the folders of subPath mounts that are not there yet; one that names a file is left alone."""
    for mount in mounts:
        folder = Path(mount.folder)
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)


Files = dict[str, tuple[bytes, int]]
"""Relative path → content and mode."""


async def _content(pod: KubeObject, volume: Mapping[str, Any], read: Reader) -> Files:
    if "configMap" in volume:
        source = volume["configMap"]
        return await _entries("ConfigMap", source.get("name", ""), source, read, source.get("defaultMode"))
    if "secret" in volume:
        source = volume["secret"]
        return await _entries("Secret", source.get("secretName", ""), source, read, source.get("defaultMode"))
    if "downwardAPI" in volume:
        return _fields(pod, volume["downwardAPI"], volume["downwardAPI"].get("defaultMode"))
    projected = volume["projected"]
    mode = projected.get("defaultMode")
    files: Files = {}
    for source in projected.get("sources") or ():
        if "configMap" in source:
            files |= await _entries("ConfigMap", source["configMap"].get("name", ""), source["configMap"], read, mode)
        elif "secret" in source:
            files |= await _entries("Secret", source["secret"].get("name", ""), source["secret"], read, mode)
        else:
            files |= _fields(pod, source["downwardAPI"], mode)
    return files


async def _entries(kind: Source, name: str, source: Mapping[str, Any], read: Reader, mode: int | None) -> Files:
    mode = _DEFAULT_MODE if mode is None else mode
    content = await read(kind, name)
    if content is None:
        if source.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    items = source.get("items")
    if not items:
        return {entry: (value, mode) for entry, value in content.items()}
    files: Files = {}
    for item in items:
        if item["key"] in content:
            files[str(_inside(item["path"]))] = (content[item["key"]], item.get("mode") or mode)
        elif not source.get("optional"):
            raise ConfigError(f"references non-existent key {item['key']} of {kind.lower()} {name}")
    return files


def _fields(pod: KubeObject, source: Mapping[str, Any], mode: int | None) -> Files:
    mode = _DEFAULT_MODE if mode is None else mode
    return {
        str(_inside(item["path"])): (read_field(pod, item["fieldRef"]["fieldPath"]).encode(), item.get("mode") or mode)
        for item in source.get("items") or ()
    }


def _inside(path: str) -> PurePosixPath:
    """A relative path that stays where it is put."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(f"the path {path!r} must be relative and must not contain '..'")
    return relative


def _show(place: Path, files: Files) -> None:
    """Put the files in place unless they are there already."""
    link = place / _LINK
    if link.exists() and _read(link.resolve()) == files:
        return
    number = 1 + max((int(old.name[2:]) for old in place.glob("..[0-9]*")), default=0)
    fresh = place / f"..{number}"
    fresh.mkdir(mode=0o700)
    for path, (content, mode) in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    before = link.resolve() if link.exists() else None
    replacement = place / f"{_LINK}.new"
    replacement.unlink(missing_ok=True)
    replacement.symlink_to(fresh.name)
    os.replace(replacement, link)  # noqa: PTH105 - Path.replace would follow nothing either; this names the intent
    tops = {PurePosixPath(path).parts[0] for path in files}
    for top in tops:
        entry = place / top
        if not entry.is_symlink():
            entry.symlink_to(f"{_LINK}/{top}")
    for entry in place.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _read(folder: Path) -> Files:
    return {
        str(found.relative_to(folder)): (found.read_bytes(), found.stat().st_mode & 0o777)
        for found in folder.rglob("*")
        if found.is_file()
    }


def unsupported_volumes(volumes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What this node does not have, as paths with a reason."""
    known = {"name", "configMap", "secret", "emptyDir", "projected", "downwardAPI"}
    refusals = []
    for index, volume in enumerate(volumes):
        kinds = sorted(set(volume) - known)
        refusals += [f"spec.volumes[{index}].{kind}: this kind of volume is not supported" for kind in kinds]
        for number, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            for kind in sorted(set(source) - {"configMap", "secret", "downwardAPI"}):
                path = f"spec.volumes[{index}].projected.sources[{number}].{kind}"
                refusals.append(f"{path}: this kind of source is not supported")
    return refusals


def missing_mounts(pod: KubeObject, container: Mapping[str, Any]) -> list[str]:
    """Mounts of volumes that the pod does not have."""
    volumes = pod["spec"].get("volumes")
    return [
        f"volumeMounts: the pod has no volume {mount['name']}"
        for mount in container.get("volumeMounts") or ()
        if find_named(volumes, mount["name"]) is None
    ]
