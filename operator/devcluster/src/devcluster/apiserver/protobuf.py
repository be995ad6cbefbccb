"""Kubernetes' protobuf to plain JSON values, for the kinds that kubectl sends in no other form.

`kubectl create namespace` and its likes post protobuf and do not fall back on JSON. A table (`protobuf_fields.json`)
says what each field number is; a kind or a field that it does not have is refused, so that nothing is lost in silence.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Any

from devcluster.apiserver import errors

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EMPTY: tuple[Any, ...] = (None, "", 0, False, {}, [])


class _Malformed(ValueError):
    """The bytes are no protobuf message."""


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    text = files(__package__).joinpath("protobuf_fields.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def decode_envelope(data: bytes) -> dict[str, Any]:
    """The object in a body of this content type. Raises ApiError 400, or 415 for a kind that is not in the table."""
    if not data.startswith(_MAGIC):
        raise errors.bad_request("the object provided is unrecognized (must be of type protobuf)")
    try:
        envelope = dict(_fields(data[len(_MAGIC) :]))
        identity = {number: value.decode() for number, value in _fields(envelope.get(1, b""))}
        api_version, kind = identity.get(1, ""), identity.get(2, "")
        kinds = _table()["kinds"]
        # DeleteOptions and Scale may be sent in the group of the resource that they are for.
        message = kinds.get(f"{api_version}/{kind}") or kinds.get(f"meta.k8s.io/v1/{kind}")
        if message is None:
            raise errors.unsupported_media_type(
                f"{kind} in {api_version} is not accepted as protobuf by the embedded cluster; send JSON"
            )
        return {"apiVersion": api_version, "kind": kind, **_message(message, envelope.get(2, b""))}
    except (_Malformed, UnicodeDecodeError, AttributeError) as error:
        raise errors.bad_request(f"the object provided is unrecognized (malformed protobuf): {error}") from error


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in their order: a number for a varint, bytes for everything with a length."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        match key & 7:
            case 0:
                value, position = _varint(data, position)
                yield key >> 3, value
            case 2:
                length, position = _varint(data, position)
                if position + length > len(data):
                    raise _Malformed("a field is longer than its message")
                yield key >> 3, data[position : position + length]
                position += length
            case wire:
                raise _Malformed(f"wire type {wire} is used by no Kubernetes type here")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise _Malformed("a number does not end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _message(name: str, data: bytes) -> dict[str, Any]:
    """Zero values go, as they do in JSON, unless the field is a pointer, where a zero is meant."""
    table: dict[str, list[str]] = _table()["messages"][name]
    result: dict[str, Any] = {}
    for number, raw in _fields(data):
        field = table.get(str(number))
        if field is None:
            raise errors.unsupported_media_type(f"field {number} of {name} is not known to the embedded cluster")
        json_name, flags, kind = field
        if kind == "-":
            continue
        if "%" in flags:
            entry = dict(_fields(raw))
            result.setdefault(json_name, {})[entry.get(1, b"").decode()] = _value(kind, entry.get(2, b""))
            continue
        value = _value(kind, raw)
        if "^" in flags:
            result.update(value)
        elif "*" in flags:
            result.setdefault(json_name, []).append(value)
        elif "?" in flags or value not in _EMPTY:
            result[json_name] = value
    return result


def _value(kind: str, raw: Any) -> Any:
    match kind:
        case "string":
            return raw.decode()
        case "int":
            return _signed(raw)
        case "bool":
            return bool(raw)
        case "bytes":
            return base64.b64encode(raw).decode()
        case "Time" | "MicroTime":
            return _time(raw, micro=kind == "MicroTime")
        case "IntOrString":
            parts = dict(_fields(raw))
            return parts.get(3, b"").decode() if parts.get(1) else _signed(parts.get(2, 0))
        case "Quantity":
            return dict(_fields(raw)).get(1, b"").decode()
        case "Raw":
            return json.loads(dict(_fields(raw)).get(1, b"{}"))
        case _:
            return _message(kind, raw)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _time(raw: bytes, *, micro: bool) -> str | None:
    """None for the zero time, which a message without fields stands for."""
    parts = dict(_fields(raw))
    if not parts:
        return None
    moment = _EPOCH + timedelta(seconds=parts.get(1, 0), microseconds=parts.get(2, 0) // 1000 if micro else 0)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
