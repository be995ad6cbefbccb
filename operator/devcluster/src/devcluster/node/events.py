"""Kubernetes Events about what the node does: posted in the background, repeated ones counted in one object."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from devcluster.loops import Heartbeat
from devcluster.node.client import EVENTS, ApiClient, ApiError, Resource
from devcluster.node.objects import Key, KubeObject, format_time, key_of, uid_of

logger = logging.getLogger(__name__)

LATE_SECONDS = 60.0
"""One Event is two requests at most, each with a time limit of its own."""

_WAITING = 1000  # an Event is a courtesy: when the server is this far behind, new ones are dropped
_REMEMBERED = 500


@dataclass(kw_only=True)
class _Known:
    key: Key
    count: int


@dataclass(frozen=True, kw_only=True)
class _Note:
    subject: KubeObject
    resource: Resource
    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    component: str


class EventRecorder:
    """Collects Events and posts them in order."""

    def __init__(self, client: ApiClient, node_name: str, now: Callable[[], datetime]) -> None:
        self.heart = Heartbeat(LATE_SECONDS)
        self._client = client
        self._node_name = node_name
        self._now = now
        self._queue: asyncio.Queue[_Note] = asyncio.Queue(maxsize=_WAITING)
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()

    def record(
        self,
        subject: KubeObject,
        resource: Resource,
        reason: str,
        message: str,
        *,
        warning: bool = False,
        component: str = "kubelet",
    ) -> None:
        """Tell something about an object. Returns at once."""
        kind: Literal["Normal", "Warning"] = "Warning" if warning else "Normal"
        note = _Note(
            subject=subject, resource=resource, kind=kind, reason=reason, message=message[:1024], component=component
        )
        try:
            self._queue.put_nowait(note)
            self.heart.expect()
        except asyncio.QueueFull:
            logger.warning("an event was dropped: %s %s: %s", key_of(subject), reason, message)

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            if self._queue.empty():
                self.heart.rest()
            note = await self._queue.get()
            self.heart.beat()
            try:
                await self._post(note)
            except ApiError as error:
                # A namespace on its way out takes no more Events.
                level = logging.DEBUG if error.status in (403, 404) else logging.WARNING
                logger.log(level, "an event about %s is lost: %s", key_of(note.subject), error)
            except Exception:
                logger.exception("an event about %s is lost", key_of(note.subject))

    async def _post(self, note: _Note) -> None:
        identity = (uid_of(note.subject), note.reason, note.message)
        moment = format_time(self._now())
        known = self._known.get(identity)
        if known is not None:
            known.count += 1
            self._known.move_to_end(identity)
            try:
                await self._client.patch(EVENTS, known.key, {"count": known.count, "lastTimestamp": moment})
            except ApiError as error:
                if not error.is_not_found:
                    raise
                del self._known[identity]
            else:
                return
        subject = key_of(note.subject)
        namespace = subject.namespace or "default"
        name = f"{subject.name}.{secrets.token_hex(8)}"
        metadata = note.subject["metadata"]
        body: KubeObject = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": note.resource.api_version,
                "kind": note.resource.kind,
                "name": subject.name,
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
                **({"namespace": subject.namespace} if subject.namespace else {}),
            },
            "type": note.kind,
            "reason": note.reason,
            "message": note.message,
            "source": {"component": note.component, "host": self._node_name},
            "reportingComponent": note.component,
            "reportingInstance": self._node_name,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        await self._client.create(EVENTS, namespace, body)
        self._known[identity] = _Known(key=Key(namespace, name), count=1)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
