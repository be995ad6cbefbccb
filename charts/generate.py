"""Writes the parts of the charts that follow from other files; `make chart` runs it, `--check` only compares.

- the CRD templates of both charts, from crds/;
- the chart versions, from the project's one version;
- the schema of `defaultPool` in values.schema.json, from the WorkerPool's CRD;
- the table of values in README.md, from the comments of values.yaml.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).parent
ROOT = CHARTS.parent
VERSION_FILE = ROOT / "worker_image" / "src" / "tasker_worker" / "_version.py"
TABLE = re.compile(r"(<!-- values: begin[^\n]*-->\n).*?(<!-- values: end -->)", re.DOTALL)


def outputs() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    written: dict[Path, str] = {}
    for crd in sorted((ROOT / "crds").glob("*.yaml")):
        text = crd.read_text(encoding="utf-8")
        written[CHARTS / "tasker" / "templates" / "crds" / crd.name] = crd_template(
            text, crd.name, enabled=".Values.crds.enabled", keep=".Values.crds.keep"
        )
        written[CHARTS / "tasker-crds" / "templates" / crd.name] = crd_template(
            text, crd.name, enabled=None, keep=".Values.keep"
        )
    version = _version()
    for chart in ("tasker", "tasker-crds"):
        file = CHARTS / chart / "Chart.yaml"
        text = re.sub(r"(?m)^version: .*$", f"version: {version}", file.read_text(encoding="utf-8"))
        written[file] = re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{version}"', text)
    written[CHARTS / "tasker" / "values.schema.json"] = values_schema()
    written[CHARTS / "tasker" / "README.md"] = readme()
    return written


def _version() -> str:
    found = re.search(r'__version__ = "([^"]+)"', VERSION_FILE.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{VERSION_FILE} holds no __version__")
    return found[1]


def crd_template(text: str, name: str, *, enabled: str | None, keep: str) -> str:
    """The definition as a template: its text, with the keep policy put into its metadata."""
    head, found, tail = text.partition("\nmetadata:\n")
    if not found or "\n  annotations:" in head + tail.partition("\nspec:\n")[0]:
        raise SystemExit(f"crds/{name}: expected metadata without annotations")
    escaped = [part.replace("{{", '{{ "{{" }}') for part in (head, tail)]
    policy = f"  {{{{- if {keep} }}}}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{{{- end }}}}\n"
    body = f"# Made from crds/{name} by `make chart`: edit that file, not this one.\n" + (
        f"{escaped[0]}\nmetadata:\n{policy}{escaped[1]}"
    )
    return body if enabled is None else f"{{{{- if {enabled} }}}}\n{body}{{{{- end }}}}\n"


def values_schema() -> str:
    """values.schema.json with the WorkerPool's spec, as strict as the API server, under `$defs`."""
    file = CHARTS / "tasker" / "values.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    crd = yaml.safe_load((ROOT / "crds" / "workerpools.yaml").read_text(encoding="utf-8"))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["$defs"]["workerPoolSpec"] = _plain(spec)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _plain(node: Any) -> Any:
    """A CRD's schema as a JSON Schema: without Kubernetes' extensions, and closed where it names its fields."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            plain[key] = {name: _plain(each) for name, each in value.items()}
        elif key not in ("format", "default") and not key.startswith("x-kubernetes-"):
            plain[key] = _plain(value)
    if "properties" in plain and not node.get("x-kubernetes-preserve-unknown-fields"):
        plain.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        # The pattern is for texts alone; in JSON Schema too it does not touch numbers.
        plain["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return plain


def readme() -> str:
    """README.md with its table of values made anew."""
    file = CHARTS / "tasker" / "README.md"
    text = file.read_text(encoding="utf-8")
    rows = ["| Value | Default | Meaning |", "|---|---|---|"]
    described = described_values((CHARTS / "tasker" / "values.yaml").read_text(encoding="utf-8"))
    for path, default, meaning in described:
        has_rows = any(other.startswith(f"{path}.") for other, *_ in described)
        shown = "below" if has_rows else f"`{json.dumps(default)}`"
        rows.append(" | ".join(["", f"`{path}`", shown, meaning, ""]).strip())
    if not TABLE.search(text):
        raise SystemExit(f"{file} has no place for the table of values")
    return TABLE.sub(lambda found: found[1] + "\n".join(rows) + "\n" + found[2], text)


def described_values(text: str) -> list[tuple[str, Any, str]]:
    """Path, default and meaning of every value that has a comment beginning with two dashes."""
    lines = text.splitlines()
    node = yaml.compose(text)
    defaults = yaml.safe_load(text)
    assert isinstance(node, yaml.MappingNode)
    return [
        (".".join(path), _at(defaults, path), meaning)
        for path, line in _keys(node, ())
        if (meaning := _comment_above(lines, line))
    ]


def _keys(node: yaml.MappingNode, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    for key, value in node.value:
        path = (*above, key.value)
        yield path, key.start_mark.line
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _keys(value, path)


def _comment_above(lines: list[str], line: int) -> str:
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].strip().removeprefix("#").strip())
    for number, each in enumerate(comment):
        if each.startswith("-- "):
            return " ".join([each.removeprefix("-- "), *comment[number + 1 :]])
    return ""


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def main(arguments: list[str]) -> int:
    """Exit code 1 with `--check` when a file is not as it should be."""
    stale = []
    for file, text in outputs().items():
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(file.relative_to(ROOT))
        if "--check" not in arguments:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for each in stale:
        print(f"{each}: {'not up to date, run make chart' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
