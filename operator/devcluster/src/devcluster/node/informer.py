"""A local copy of all objects of one kind, kept by list and watch; tells which object changed.

Survives whatever the server does: a watch that ends goes on where it stopped; after one that broke, fell silent or is
too old, and every few minutes whatever happens, everything is listed anew. Delays grow while nothing helps. An object
that cannot be read, or whose reader fails, is logged by its name and hides no other.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import aclosing

from devcluster.loops import Heartbeat
from devcluster.node.client import ApiClient, ApiError, Resource
from devcluster.node.objects import Key, KubeObject, key_of, uid_of, version_of

logger = logging.getLogger(__name__)

WATCH_SECONDS = 240  # the server ends the watch after that; it is continued where it stopped
SILENCE_SECONDS = 75.0  # a healthy server sends a bookmark at least once a minute
RELIST_SECONDS = 300.0  # everything is read anew that often, should an event have been lost

LATE_SECONDS = 2 * SILENCE_SECONDS + 30.0
"""A watch that did nothing for so long, not even fail, does not come round any more."""

_WORDS = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 5.0
_GRAVESTONES = 2000


class Informer:
    """The objects of one kind in all namespaces. `on_change` gets each that came, changed or went (as last seen)."""

    def __init__(
        self,
        client: ApiClient,
        resource: Resource,
        on_change: Callable[[KubeObject], None],
        *,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self.resource = resource
        self.heart = Heartbeat(LATE_SECONDS)
        self._relist_seconds = relist_seconds
        self.synced = asyncio.Event()
        self._client = client
        self._on_change = on_change
        self._objects: dict[Key, KubeObject] = {}
        # Uids of what was removed, so that a late word about one does not bring it back.
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._version = ""
        self._listed_at = 0.0

    def get(self, key: Key) -> KubeObject | None:
        """The object there now, as last seen."""
        return self._objects.get(key)

    def select(self, namespace: str) -> Iterator[KubeObject]:
        """The objects of one namespace."""
        return (found for key, found in self._objects.items() if key.namespace == namespace)

    def all(self) -> list[KubeObject]:
        """All objects."""
        return list(self._objects.values())

    def observe(self, obj: KubeObject) -> None:
        """Take in an object: from the watch, or from the answer to a write of our own, which comes before the watch."""
        key, uid = key_of(obj), uid_of(obj)
        known = self._objects.get(key)
        if uid in self._gone or (known is not None and version_of(known) >= version_of(obj)):
            return
        self._objects[key] = obj
        self._notify(obj)

    def forget(self, obj: KubeObject) -> None:
        """An object is gone."""
        key, uid = key_of(obj), uid_of(obj)
        self._gone[uid] = None
        if len(self._gone) > _GRAVESTONES:
            self._gone.popitem(last=False)
        known = self._objects.get(key)
        if known is not None and uid_of(known) == uid:
            del self._objects[key]
            self._notify(obj)

    async def run(self) -> None:
        """List and watch until cancelled."""
        self._version = ""  # whatever ended the run before, there is a gap
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            self.heart.beat()
            began = loop.time()
            try:
                if not self._version or self._is_list_old():
                    await self._list()
                heard = await self._watch()
                # The server ends watches now and then. One that ends at once without a word is a failure.
                failures = 0 if heard or loop.time() - began > 1.0 else failures + 1
            except Exception as error:
                # What was said while it broke may be lost, so only a list tells how things are.
                self._version = ""
                # Something that worked for a while and then broke is not a repeated failure.
                failures = failures + 1 if loop.time() - began < 5.0 else 1
                known = isinstance(error, ApiError)
                level = logging.DEBUG if known and failures < 4 else logging.WARNING
                logger.log(level, "%s: %s", self.resource.plural, error, exc_info=None if known else error)
            delay = min(_FIRST_DELAY_SECONDS * 2.0**failures, _LONGEST_DELAY_SECONDS)
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))  # noqa: S311 - jitter

    def notify_all(self) -> None:
        """Tell of every object as if it had changed: whatever was missed is made good."""
        for obj in self.all():
            self._notify(obj)

    def _notify(self, obj: KubeObject) -> None:
        try:
            self._on_change(obj)
        except Exception:
            # An object that its reader cannot deal with is no reason to be blind to the others.
            logger.exception("%s %s: the change could not be taken in", self.resource.kind, key_of(obj))

    def _is_list_old(self) -> bool:
        return asyncio.get_running_loop().time() - self._listed_at > self._relist_seconds

    async def _list(self) -> None:
        seen: set[str] = set()
        token, version = "", ""
        while True:
            page = await self._client.list(self.resource, continue_token=token)
            self.heart.beat()
            for obj in page.get("items") or ():
                self._take("ADDED", obj)
                seen.add((obj.get("metadata") or {}).get("uid", ""))
            version = version or page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue") or ""
            if not token:
                break
        # What our own writes brought in after the list was made is newer than it, and stays.
        for obj in self.all():
            if uid_of(obj) not in seen and version_of(obj) <= int(version):
                self.forget(obj)
        self._version = version
        self._listed_at = asyncio.get_running_loop().time()
        self.synced.set()

    async def _watch(self) -> bool:
        """Follow the changes until the watch ends or it is time for a list. Whether there were any words at all."""
        heard = False
        changes = self._client.watch(
            self.resource, self._version, timeout_seconds=WATCH_SECONDS, silence_seconds=SILENCE_SECONDS
        )
        async with aclosing(changes):
            async for kind, obj in changes:
                heard = True
                self.heart.beat()
                if kind not in _WORDS:
                    code = int(obj.get("code") or 500)
                    raise ApiError(code, obj.get("reason", kind), obj.get("message", "the watch failed"))
                self._take(kind, obj)
                if version_of(obj) > int(self._version):
                    self._version = obj["metadata"]["resourceVersion"]
                if self._is_list_old():
                    break
        return heard

    def _take(self, kind: str, obj: KubeObject) -> None:
        """One word of a watch or one item of a list."""
        try:
            match kind:
                case "ADDED" | "MODIFIED":
                    self.observe(obj)
                case "DELETED":
                    self.forget(obj)
        except (KeyError, TypeError, ValueError, AttributeError):
            name = (obj.get("metadata") or {}).get("name")
            logger.exception("%s %s: what the server says of it cannot be read", self.resource.kind, name)
