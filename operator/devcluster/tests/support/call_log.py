"""Which calls were made by whom: tests hold it against the roles that the operator is given.

`CallLog` is off until ``PUT /debug/calls`` (which also forgets what was there); ``GET`` shows it, ``DELETE`` ends it. A
call is what Kubernetes would ask its authorizer: server-side apply that creates is `patch` and `create`. Who calls is
told by the token of the kubeconfig (`ApiServer.write_kubeconfig`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from devcluster.apiserver.requests import RequestTarget


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class ApiCall:
    """One kind of call; `namespace` and `name` are empty where the request has none."""

    user: str
    verb: str
    group: str
    resource: str
    """`tasks`, or with the subresource `tasks/status`."""
    namespace: str
    name: str


class CallLog:
    """Each different call once."""

    def __init__(self) -> None:
        self.is_on = False
        self._calls: set[ApiCall] = set()

    def begin(self) -> None:
        self._calls.clear()
        self.is_on = True

    def end(self) -> None:
        self.is_on = False

    def note(self, user: str, verb: str, target: RequestTarget) -> None:
        if not self.is_on:
            return
        resource = f"{target.plural}/{target.subresource}" if target.subresource else target.plural
        call = ApiCall(
            user=user,
            verb=verb,
            group=target.group,
            resource=resource,
            namespace=target.namespace,
            name=target.name,
        )
        self._calls.add(call)

    def describe(self) -> dict[str, Any]:
        return {"on": self.is_on, "calls": [asdict(call) for call in sorted(self._calls)]}
