"""The part of a work queue that reconcilers, loops and the event router use: they name keys that need work."""

from __future__ import annotations

from typing import Protocol

from tasker.controller.kube.keys import ObjectKey


class KeyQueue(Protocol):
    """Keys of one kind that need reconciling; adding one that is there already changes nothing."""

    def add(self, key: ObjectKey) -> None:
        """The key needs reconciling now."""

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """The key needs reconciling in so many seconds, or earlier."""
