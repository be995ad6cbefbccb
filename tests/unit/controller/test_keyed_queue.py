"""The work queue's rules: coalescing, one key in one place, back-off, and that no key is ever lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tasker.controller.runtime.keyed_queue import Backoff, KeyedQueue


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


def test_a_later_time_does_not_delay_a_ready_key_and_an_event_hurries_a_waiting_one() -> None:
    queue = make_queue()
    queue.add("a")
    queue.add_at("a", 50.0)
    assert queue.take(0.0) == "a"
    queue.done("a", 0.0, again_after=60.0)
    queue.add("a")
    assert queue.take(0.0) == "a"


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
