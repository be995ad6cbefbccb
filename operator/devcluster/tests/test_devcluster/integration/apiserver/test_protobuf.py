"""Bodies in Kubernetes' protobuf: what the tables know is read, anything else is refused and not lost in silence."""

from __future__ import annotations

import pytest

from devcluster.apiserver.errors import ApiError
from devcluster.apiserver.protobuf import decode_envelope


def number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varint(field: int, value: int) -> bytes:
    return number(field << 3) + number(value & 0xFFFF_FFFF_FFFF_FFFF)


def block(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return number(field << 3 | 2) + number(len(data)) + data


def envelope(api_version: str, kind: str, message: bytes) -> bytes:
    return b"k8s\x00" + block(1, block(1, api_version) + block(2, kind)) + block(2, message)


def test_maps_bytes_and_flags_are_read() -> None:
    metadata = block(1, "s") + block(2, "") + block(8, b"") + block(11, block(1, "a") + block(2, "b"))
    message = block(1, metadata) + block(2, block(1, "key") + block(2, b"\x00\xff")) + block(3, "Opaque") + varint(5, 0)
    assert decode_envelope(envelope("v1", "Secret", message)) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "labels": {"a": "b"}},
        "data": {"key": "AP8="},
        "type": "Opaque",
        "immutable": False,
    }, "a false that is a pointer in Go is meant, an empty string is not"


def test_numbers_may_be_negative_and_replicas_zero() -> None:
    message = block(1, block(1, "d") + varint(7, -3)) + block(2, varint(1, 0))
    decoded = decode_envelope(envelope("apps/v1", "Deployment", message))
    assert decoded["metadata"]["generation"] == -3
    assert decoded["spec"] == {"replicas": 0}


def test_what_is_inlined_in_go_is_inlined_in_json() -> None:
    reference = block(1, block(1, "settings")) + block(2, "key")
    variable = block(1, "A") + block(3, block(3, reference))
    container = block(1, "main") + block(7, variable)
    volume = block(1, "v") + block(2, block(2, b""))
    pod = block(1, block(1, "p")) + block(2, block(1, volume) + block(2, container))
    decoded = decode_envelope(envelope("v1", "Pod", pod))
    assert decoded["spec"]["containers"][0]["env"] == [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}}
    ]
    assert decoded["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", 400, "must be of type protobuf"),
        (b"{}", 400, "must be of type protobuf"),
        (b"k8s\x00\x0a\xff", 400, "malformed protobuf"),
        (b"k8s\x00\x80", 400, "malformed protobuf"),
        (b"k8s\x00\x09", 400, "malformed protobuf"),
        (envelope("v1", "Namespace", block(1, block(1, b"\xff"))), 400, "malformed protobuf"),
        (envelope("v1", "Namespace", block(99, "x")), 415, "field 99 of core/v1.Namespace is not known"),
        (envelope("batch/v1", "Job", b""), 415, "Job in batch/v1 is not accepted as protobuf"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes, code: int, message: str) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        decode_envelope(data)
    assert refused.value.code == code
