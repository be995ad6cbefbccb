"""The server's error tree. A class's docstring is its message when none is given.

TaskerError
├── ConfigurationError        a setting, file or environment variable is missing or wrong
├── InvalidInput              what a person wrote cannot be accepted; `path` says where
│   ├── InvalidTemplate
│   ├── InvalidTask
│   │   └── InvalidContext    its context does not meet the inputSchema of the template
│   ├── InvalidAction
│   ├── InvalidResource       an object of the cluster that this release cannot read
│   └── InvalidMessage
├── NotFound
│   ├── TemplateNotFound
│   ├── TaskNotFound
│   ├── StepNotFound
│   ├── QueueNotFound
│   └── DeadLetterNotFound
├── DuplicateTask             another run holds the place of the one that was submitted
├── ActionRefused             a run or step is not in a state in which people may do this to it
├── Busy                      not now: enough of the kind is under way for this namespace
├── IllegalTransition         the database refused a move that the state machine does not have
└── StoreError                the database could not do what was asked
    ├── StoreUnavailable      it cannot be reached now; trying again may work
    ├── SchemaMismatch        its schema is not one that this release understands
    └── ForeignInstallation   it belongs to another installation
"""

from __future__ import annotations

from uuid import UUID


class TaskerError(Exception):
    """Something went wrong in the server."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class ConfigurationError(TaskerError):
    """A setting, file or environment variable is missing or wrong."""


class InvalidInput(TaskerError):
    """What was submitted cannot be accepted.

    `path` is the place of the fault, like ``spec.steps[3].dependsOn[0]``; `reason` says what is wrong there.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class InvalidTemplate(InvalidInput):
    """A TaskTemplate cannot be accepted."""


class InvalidTask(InvalidInput):
    """A Task cannot be accepted."""


class InvalidContext(InvalidTask):
    """A Task's context does not meet the inputSchema of its template.

    `pointer` is the JSON pointer (RFC 6901) of the fault in the context, empty when it is the whole. Contexts may hold
    secrets: `reason` quotes nothing of them.
    """

    def __init__(self, pointer: str, reason: str) -> None:
        self.pointer = pointer
        super().__init__(f"spec.context{pointer}", reason)


class InvalidAction(InvalidInput):
    """What somebody wants done to a run cannot be accepted."""


class InvalidResource(InvalidInput):
    """An object of the cluster is not one that this release can read."""


class InvalidMessage(InvalidInput):
    """A message, or what is asked about messages, cannot be accepted."""


class NotFound(TaskerError):
    """What was asked for does not exist."""


class TemplateNotFound(NotFound):
    """No such template, or no such version of it, in this namespace."""


class TaskNotFound(NotFound):
    """No such task in this namespace."""


class QueueNotFound(NotFound):
    """No such queue of messages in this namespace."""


class DeadLetterNotFound(NotFound):
    """No such dead letter."""


class DuplicateTask(TaskerError):
    """Another run holds the place of the one that was submitted.

    `task_uuid` is that run; `task_name` the resource that asked for it, when one did and it is known.
    """

    def __init__(self, task_uuid: UUID, task_name: str | None = None) -> None:
        self.task_uuid = task_uuid
        self.task_name = task_name
        of_whom = "" if task_name is None else f" of Task {task_name}"
        super().__init__(f"it is a duplicate of run {task_uuid}{of_whom}")


class Busy(TaskerError):
    """Enough of the kind is under way for this namespace. `seconds` from now is a good time to try again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"enough contexts of this namespace are being checked already: try again in {seconds:g} s")


class StepNotFound(NotFound):
    """The task has no such step."""


class ActionRefused(TaskerError):
    """The task or step is not in a state in which this can be done to it."""


class IllegalTransition(TaskerError):
    """The database refused a move that the state machine does not have."""


class StoreError(TaskerError):
    """The database could not do what was asked."""


class StoreUnavailable(StoreError):
    """The database cannot be reached now; trying again may work."""


class SchemaMismatch(StoreError):
    """The database schema is not one that this release understands."""


class ForeignInstallation(StoreError):
    """The database belongs to another installation."""
