"""What every test can use: see tests/support."""

from __future__ import annotations

pytest_plugins = ["support.cluster", "support.parity_report", "support.postgres"]
