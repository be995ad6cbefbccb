"""What every test can use: see tests/support."""

from __future__ import annotations

pytest_plugins = ["support.parity_report", "support.postgres"]
