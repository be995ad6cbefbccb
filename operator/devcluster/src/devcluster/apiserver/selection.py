"""Which objects of a resource a list, a watch or a deletecollection is about: namespace, label and field selector."""

from __future__ import annotations

from dataclasses import dataclass

from devcluster.apiserver import errors
from devcluster.apiserver.cluster import Cluster
from devcluster.apiserver.registry import Served
from devcluster.apiserver.requests import QueryOptions
from devcluster.apiserver.storage import Stored
from devcluster.machinery.selectors import (
    FieldSelector,
    InvalidSelector,
    LabelSelector,
    parse_field_selector,
    parse_label_selector,
)

_BY_KEY = ("metadata.name", "metadata.namespace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """`namespace` is None for all namespaces."""

    cluster: Cluster
    served: Served
    namespace: str | None
    labels: LabelSelector | None
    fields: FieldSelector | None

    @property
    def selects_all(self) -> bool:
        return self.labels is None and self.fields is None

    def matches(self, stored: Stored) -> bool:
        if self.namespace is not None and stored.namespace != self.namespace:
            return False
        if self.labels is not None and not self.labels.matches(stored.labels):
            return False
        return self.fields is None or self._matches_fields(self.fields, stored)

    def _matches_fields(self, fields: FieldSelector, stored: Stored) -> bool:
        if all(field in _BY_KEY for field, _, _ in fields.terms):
            metadata = {"name": stored.name, "namespace": stored.namespace}
            return fields.matches_object({"metadata": metadata})
        return fields.matches_object(self.cluster.load(self.served, stored))

    def objects(self) -> list[Stored]:
        """The selected objects, in the order of namespace and name."""
        if self.fields is not None and (name := self.fields.required_value("metadata.name")) is not None:
            namespace = self.namespace or self.fields.required_value("metadata.namespace")
            if namespace is not None or not self.served.info.namespaced:
                found = self.cluster.storage.get(self.served.storage, namespace or "", name)
                return [found] if found is not None and self.matches(found) else []
        listed = self.cluster.storage.objects(self.served.storage, self.namespace)
        return list(listed) if self.selects_all else [stored for stored in listed if self.matches(stored)]


def select(cluster: Cluster, served: Served, namespace: str, name: str, options: QueryOptions) -> Selection:
    """Reads the selectors of a request. `name` narrows to one object (a watch of it). Raises ApiError 400."""
    info = served.info
    terms = [options.field_selector] if options.field_selector else []
    if name:
        terms.append(f"metadata.name={name}")
    try:
        labels = parse_label_selector(options.label_selector) if options.label_selector else None
        fields = (
            parse_field_selector(",".join(terms), info.selectable_fields, namespaced=info.namespaced) if terms else None
        )
    except InvalidSelector as error:
        raise errors.bad_request(str(error)) from error
    return Selection(
        cluster=cluster,
        served=served,
        namespace=namespace if info.namespaced and namespace else None,
        labels=labels,
        fields=fields,
    )
