"""Runs whose Task resource was deleted are cancelled. The reconcile of the work queue "origin".

Its keys are namespace and uid of a Task: the router adds them with deletions, the resync for those that were deleted
unobserved.
"""

from __future__ import annotations

from tasker.controller.actor import ACTOR
from tasker.controller.kube.keys import ObjectKey
from tasker.controller.tasks.progress import ProgressPace
from tasker.engine.actions import Actions


class OrphanReconciler:
    """Cancels runs without a Task. It may be repeated: a run that has ended stays as it is."""

    def __init__(self, *, actions: Actions, progress: ProgressPace) -> None:
        self._actions = actions
        self._progress = progress

    async def reconcile(self, key: ObjectKey) -> float | None:
        """`key.name` is the uid of the deleted Task."""
        self._progress.forget(key.name)
        await self._actions.cancel_by_origin(key.name, actor=ACTOR, reason="the Task was deleted")
        return None
