"""A place where a fault can be planted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, order=True)
class Site:
    """A place in a file and the operator that makes a fault of it; the planted text is made when it is asked for."""

    path: str
    """Relative to the root, with slashes."""
    line: int
    """First line that is changed, from 1."""
    end_line: int
    operator: str
    place: int
    """Which of the operator's places in this file, from 0."""
