"""Pauses that are not the same in every worker, lest workers that met one trouble meet again at the next moment."""

from __future__ import annotations

import random


def spread(seconds: float) -> float:
    """`seconds`, or up to a fifth less or more."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - guards nothing
