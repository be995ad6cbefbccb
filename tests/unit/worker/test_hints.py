"""The pace of hints: at once after quiet, never more often than allowed, rarer in a stream."""

from __future__ import annotations

import itertools

from tasker_worker.hints import _Channel


def _sent_during(channel: _Channel, seconds: float, start: float = 1000.0) -> list[float]:
    """Times of sending when a hint is always wanted."""
    now, sent = start, []
    while now < start + seconds:
        now += max(0.0, channel.due(now))
        channel.sent(now)
        sent.append(now)
    return sent


def test_the_first_hint_goes_at_once() -> None:
    assert _Channel("tasker_ready", 0.005, 0.1).due(1000.0) <= 0


def test_hints_keep_their_distance_and_grow_rarer_in_a_stream() -> None:
    sent = _sent_during(_Channel("tasker_ready", 0.005, 0.1), 1.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert min(gaps) >= 0.005 - 1e-9
    assert max(gaps) <= 0.1 + 1e-9
    assert len(sent) < 20


def test_after_a_quiet_time_hints_are_prompt_again() -> None:
    channel = _Channel("tasker_ready", 0.005, 0.1)
    last = _sent_during(channel, 1.0)[-1]
    channel.sent(last + 10)
    assert abs(channel.due(last + 10) - 0.005) < 1e-9
