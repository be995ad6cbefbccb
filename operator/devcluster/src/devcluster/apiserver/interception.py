"""Something between the clients and the server, for tests: it sees every call, may delay or refuse it, and may disturb
what a watch says. `ApiServer` takes one; `dispatch` asks it. The server itself comes with none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from devcluster.apiserver.requests import RequestTarget


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request for objects; `verb` is get, list, watch, create, update, patch, delete or deletecollection."""

    user: str
    """The name in the kubeconfig that it was made with."""
    verb: str
    target: RequestTarget
    resource: str
    """``pods``, or ``widgets.example.com``."""


class Interceptor:
    """Lets everything pass. Those below may raise an `ApiError`, which is then the answer."""

    async def before(self, call: Call) -> None:
        """The request is known to make sense, and nothing has been done yet."""

    def after(self, call: Call, *, created: bool) -> None:
        """The request has been carried out; `created`: there is a new object."""

    def disturb(self, call: Call, lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The lines of a watch as its client is to get them."""
        return lines

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        """A request under ``/debug/``, which is how a test in another process reaches this; None: no such path."""
        return None
