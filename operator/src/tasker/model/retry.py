"""How long a failed step waits before it is tried again.

The engine computes this in SQL (``engine/sql/functions/20_retry.sql``); this module is the same rule for explanations
and in-memory runs, and a test holds the two together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

RETRY_AFTER_CAP_MS = 3_600_000
"""The longest that a server's Retry-After may make a step wait: an hour (setting ``retry_after_cap_ms``)."""


class Backoff(StrEnum):
    """How the delay grows with the number of failures."""

    NONE = "none"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"
    FIBONACCI = "fibonacci"


def backoff_factor(backoff: Backoff, failures: int) -> float:
    """The factor f(n) of the base delay after the n-th failure: 0; n; 2^(n-1); the n-th Fibonacci number."""
    match backoff:
        case Backoff.NONE:
            return 0.0
        case Backoff.LINEAR:
            return float(failures)
        case Backoff.EXPONENTIAL:
            return 2.0 ** (failures - 1)
        case Backoff.FIBONACCI:
            before, current = 0, 1
            for _ in range(failures - 1):
                before, current = current, before + current
            return float(current)
        case _:
            assert_never(backoff)


def retry_delay_ms(
    backoff: Backoff,
    *,
    base_ms: int,
    max_ms: int,
    failures: int,
    jitter: float = 0.0,
    randomness: float = 0.5,
    retry_after_ms: float | None = None,
) -> float:
    """Milliseconds to wait after the `failures`-th failure (from 1).

    `jitter` is the share of the delay that `randomness` (0 to 1) moves it by, up or down. A server's `retry_after_ms`
    takes the place of all that, up to `RETRY_AFTER_CAP_MS`.
    """
    if retry_after_ms is not None:
        return max(0.0, min(retry_after_ms, RETRY_AFTER_CAP_MS))
    delay = min(float(max_ms), base_ms * backoff_factor(backoff, failures))
    return delay * (1 + jitter * (2 * randomness - 1))
