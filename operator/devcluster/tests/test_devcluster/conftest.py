"""What every test can use: see tests/support at the repository's root, and `support` beside this file."""

from __future__ import annotations

import hypothesis

# In the order of their imports: a plugin that another one has imported already would not have its asserts rewritten.
pytest_plugins = ["support.postgres", "support.parity_report"]

# How long an example takes says more of what else this machine does than of the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")
