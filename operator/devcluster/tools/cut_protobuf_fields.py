"""Cuts the field numbers that `protobuf` needs out of Kubernetes' public Go types, into `protobuf_fields.json`.

Run by a developer when Kubernetes moves on: ``python cut_protobuf_fields.py FOLDER``, where
FOLDER holds the sources of k8s.io/api (``core/v1/types.go`` ..) and k8s.io/apimachinery (``pkg/..``). The struct tags
say it all: ``Name string `json:"name" protobuf:"bytes,1,opt,name=name"` ``.

A field is written ``[JSON name, flags, type]``. Flags: ``*`` a list, ``%`` a map with string keys, ``?`` a pointer (a
zero is meant), ``^`` inlined into its parent. Type: ``string``, ``int``, ``bool``, ``bytes``, ``-`` (not decoded), one
of the special types of `protobuf`, or the name of a message.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src" / "devcluster" / "apiserver" / "protobuf_fields.json"
META = "pkg/apis/meta/v1"

# The kinds that clients send as protobuf: those with a `kubectl create` command of their own, reviews, and options.
KINDS = {
    "v1": ("core/v1", ("Namespace", "ConfigMap", "Secret", "ServiceAccount", "Service", "Pod")),
    "apps/v1": ("apps/v1", ("Deployment",)),
    "policy/v1": ("policy/v1", ("PodDisruptionBudget",)),
    "rbac.authorization.k8s.io/v1": ("rbac/v1", ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")),
    "coordination.k8s.io/v1": ("coordination/v1", ("Lease",)),
    "authentication.k8s.io/v1": ("authentication/v1", ("SelfSubjectReview",)),
    "authorization.k8s.io/v1": ("authorization/v1", ("SelfSubjectAccessReview", "SelfSubjectRulesReview")),
    "autoscaling/v1": ("autoscaling/v1", ("Scale",)),
    "meta.k8s.io/v1": (META, ("DeleteOptions",)),
}
SPECIAL = {
    f"{META}.Time": "Time",
    f"{META}.MicroTime": "MicroTime",
    f"{META}.FieldsV1": "Raw",
    "pkg/util/intstr.IntOrString": "IntOrString",
    "pkg/api/resource.Quantity": "Quantity",
    "pkg/types.UID": "string",
}
SCALARS = {"string": "string", "bool": "bool", "int32": "int", "int64": "int", "[]byte": "bytes"}

_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ALIAS = re.compile(r"^type (\w+) ([\w.\[\]]+)$", re.MULTILINE)
_FIELD = re.compile(
    r'^\t(?:(\w+) )?\s*(\S+)\s+`json:"([^"]*)".*?protobuf:"(\w+),(\d+),\w+(?:,name=(\w+))?', re.MULTILINE
)
_IMPORT = re.compile(r'^\t(?:(\w+) )?"k8s\.io/(?:api|apimachinery)/([\w/]+)"$', re.MULTILINE)

Field = list[str]


class _Sources:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._text: dict[str, str] = {}

    def text(self, package: str) -> str:
        if package not in self._text:
            files = sorted((self._folder / package).glob("types*.go"))
            self._text[package] = "\n".join(file.read_text(encoding="utf-8") for file in files)
        return self._text[package]

    def struct(self, package: str, name: str) -> str | None:
        return next((body for found, body in _STRUCT.findall(self.text(package)) if found == name), None)

    def alias(self, package: str, name: str) -> str | None:
        return next((target for found, target in _ALIAS.findall(self.text(package)) if found == name), None)

    def resolve(self, package: str, name: str) -> tuple[str, str]:
        prefix, dot, last = name.rpartition(".")
        if not dot:
            return package, name
        for alias, path in _IMPORT.findall(self.text(package)):
            if prefix == (alias or path.rpartition("/")[2]):
                return path, last
        raise SystemExit(f"{package}: where is {name}?")


def cut(folder: Path) -> dict[str, dict[str, object]]:
    """The content of the table: the message of each kind, and the fields of each message by number."""
    sources = _Sources(folder)
    kinds: dict[str, object] = {}
    messages: dict[str, dict[str, Field]] = {}
    wanted: list[tuple[str, str]] = []
    for api_version, (package, names) in KINDS.items():
        for name in names:
            kinds[f"{api_version}/{name}"] = f"{package}.{name}"
            wanted.append((package, name))
    while wanted:
        package, name = wanted.pop()
        if f"{package}.{name}" in messages:
            continue
        body = sources.struct(package, name)
        if body is None:
            raise SystemExit(f"no struct {package}.{name}")
        fields = messages[f"{package}.{name}"] = {}
        for _, go_type, json_tag, _, number, _ in _FIELD.findall(body):
            flags, kind, message = _describe(sources, package, go_type)
            json_name, _, options = json_tag.partition(",")
            if json_name == "status":
                kind, message = "-", None
            if not json_name or "inline" in options:
                flags += "^"
            fields[number] = [json_name, flags, kind]
            if message is not None:
                wanted.append(message)
    return {"kinds": kinds, "messages": dict(sorted(messages.items()))}


def _describe(sources: _Sources, package: str, go_type: str) -> tuple[str, str, tuple[str, str] | None]:
    """Flags, type and, when the type is a message, its package and name."""
    flags = ""
    if go_type.startswith("*"):
        flags, go_type = "?", go_type[1:]
    if go_type in SCALARS:
        return flags, SCALARS[go_type], None
    if go_type.startswith("[]"):
        flags, go_type = flags + "*", go_type[2:]
    elif go_type.startswith("map["):
        flags, go_type = flags + "%", go_type.partition("]")[2]
    if go_type in SCALARS:
        return flags, SCALARS[go_type], None
    where, name = sources.resolve(package, go_type)
    if special := SPECIAL.get(f"{where}.{name}"):
        return flags, special, None
    if sources.struct(where, name) is not None:
        return flags, f"{where}.{name}", (where, name)
    target = sources.alias(where, name)
    if target is None:
        raise SystemExit(f"what is {where}.{name}?")
    more, kind, message = _describe(sources, where, target)
    return flags + more, kind, message


def main() -> int:
    table = cut(Path(sys.argv[1]))
    about = "Field numbers of the Kubernetes API types (Apache-2.0), cut by cut_protobuf_fields.py; not edited."
    TARGET.write_text(json.dumps({"about": about, **table}, separators=(",", ":")) + "\n", encoding="utf-8")
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
