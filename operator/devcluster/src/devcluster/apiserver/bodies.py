"""Request bodies: JSON, YAML and Kubernetes' protobuf to plain values, with the fields that stand twice.

The dispatcher calls `decode_object` for what is created or replaced and `decode_patch` for patches.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import yaml

from devcluster.apiserver import errors
from devcluster.apiserver.protobuf import CONTENT_TYPE as PROTOBUF
from devcluster.apiserver.protobuf import decode_envelope

JSON = "application/json"
YAML = "application/yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

MAX_BODY_BYTES = 3 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A decoded body. `duplicates` are the paths of fields that it holds more than once (the last one counts)."""

    value: Any
    duplicates: tuple[str, ...] = ()


def media_type(header: str) -> str:
    """The type of a Content-Type header, without parameters."""
    return header.partition(";")[0].strip().lower()


def decode_object(data: bytes, content_type: str, *, find_duplicates: bool) -> Body:
    """Decodes an object. Raises ApiError 400 for what cannot be read, 415 for another media type."""
    kind = media_type(content_type) or JSON
    if kind in (JSON, "text/json"):
        return _decode_json(data, find_duplicates=find_duplicates)
    if kind in (YAML, "text/yaml", "application/x-yaml"):
        return _decode_yaml(data)
    if kind == PROTOBUF:
        return Body(value=decode_envelope(data))
    raise errors.unsupported_media_type(
        f"the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}, {PROTOBUF}"
    )


def decode_patch(data: bytes, content_type: str, *, find_duplicates: bool) -> tuple[str, Body]:
    """The kind of patch (its media type) and its content."""
    kind = media_type(content_type)
    if kind == APPLY_PATCH:
        looks_like_json = data.lstrip()[:1] == b"{"
        return kind, _decode_json(data, find_duplicates=find_duplicates) if looks_like_json else _decode_yaml(data)
    if kind in (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH):
        return kind, _decode_json(data, find_duplicates=find_duplicates)
    accepted = f"{JSON_PATCH}, {MERGE_PATCH}, {STRATEGIC_PATCH}, {APPLY_PATCH}"
    raise errors.unsupported_media_type(
        f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    )


class _Duplicates:
    """Collects, while JSON is parsed, which objects held a key twice; `paths` then finds where they ended up."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[dict[str, Any], list[str]]] = {}

    def hook(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            self.note(result, [key for key, _ in pairs])
        return result

    def note(self, mapping: dict[str, Any], keys: list[str]) -> None:
        twice = [key for key, times in Counter(keys).items() if times > 1]
        self._found[id(mapping)] = (mapping, twice)

    def paths(self, root: Any) -> tuple[str, ...]:
        return tuple(self._walk(root, "")) if self._found else ()

    def _walk(self, value: Any, path: str) -> list[str]:
        result: list[str] = []
        if isinstance(value, dict):
            prefix = f"{path}." if path else ""
            if id(value) in self._found:
                result.extend(prefix + key for key in self._found[id(value)][1])
            for key, item in value.items():
                result.extend(self._walk(item, prefix + key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                result.extend(self._walk(item, f"{path}[{index}]"))
        return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"invalid character '{text[0]}' looking for beginning of value")


def _decode_json(data: bytes, *, find_duplicates: bool) -> Body:
    duplicates = _Duplicates() if find_duplicates else None
    try:
        value = json.loads(
            data,
            object_pairs_hook=duplicates.hook if duplicates is not None else None,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise errors.bad_request("the object is nested too deeply") from None
    except ValueError as error:
        raise errors.bad_request(f"the object provided is unrecognized (invalid JSON): {error}") from error
    return Body(value=value, duplicates=duplicates.paths(value) if duplicates is not None else ())


_BaseLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc, valid-type]  # libyaml's loader where it is there
    """YAML as Kubernetes reads it: keys are strings, and what looks like a date is a string too."""

    duplicates: _Duplicates

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        self.flatten_mapping(node)
        pairs = [
            (_key(self.construct_object(key, deep=True)), self.construct_object(value, deep=deep))
            for key, value in node.value
        ]
        result = dict(pairs)
        if len(result) != len(pairs):
            self.duplicates.note(result, [key for key, _ in pairs])
        return result

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:
        data: dict[str, Any] = {}
        yield data
        built = self.construct_mapping(node)
        data.update(built)
        if id(built) in self.duplicates._found:
            self.duplicates.note(data, [*built, *self.duplicates._found.pop(id(built))[1]])


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def _key(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case None:
            return "null"
        case _:
            raise errors.bad_request(f"error converting YAML to JSON: unsupported map key: {value!r}")


def _decode_yaml(data: bytes) -> Body:
    loader = _Loader(data)
    loader.duplicates = _Duplicates()
    try:
        value = loader.get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_request(f"error converting YAML to JSON: {error}") from error
    finally:
        loader.dispose()
    return Body(value=value, duplicates=loader.duplicates.paths(value))


def expect_object(body: Body) -> dict[str, Any]:
    """The body's object. Raises ApiError 400 when it is something else."""
    if not isinstance(body.value, dict):
        raise errors.bad_request("the object provided is unrecognized (it must be a JSON object)")
    return body.value


def check_kind(obj: dict[str, Any], *, api_version: str, kind: str, implied: bool) -> None:
    """Raises ApiError 400 unless `obj` says that it is of this version and kind.

    `implied`: an object that says nothing is taken for one (built-in kinds only); it is completed in place.
    """
    if implied:
        obj.setdefault("kind", kind)
        obj.setdefault("apiVersion", api_version)
    given_version, given_kind = obj.get("apiVersion"), obj.get("kind")
    if not given_kind:
        raise errors.bad_request("Object 'Kind' is missing in the body of the request")
    if not given_version:
        raise errors.bad_request("Object 'apiVersion' is missing in the body of the request")
    if given_version != api_version:
        raise errors.bad_request(
            f"the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )
    if given_kind != kind:
        version = api_version.rpartition("/")[2]
        raise errors.bad_request(f'{given_kind} in version "{version}" cannot be handled as a {kind}')
