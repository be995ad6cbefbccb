"""How long a failed step waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tasker.model.retry import RETRY_AFTER_CAP_MS, Backoff, backoff_factor, retry_delay_ms


@pytest.mark.parametrize(
    ("backoff", "factors"),
    [
        (Backoff.NONE, [0, 0, 0, 0, 0, 0, 0, 0]),
        (Backoff.LINEAR, [1, 2, 3, 4, 5, 6, 7, 8]),
        (Backoff.EXPONENTIAL, [1, 2, 4, 8, 16, 32, 64, 128]),
        (Backoff.FIBONACCI, [1, 1, 2, 3, 5, 8, 13, 21]),
    ],
)
def test_the_delay_grows_as_its_strategy_says(backoff: Backoff, factors: list[int]) -> None:
    assert [backoff_factor(backoff, failures) for failures in range(1, 9)] == factors
    delays = [retry_delay_ms(backoff, base_ms=250, max_ms=10**9, failures=failures) for failures in range(1, 9)]
    assert delays == [250 * factor for factor in factors]


@given(some.sampled_from(Backoff), some.integers(0, 86_400_000), some.integers(0, 86_400_000), some.integers(1, 100))
def test_no_delay_passes_the_maximum(backoff: Backoff, base_ms: int, max_ms: int, failures: int) -> None:
    assert 0 <= retry_delay_ms(backoff, base_ms=base_ms, max_ms=max_ms, failures=failures) <= max_ms


@given(some.floats(0, 1), some.floats(0, 1))
def test_jitter_moves_the_delay_by_at_most_its_share(jitter: float, randomness: float) -> None:
    delay = retry_delay_ms(
        Backoff.LINEAR, base_ms=1000, max_ms=10_000, failures=2, jitter=jitter, randomness=randomness
    )
    assert 2000 * (1 - jitter) - 1e-6 <= delay <= 2000 * (1 + jitter) + 1e-6


def test_jitter_reaches_both_ends() -> None:
    def delay(randomness: float) -> float:
        return retry_delay_ms(Backoff.LINEAR, base_ms=1000, max_ms=1000, failures=1, jitter=0.5, randomness=randomness)

    assert [delay(0.0), delay(0.5), delay(1.0)] == [500, 1000, 1500]


@pytest.mark.parametrize(
    ("retry_after_ms", "expected"), [(0, 0), (5, 5), (90_000, 90_000), (10**12, RETRY_AFTER_CAP_MS), (-1, 0)]
)
def test_retry_after_wins_over_backoff_and_maximum_and_is_capped(retry_after_ms: float, expected: float) -> None:
    delay = retry_delay_ms(
        Backoff.EXPONENTIAL,
        base_ms=1000,
        max_ms=2000,
        failures=9,
        jitter=0.5,
        randomness=1.0,
        retry_after_ms=retry_after_ms,
    )
    assert delay == expected
