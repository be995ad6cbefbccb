"""How many workers a pool should have: bounds, promptness upwards, patience downwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasker.model.scaling import ScaleDecision, ScaleInputs, ScaleMemory, decide, wanted_replicas


def inputs(**changes: object) -> ScaleInputs:
    plain = ScaleInputs(now=1000.0, current=0, queued=0, running=0, slots=10, min_replicas=0, max_replicas=10)
    return replace(plain, **changes)  # type: ignore[arg-type]


@st.composite
def any_inputs(draw: st.DrawFn) -> ScaleInputs:
    lowest = draw(st.integers(0, 5))
    now = draw(st.floats(0, 10_000))
    moment = st.none() | st.floats(0, now)
    return ScaleInputs(
        now=now,
        current=draw(st.integers(0, 40)),
        queued=draw(st.integers(0, 500)),
        running=draw(st.integers(0, 500)),
        slots=draw(st.integers(1, 20)),
        min_replicas=lowest,
        max_replicas=draw(st.integers(lowest, 20)),
        up_seconds=draw(st.sampled_from([0.0, 5.0])),
        down_seconds=draw(st.sampled_from([0.0, 30.0])),
        idle_seconds=draw(st.sampled_from([0.0, 60.0])),
        max_step=draw(st.none() | st.integers(1, 5)),
        memory=ScaleMemory(
            over_since=draw(moment),
            under_since=draw(moment),
            under_peak=draw(st.integers(0, 20)),
            idle_since=draw(moment),
        ),
    )


@given(any_inputs())
def test_the_number_moves_towards_the_bounds_and_stays_within_them(given_inputs: ScaleInputs) -> None:
    decided = decide(given_inputs).replicas
    lowest, highest = given_inputs.min_replicas, given_inputs.max_replicas
    if lowest <= given_inputs.current <= highest:
        assert lowest <= decided <= highest
    else:
        assert abs(decided - given_inputs.current) > 0
        assert min(lowest, given_inputs.current) <= decided <= max(highest, given_inputs.current)


@given(any_inputs())
def test_no_decision_exceeds_the_largest_step(given_inputs: ScaleInputs) -> None:
    decided = decide(given_inputs).replicas
    if given_inputs.max_step is not None:
        assert abs(decided - given_inputs.current) <= given_inputs.max_step


@given(any_inputs())
def test_fewer_workers_only_after_their_time_and_never_fewer_than_the_work_needs(given_inputs: ScaleInputs) -> None:
    decision = decide(given_inputs)
    if decision.replicas >= given_inputs.current or given_inputs.current > given_inputs.max_replicas:
        return
    assert decision.replicas >= wanted_replicas(given_inputs)
    memory, now = given_inputs.memory, given_inputs.now
    under = now - memory.under_since if memory.under_since is not None else 0.0
    idle = now - memory.idle_since if memory.idle_since is not None else 0.0
    is_idle = given_inputs.queued + given_inputs.running == 0
    assert under >= given_inputs.down_seconds or (is_idle and idle >= given_inputs.idle_seconds)
    if decision.replicas == 0:
        assert is_idle
        assert idle >= given_inputs.idle_seconds


@given(any_inputs())
def test_more_workers_at_once_when_nothing_says_to_wait(given_inputs: ScaleInputs) -> None:
    eager = replace(given_inputs, up_seconds=0.0, max_step=None)
    if wanted_replicas(eager) > eager.current:
        assert decide(eager).replicas == wanted_replicas(eager)


@given(any_inputs())
def test_the_decision_is_a_function_of_its_inputs_and_says_why(given_inputs: ScaleInputs) -> None:
    decision = decide(given_inputs)
    assert decision == decide(given_inputs)
    assert decision.reason
    assert "\n" not in decision.reason


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), min_size=1, max_size=200))
def test_a_pool_left_alone_ends_where_it_should(work: list[tuple[int, int]]) -> None:
    """After any history of demand, an empty queue brings the pool to its minimum within the idle and down times."""
    state, memory = 0, ScaleMemory()
    now = 0.0
    for queued, running in work:
        decision = decide(inputs(now=now, current=state, queued=queued, running=running, memory=memory))
        state, memory, now = decision.replicas, decision.memory, now + 1
    for _ in range(62):
        decision = decide(inputs(now=now, current=state, memory=memory))
        state, memory, now = decision.replicas, decision.memory, now + 1
    assert state == 0


def run(history: list[tuple[int, int]], *, current: int, **changes: object) -> list[int]:
    """The replicas after each second of the given (queued, running)."""
    memory, replicas = ScaleMemory(), []
    for second, (queued, running) in enumerate(history):
        decision: ScaleDecision = decide(
            inputs(now=float(second), current=current, queued=queued, running=running, memory=memory, **changes)
        )
        current, memory = decision.replicas, decision.memory
        replicas.append(current)
    return replicas


def test_from_zero_to_enough_in_one_decision() -> None:
    assert run([(95, 0)], current=0) == [10]
    assert run([(11, 0)], current=0) == [2]


def test_busy_workers_count_as_demand() -> None:
    assert run([(0, 40)] * 100, current=4) == [4] * 100


def test_down_after_the_down_time_and_to_zero_after_the_idle_time() -> None:
    replicas = run([(0, 35)] + [(0, 5)] * 200, current=4)
    assert replicas[30] == 4
    assert replicas[31] == 1
    assert replicas[-1] == 1
    idle = run([(0, 0)] * 100, current=4)
    assert idle[29] == 4
    assert idle[30] == 1
    assert idle[59] == 1
    assert idle[60] == 0


def test_a_peak_within_the_down_time_is_what_remains() -> None:
    replicas = run([(0, 5)] * 10 + [(0, 25)] + [(0, 5)] * 25, current=5)
    assert replicas[30] == 3


def test_idle_seconds_shorter_than_down_seconds_are_honoured() -> None:
    replicas = run([(0, 0)] * 10, current=3, idle_seconds=5.0)
    assert replicas[4] == 3
    assert replicas[5] == 0


def test_up_seconds_delay_growth() -> None:
    assert run([(30, 0)] * 5, current=1, up_seconds=3.0) == [1, 1, 1, 3, 3]


def test_the_largest_step_is_taken_again_and_again() -> None:
    assert run([(100, 0)] * 4, current=0, max_step=4) == [4, 8, 10, 10]


def test_new_bounds_hold_at_once() -> None:
    assert decide(inputs(current=0, min_replicas=2)).replicas == 2
    assert decide(inputs(current=9, running=90, max_replicas=3)).replicas == 3


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"min_replicas": 3, "max_replicas": 2}, {"min_replicas": -1}, {"queued": -1}]
)
def test_impossible_inputs_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        decide(inputs(**wrong))
