"""Why a patch cannot be applied."""

from __future__ import annotations

from devcluster.errors import EmbeddedError


class PatchError(EmbeddedError):
    """The patch is malformed, or does not fit the object."""


class PatchTestFailed(PatchError):
    """A ``test`` of a JSON patch does not hold."""
