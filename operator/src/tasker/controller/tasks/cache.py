"""The cache of Tasks: without what is large and no longer read, with indexes by uid and by awaited template, and with
what is known of runs that moved."""

from __future__ import annotations

from tasker.controller.kube.client import Manifest
from tasker.controller.kube.keys import ObjectKey, key_of
from tasker.controller.kube.resources.task import Task
from tasker.controller.kube.typed_cache import TypedCache
from tasker.controller.runtime.metrics import OperatorMetrics


class TaskCache(TypedCache[Task]):
    """Tasks by name, by uid, and by the template that they wait for."""

    def __init__(self, metrics: OperatorMetrics) -> None:
        super().__init__(Task, metrics, keep_values=False)
        self._keys_by_uid: dict[str, ObjectKey] = {}
        self._waiting: dict[ObjectKey, ObjectKey] = {}
        """Tasks that have not been accepted, and their templates."""
        self._moved: set[str] = set()
        """Uids whose runs moved since their Tasks were last compared with them."""

    def remove(self, last: Manifest) -> Manifest | None:
        removed = super().remove(last)
        if removed is not None:
            key = key_of(removed)
            self._keys_by_uid.pop(removed["metadata"]["uid"], None)
            self._waiting.pop(key, None)
            self._moved.discard(removed["metadata"]["uid"])
        return removed

    def note_moved(self, uid: str) -> None:
        """The run of this Task moved: an end that the Task shows may be none any more."""
        self._moved.add(uid)

    def take_moved(self, uid: str) -> bool:
        """Whether the run moved since this was last asked."""
        if uid not in self._moved:
            return False
        self._moved.remove(uid)
        return True

    def find_uid(self, uid: str) -> ObjectKey | None:
        """The key of the Task with this uid; None when it was deleted or has not been listed yet."""
        return self._keys_by_uid.get(uid)

    def waiting_for(self, template: ObjectKey) -> list[ObjectKey]:
        """The Tasks of this template that have not been accepted."""
        return [key for key, awaited in self._waiting.items() if awaited == template]

    def _replace(self, old: Manifest | None, new: Manifest, value: Task | None) -> None:
        key = key_of(new)
        if old is not None:
            self._keys_by_uid.pop(old["metadata"]["uid"], None)
        # Also of a Task that cannot be read: it is there, so its run must not be taken for an orphan.
        self._keys_by_uid[new["metadata"]["uid"]] = key
        if value is not None and not value.status.is_true("Accepted"):
            self._waiting[key] = ObjectKey(namespace=key.namespace, name=value.spec.template_ref.name)
        else:
            self._waiting.pop(key, None)

    def _reduce(self, value: Task) -> Manifest:
        """Without the context of a run that was submitted, and the results and failures of one that ended."""
        manifest = value.manifest
        if value.status.task_uuid is None:
            return manifest
        reduced = {**manifest, "spec": {name: part for name, part in manifest["spec"].items() if name != "context"}}
        if value.status.is_finished:
            left_out = ("result", "failures")
            reduced["status"] = {name: part for name, part in manifest["status"].items() if name not in left_out}
        return reduced
