"""The operator's name in the transition log."""

from __future__ import annotations

ACTOR = "operator"
"""Who the transition log names for what the operator does."""
