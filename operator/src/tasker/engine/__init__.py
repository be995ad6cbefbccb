"""What can be done with templates and tasks: submit, act, sweep, read."""

from tasker.engine.engine import Engine
from tasker.store.notifications import FINISHED, READY
from tasker.store.tasks import ChangeCursor, Changes

__all__ = ["FINISHED", "READY", "ChangeCursor", "Changes", "Engine"]
