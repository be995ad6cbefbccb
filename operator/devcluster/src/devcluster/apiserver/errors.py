"""What the embedded API server answers when it cannot do what was asked: Kubernetes Status objects.

Every module of the server raises `ApiError`; the dispatcher turns it into the response. The shapes, reasons and
messages are those clients match on (kopf and the official client look at `code` and `reason`, kubectl prints `message`
and `details.causes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devcluster.errors import EmbeddedError
from devcluster.machinery.field_errors import FieldError, describe_invalid


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """One entry of a Status's `details.causes`; `field` is a path like ``spec.steps[0].name``."""

    reason: str
    message: str
    field: str = ""

    def as_dict(self) -> dict[str, str]:
        entry = {"reason": self.reason, "message": self.message}
        if self.field:
            entry["field"] = self.field
        return entry


class ApiError(EmbeddedError):
    """The embedded API server refused a request."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})
        self.metadata = dict(metadata or {})

    def status(self) -> dict[str, Any]:
        """The Status object that the client gets."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details:
            status["details"] = self.details
        status["code"] = self.code
        return status


def success(details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The Status of a deletion that is complete."""
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        status["details"] = dict(details)
    return status


def qualified(group: str, plural: str) -> str:
    """`tasks.tasker.dev`, or `pods` for the core group."""
    return f"{plural}.{group}" if group else plural


def _details(group: str, kind: str, name: str, causes: Sequence[Cause] = ()) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    if causes:
        details["causes"] = [cause.as_dict() for cause in causes]
    return details


def not_found(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        404, "NotFound", f'{qualified(group, plural)} "{name}" not found', details=_details(group, plural, name)
    )


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        409,
        "AlreadyExists",
        f'{qualified(group, plural)} "{name}" already exists',
        details=_details(group, plural, name),
    )


def conflict(group: str, plural: str, name: str, why: str = "") -> ApiError:
    """An optimistic-concurrency failure; `why` replaces the usual "has been modified" sentence."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified(group, plural)} "{name}": {why}',
        details=_details(group, plural, name),
    )


def apply_conflict(message: str, causes: Sequence[Cause]) -> ApiError:
    """Server-side apply met fields that other managers own."""
    return ApiError(409, "Conflict", message, details={"causes": [cause.as_dict() for cause in causes]})


def invalid(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422: the object breaks its schema or a rule of its kind."""
    message, causes = describe_invalid(group=group, kind=kind, name=name, errors=errors)
    details = _details(group, kind, name)
    details["causes"] = causes
    return ApiError(422, "Invalid", message, details=details)


def forbidden(group: str, plural: str, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    return ApiError(
        403,
        "Forbidden",
        f'{qualified(group, plural)} "{name}" is forbidden: {why}',
        details=_details(group, plural, name, causes),
    )


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed(message: str = "the server does not allow this method on the requested resource") -> ApiError:
    return ApiError(405, "MethodNotAllowed", message)


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def expired(message: str, *, continue_token: str = "") -> ApiError:
    """410: the resourceVersion or continue token is older than what is kept."""
    return ApiError(410, "Expired", message, metadata={"continue": continue_token} if continue_token else None)


def not_implemented(what: str) -> ApiError:
    """501: Kubernetes has it, the embedded cluster does not."""
    return ApiError(501, "NotImplemented", f"{what} is not available in the embedded cluster")


def internal(message: str) -> ApiError:
    return ApiError(
        500,
        "InternalError",
        f"Internal error occurred: {message}",
        details={"causes": [{"message": message}]},
    )
