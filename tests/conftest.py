"""What every test can use: see tests/support."""

from __future__ import annotations

import signal

# In the order of their imports: a plugin that another one has imported already would not have its asserts rewritten.
pytest_plugins = ["support.postgres", "support.parity_report", "support.cluster"]


def pytest_configure() -> None:
    """A shell without job control has what it runs in the background ignore Ctrl-C, and all below it: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
