"""In which form a client wants objects: as they are, as a Table (kubectl get), or their metadata only.

`choose_view` reads the Accept header; the functions here make the form for one object, a list, or a watch event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from devcluster.apiserver import errors
from devcluster.apiserver.registry import Served
from devcluster.machinery.table import IncludeObject, to_table

Form = Literal["object", "table", "metadata"]

_PLAIN = frozenset({"application/json", "application/*", "*/*", ""})
_ACCEPTED = "application/json, application/json;as=Table;v=v1;g=meta.k8s.io"


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """`include_object`: what a Table's rows carry of the object itself: `None`, `Metadata` or `Object`."""

    form: Form
    include_object: IncludeObject = "Metadata"


PLAIN = View(form="object")


def choose_view(accept: str, query: Mapping[str, str]) -> View:
    """The first form of the Accept header that is known here. Raises ApiError 406."""
    if accept in _PLAIN:
        return PLAIN
    for clause in accept.split(","):
        media, *raw = (part.strip() for part in clause.split(";"))
        if media.lower() not in _PLAIN:
            continue
        parameters = dict(part.partition("=")[::2] for part in raw)
        match parameters.get("as"), parameters.get("v", "v1"):
            case None, _:
                return PLAIN
            case "Table", "v1":
                include = query.get("includeObject") or "Metadata"
                if include not in ("None", "Metadata", "Object"):
                    raise errors.bad_request(f'includeObject: Unsupported value: "{include}"')
                return View(form="table", include_object=cast("IncludeObject", include))
            case "PartialObjectMetadata" | "PartialObjectMetadataList", "v1":
                return View(form="metadata")
            case _:
                continue
    raise errors.ApiError(
        406, "NotAcceptable", f"only the following media types are accepted: {_ACCEPTED}, application/yaml"
    )


def partial_metadata(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def table(
    served: Served,
    objects: Sequence[dict[str, Any]],
    *,
    now: datetime,
    view: View,
    metadata: Mapping[str, Any],
    with_columns: bool = True,
) -> dict[str, Any]:
    """A Table of the objects; a watch sends the columns with its first event only."""
    result = to_table(served.info, objects, now, include_object=view.include_object)
    result["metadata"] = dict(metadata)
    if not with_columns:
        result["columnDefinitions"] = None
    return result


def metadata_list(objects: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": dict(metadata),
        "items": [partial_metadata(obj) for obj in objects],
    }
