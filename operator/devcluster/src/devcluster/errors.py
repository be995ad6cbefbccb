"""The package's error tree. A class's docstring is its message when none is given.

ClusterError
├── ConfigurationError   a kubeconfig, program or file is missing or wrong
├── EmbeddedError        the embedded API server, node or Postgres could not do what was asked
└── KubectlFailed        kubectl could not do what was asked; the message is its own
"""

from __future__ import annotations


class ClusterError(Exception):
    """Something went wrong in the embedded cluster."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class ConfigurationError(ClusterError):
    """A kubeconfig, program or file is missing or wrong."""


class EmbeddedError(ClusterError):
    """The embedded cluster could not do what was asked."""


class KubectlFailed(ClusterError):
    """kubectl could not do what was asked."""
