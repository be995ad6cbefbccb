"""The one version of the server and the SDK."""

__version__ = "0.1.0"
