"""The pace of hints: at once after quiet, never more often than allowed, rarer in a stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from tasker_worker import hints
from tasker_worker.gateway import Unavailable
from tasker_worker.hints import HintReceiver, HintSender, _Channel
from tasker_worker.metrics import WorkerMetrics


def _sent_during(channel: _Channel, seconds: float, start: float = 1000.0) -> list[float]:
    """Times of sending when a hint is always wanted."""
    now, sent = start, []
    while now < start + seconds:
        now = max(now, channel.due_at)
        channel.sent(now)
        sent.append(now)
    return sent


def test_the_first_hint_goes_at_once() -> None:
    """However little time has passed on a clock that may begin with the machine."""
    assert _Channel("tasker_ready", 0.005, 0.1).due_at < 0.0


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
    assert channel.due_at == pytest.approx(last + 10.005)


def test_a_time_is_quiet_when_a_hint_comes_later_than_the_next_one_would_have_been_due() -> None:
    channel = _Channel("tasker_ready", 1.0, 8.0)
    dues = []
    for now in (0.0, 2.0, 7.0):
        channel.sent(now)
        dues.append(channel.due_at - now)
    assert dues == [1.0, 2.0, 1.0]


class _Session:
    """In place of a gateway: remembers what was sent, and raises what was put into its faults."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.faults: list[Exception] = []
        self.closed = False

    async def notify(self, channel: str) -> None:
        if self.faults:
            raise self.faults.pop()
        self.sent.append(channel)

    async def close(self) -> None:
        self.closed = True


def _sender() -> tuple[HintSender, _Session, WorkerMetrics]:
    metrics, session = WorkerMetrics(), _Session()
    sender = HintSender("postgresql://localhost/x", lease_seconds=30, metrics=metrics)
    sender._gateway = session  # type: ignore[assignment]
    return sender, session, metrics


async def test_hints_of_both_kinds_are_sent_each_over_its_channel_and_coalesced() -> None:
    sender, session, metrics = _sender()
    work = asyncio.ensure_future(sender.run())
    for told in (sender.ready, sender.finished):
        before = len(session.sent)
        told()
        told()
        async with asyncio.timeout(5):
            while len(session.sent) == before:  # noqa: ASYNC110 - the session tells nobody
                await asyncio.sleep(0.001)
        assert not sender._wanted.is_set()
    assert session.sent == ["tasker_ready", "tasker_finished"]
    assert metrics.hints_sent == 2
    work.cancel()
    await asyncio.wait([work])
    assert session.closed


async def test_the_channels_keep_their_documented_pace() -> None:
    sender, _, _ = _sender()
    for channel, shortest in ((sender._ready, 0.005), (sender._finished, 0.02)):
        sent = _sent_during(channel, 1.0)
        gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
        assert gaps[0] == pytest.approx(shortest)
        assert gaps[1] == pytest.approx(2 * shortest)
        assert gaps[-1] == pytest.approx(0.1)


async def test_the_hint_that_is_due_first_goes_first_and_one_that_is_not_due_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender, session, _ = _sender()
    now = 1000.0
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        if seconds > 0:
            pauses.append(seconds)
            now += seconds

    monkeypatch.setattr(hints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(hints, "asyncio", SimpleNamespace(sleep=sleep))
    for _ in range(2):
        sender.finished()
        await sender._send_wanted()
        sender.ready()
        await sender._send_wanted()
    assert session.sent == ["tasker_finished", "tasker_ready"] * 2
    assert pauses == [pytest.approx(0.02)]
    sender.ready()
    sender.finished()
    await sender._send_wanted()
    assert session.sent[4:] == ["tasker_ready", "tasker_finished"]


async def test_a_hint_that_cannot_be_sent_is_dropped_and_the_next_one_tried_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender, session, metrics = _sender()
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds > 0:
            pauses.append(seconds)

    monkeypatch.setattr(hints, "asyncio", SimpleNamespace(sleep=sleep))
    session.faults.append(Unavailable("down"))
    sender.ready()
    await sender._send_wanted()
    assert (session.sent, metrics.hints_sent, pauses) == ([], 0, [0.1])


class _Listening:
    """A session that says `count` hints and is lost."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.executed: list[bytes] = []

    async def __aenter__(self) -> _Listening:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def execute(self, query: bytes) -> None:
        self.executed.append(query)

    async def notifies(self) -> AsyncIterator[None]:
        for _ in range(self.count):
            yield None
        raise psycopg.OperationalError("the connection is lost")


async def test_listening_goes_on_after_every_loss_with_pauses_that_double_up_to_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, woken, pauses = WorkerMetrics(), [], list[float]()
    sessions: list[_Listening | None] = [*[None] * 7, _Listening(3), None]
    settings: list[dict[str, Any]] = []

    async def connect(**given: Any) -> _Listening:
        settings.append(given)
        session = sessions[len(settings) - 1]
        if session is None:
            raise psycopg.OperationalError("no route")
        return session

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == len(sessions):
            raise asyncio.CancelledError

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", connect)
    monkeypatch.setattr(hints, "asyncio", SimpleNamespace(sleep=sleep))
    receiver = HintReceiver(
        "postgresql://localhost/x", lease_seconds=30, metrics=metrics, on_ready=lambda: woken.append(1)
    )
    with pytest.raises(asyncio.CancelledError):
        await receiver.run()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 0.1, 0.2]
    assert (metrics.hints_received, len(woken)) == (3, 4), "once more for what was said while nobody listened"
    assert sessions[7] is not None
    assert sessions[7].executed == [b"listen tasker_ready"]
    assert all(given["autocommit"] for given in settings)
