"""What every test can use: see tests/support at the repository's root, and `support` beside this file."""

from __future__ import annotations

# In the order of their imports: a plugin that another one has imported already would not have its asserts rewritten.
pytest_plugins = ["support.postgres", "support.parity_report"]
