"""The work queue's rules: coalescing, one key in one place, back-off, and that no key is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tasker.controller.runtime.keyed_queue import STALE_ENTRIES, Backoff, KeyedQueue


def make_queue(*, uniform: float = 1.0, base: float = 1.0, most: float = 8.0) -> KeyedQueue[str]:
    return KeyedQueue(backoff=Backoff(base_seconds=base, max_seconds=most), uniform=lambda: uniform)


def test_many_adds_of_a_key_are_one_piece_of_work() -> None:
    queue = make_queue()
    for _ in range(3):
        queue.add("a")
    assert queue.take(0.0) == "a"
    assert queue.take(0.0) is None


def test_keys_are_taken_in_the_order_they_were_added() -> None:
    queue = make_queue()
    for key in ("b", "a", "c", "a"):
        queue.add(key)
    assert [queue.take(0.0) for _ in range(3)] == ["b", "a", "c"]


def test_a_key_added_while_it_is_worked_on_is_worked_on_again_afterwards() -> None:
    queue = make_queue()
    queue.add("a")
    assert queue.take(0.0) == "a"
    queue.add("a")
    assert queue.take(0.0) is None, "never two at once"
    queue.done("a", 0.0)
    assert queue.take(0.0) == "a"


def test_a_failing_key_waits_longer_each_time_up_to_the_most() -> None:
    queue = make_queue()
    now, delays = 0.0, []
    queue.add("a")
    for _ in range(5):
        assert queue.take(now) == "a"
        delays.append(queue.failed("a", now))
        assert queue.take(now + delays[-1] - 0.001) is None
        now += delays[-1]
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_jitter_takes_at_most_half_of_the_wait() -> None:
    queue = make_queue(uniform=0.0)
    queue.add("a")
    queue.take(0.0)
    assert queue.failed("a", 0.0) == 0.5


def test_what_the_server_asks_to_wait_is_waited() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    assert queue.failed("a", 0.0, at_least=30.0) == 30.0


def test_events_do_not_hurry_a_key_that_backs_off() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    queue.failed("a", 0.0)
    queue.add("a")
    assert queue.take(0.5) is None
    assert queue.take(1.0) == "a"


def test_an_event_during_a_failing_attempt_does_not_defeat_the_back_off() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    queue.add("a")
    queue.failed("a", 0.0)
    assert queue.take(0.5) is None
    assert queue.take(1.0) == "a"


def test_success_forgets_the_failures() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    queue.failed("a", 0.0)
    queue.take(1.0)
    queue.done("a", 1.0)
    queue.add("a")
    queue.take(1.0)
    assert queue.failed("a", 1.0) == 1.0


def test_the_earlier_of_two_times_counts() -> None:
    queue = make_queue()
    queue.add_at("a", 10.0)
    queue.add_at("a", 5.0)
    queue.add_at("a", 20.0)
    assert queue.next_due() == 5.0
    assert queue.take(5.0) == "a"
    queue.done("a", 5.0)
    assert queue.take(100.0) is None


def test_the_same_time_again_changes_nothing() -> None:
    queue = make_queue()
    for key in ("a", "b", "a"):
        queue.add_at(key, 10.0)
    assert queue.entries == 2
    assert [queue.take(10.0) for _ in range(3)] == ["a", "b", None]


def test_a_later_time_does_not_delay_a_ready_key_and_an_event_hurries_a_waiting_one() -> None:
    queue = make_queue()
    queue.add("a")
    queue.add_at("a", 50.0)
    assert queue.take(0.0) == "a"
    queue.done("a", 0.0, again_after=60.0)
    queue.add("a")
    assert queue.take(0.0) == "a"


@pytest.mark.parametrize(
    ("failures", "uniform", "delay"),
    [(1, 1.0, 0.2), (1, 0.0, 0.1), (1, 0.5, 0.15), (2, 1.0, 0.4), (9, 1.0, 51.2), (10, 1.0, 60.0), (10_000, 0.5, 45.0)],
)
def test_the_default_back_off(failures: int, uniform: float, delay: float) -> None:
    assert Backoff().delay(failures, uniform) == pytest.approx(delay)


def test_a_queue_uses_the_default_back_off_unless_told() -> None:
    queue: KeyedQueue[str] = KeyedQueue(uniform=lambda: 1.0)
    queue.add("a")
    queue.take(0.0)
    assert queue.failed("a", 0.0) == pytest.approx(0.2)


def test_jitter_is_drawn_anew_for_each_failure() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a")
    delays = set[float]()
    for _ in range(20):
        now = queue.next_due() or 0.0
        queue.take(now)
        delays.add(queue.failed("a", now) / Backoff().delay(len(delays) + 1, 1.0))
    assert len(delays) == 20


def test_what_the_server_asks_to_wait_does_not_shorten_the_back_off() -> None:
    queue = make_queue(base=5.0)
    queue.add("a")
    queue.take(0.0)
    assert queue.failed("a", 0.0, at_least=1.0) == 5.0


def test_a_time_given_meanwhile_does_not_hurry_a_key_that_backs_off() -> None:
    queue = make_queue(base=8.0)
    queue.add("a")
    queue.take(0.0)
    queue.failed("a", 0.0)
    queue.add_at("a", 1.0)
    assert queue.next_due() == 8.0
    assert queue.take(7.9) is None
    assert queue.take(8.0) == "a"


def test_what_was_asked_during_a_failing_attempt_is_done_with_the_next_one() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    queue.add("a")
    queue.add_at("a", 50.0)
    queue.failed("a", 0.0)
    assert queue.take(1.0) == "a"
    queue.done("a", 1.0)
    assert len(queue) == 0
    assert queue.take(1000.0) is None


def test_the_earliest_of_the_times_given_while_a_key_is_worked_on_counts() -> None:
    for times in ((30.0, 20.0, 40.0), (20.0, 30.0, 40.0)):
        queue = make_queue()
        queue.add("a")
        queue.take(0.0)
        for due in times:
            queue.add_at("a", due)
        assert (len(queue), queue.next_due()) == (0, None), "active keys do not wait"
        queue.done("a", 10.0, again_after=15.0)
        assert queue.next_due() == 20.0
        assert queue.take(20.0) == "a"
        queue.done("a", 20.0)
        assert queue.take(1000.0) is None


def test_a_key_added_while_it_is_worked_on_does_not_wait_for_its_time() -> None:
    queue = make_queue()
    queue.add("a")
    queue.take(0.0)
    queue.add_at("a", 50.0)
    queue.add("a")
    queue.done("a", 0.0, again_after=60.0)
    assert queue.next_due() is None
    assert queue.take(0.0) == "a"


def test_the_counts_say_where_the_keys_are() -> None:
    queue = make_queue()
    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add_at("d", 10.0)
    assert (len(queue), queue.ready, queue.active) == (4, 3, 0)
    queue.take(0.0)
    assert (len(queue), queue.ready, queue.active) == (3, 2, 1)
    queue.take(10.0)
    assert (len(queue), queue.ready, queue.active) == (2, 2, 2)
    queue.done("a", 10.0)
    queue.failed("b", 10.0)
    assert (len(queue), queue.ready, queue.active) == (3, 2, 0)


def test_waiting_keys_become_ready_in_the_order_of_their_times() -> None:
    queue = make_queue()
    for number, key in enumerate("cab"):
        queue.add_at(key, 10.0 - number)
    assert queue.next_due() == 8.0
    assert [queue.take(10.0) for _ in range(4)] == ["b", "a", "c", None]


def test_keys_that_are_due_at_once_become_ready_in_the_order_they_were_given() -> None:
    queue = make_queue()
    for key in "cab":
        queue.add_at(key, 10.0)
    assert [queue.take(10.0) for _ in range(4)] == ["c", "a", "b", None]


def test_many_resyncs_of_many_keys_that_have_a_time_cost_no_memory() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    keys, most = range(2000), 0
    queue.add_at(-1, 999_999.0)  # stays the first of the heap, so that those behind it do not come up
    for number in range(100):
        now = number * 300.0
        for key in keys:
            queue.add(key)
        for _ in keys:
            key_taken = queue.take(now)
            assert key_taken is not None
            queue.done(key_taken, now, again_after=1_000_000.0 - now)
            most = max(most, queue.entries)
    assert len(queue) == 2001
    assert most <= 2 * 2001 + STALE_ENTRIES
    assert sorted(iter(lambda: queue.take(1_000_000.0), None)) == [-1, *keys], "each once"


def test_a_key_that_is_always_put_earlier_costs_no_memory() -> None:
    queue = make_queue()
    entries = []
    for number in range(1000):
        queue.add_at("a", 5000.0 - number)
        entries.append(queue.entries)
    assert max(entries) == 2 + STALE_ENTRIES, "not less either: each pass over all has to be worth it"
    assert queue.next_due() == 4001.0
    assert queue.take(4000.9) is None
    assert queue.take(4001.0) == "a"


def test_keys_that_are_all_hurried_leave_nothing_behind() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    queue.add_at(-1, 1.0)  # the first of the heap, so that those behind it do not come up
    for key in range(1000):
        queue.add_at(key, 100.0 + key)
    assert queue.entries == 1001
    for key in range(1000):
        queue.add(key)
        assert queue.entries <= 2 * (len(queue) - queue.ready) + STALE_ENTRIES
    assert queue.next_due() == 1.0


def test_keys_that_become_ready_leave_nothing_behind() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    for key in range(1000):
        queue.add_at(key, 1.0)
    for key in range(1000):
        for due in (60.0, 50.0, 40.0):
            queue.add_at(1000 + key, due)
    assert queue.entries == 4000
    queue.take(1.0)
    assert queue.entries <= 2 * 1000 + STALE_ENTRIES
    assert queue.next_due() == 40.0


def test_dropping_the_stale_keeps_the_order() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    entries = []
    for start in (9000.0, 7000.0, 5000.0):
        for key in range(200):
            queue.add_at(key, start - key)
            entries.append(queue.entries)
    assert entries != sorted(entries), "it happened"
    assert queue.next_due() == 4801.0
    assert [queue.take(5000.0) for _ in range(201)] == [*reversed(range(200)), None]


def test_dropping_the_stale_costs_no_more_than_a_constant_for_each_key() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    for key in range(1000):
        queue.add_at(key, 100.0)
    for key in range(1000):
        queue.add_at(key, 50.0)
    assert queue.entries == 2000, "not with every change: half of them are stale, which is not yet worth a pass"


class NoKeyIsLost(RuleBasedStateMachine):
    """Whatever the order: every key added after its last success is ready, waiting or being worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue()
        self.now = 0.0
        self.owed: set[str] = set()
        self.active: set[str] = set()

    keys = st.sampled_from(["a", "b", "c", "d"])

    @rule(key=keys)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=keys, delay=st.floats(0, 10))
    def add_later(self, key: str, delay: float) -> None:
        self.queue.add_at(key, self.now + delay)
        self.owed.add(key)

    @rule()
    def take(self) -> None:
        key = self.queue.take(self.now)
        if key is not None:
            assert key not in self.active
            assert key in self.owed
            self.owed.discard(key)
            self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.done(key, self.now)
        self.active.discard(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.failed(key, self.now)
        self.active.discard(key)
        self.owed.add(key)

    @rule(seconds=st.floats(0, 5))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.queue.active == len(self.active)
        waiting = self.owed - self.active
        assert len(self.queue) == len(waiting)

    def teardown(self) -> None:
        for key in sorted(self.active):
            self.queue.done(key, self.now)
        taken = set()
        while (left := self.queue.take(self.now + 1000)) is not None:
            taken.add(left)
            self.queue.done(left, self.now)
        assert taken == self.owed


TestNoKeyIsLost = NoKeyIsLost.TestCase
TestNoKeyIsLost.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
