"""Work is divided without gap and without overlap, and a division that the engine would refuse is refused before."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasker_worker.batch import create_cursor_configs, create_cursor_ranges, worker_step_name
from tasker_worker.cursors import MAX_BATCHES, MAX_TEMPLATE_NAME, first_fault
from tasker_worker.types import CreateBatchesOutcome, CursorConfig, RustCursorConfig, create_batches

U32 = 2**32 - 1
U64 = 2**64 - 1


def assert_covers(configs: list[RustCursorConfig] | list[CursorConfig], total: int) -> None:
    """From 0 to `total`, no gap, no overlap, nothing empty, no range longer than the first nor shorter but the last."""
    assert [each.start_cursor for each in configs] == [0, *(each.end_cursor for each in configs)][: len(configs)]
    assert total == (configs[-1].end_cursor if configs else 0)
    sizes = [each.batch_size for each in configs]
    assert sum(sizes) == total
    assert all(size == sizes[0] for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= sizes[0]


@pytest.mark.parity(122, 123)
@settings(deadline=None)
@given(
    st.tuples(st.integers(0, 60 * U32), st.integers(60, 300)) | st.tuples(st.integers(0, 300), st.integers(1, 10**30))
)
@example((0, 60))
@example((60 * U32, 60))
def test_cursor_configs_cover_their_range(total_and_workers: tuple[int, int]) -> None:
    total, workers = total_and_workers
    configs = create_cursor_configs(total, workers)
    assert_covers(configs, total)
    assert len(configs) <= min(total, workers)
    assert [each.batch_id for each in configs] == [f"{number:03d}" for number in range(1, len(configs) + 1)]
    assert not configs or first_fault(create_batches("work", len(configs), configs, total)) is None


@pytest.mark.parity(122, 123)
@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 300))
def test_few_items_are_covered_by_any_number_of_workers(total: int, workers: int) -> None:
    configs = create_cursor_configs(total, workers)
    assert_covers(configs, total)
    covered = itertools.chain.from_iterable(range(each.start_cursor, each.end_cursor) for each in configs)  # type: ignore[arg-type]
    assert list(covered) == list(range(total))


@pytest.mark.parity(123)
@pytest.mark.parametrize(
    ("total", "workers", "sizes"),
    [
        (1000, 5, [200] * 5),
        (1000, 3, [334, 334, 332]),
        (10, 6, [2] * 5),
        (3, 5, [1] * 3),
        (1, 1, [1]),
    ],
)
def test_sizes_are_rounded_up_and_the_last_is_what_is_left(total: int, workers: int, sizes: list[int]) -> None:
    assert [each.batch_size for each in create_cursor_configs(total, workers)] == sizes


@pytest.mark.parity(122, 129)
@pytest.mark.parametrize("workers", [1, 5, 10**9])
def test_nothing_is_divided_into_nothing(workers: int) -> None:
    assert create_cursor_configs(0, workers) == []
    assert create_cursor_ranges(0, workers) == []
    assert create_cursor_ranges(0, workers, max_batches=3) == []


def test_a_division_may_have_as_many_batches_as_the_engine_takes() -> None:
    most = create_cursor_configs(MAX_BATCHES * U32, MAX_BATCHES)
    assert len(most) == MAX_BATCHES
    assert (most[-1].batch_id, most[-1].end_cursor) == ("10000", MAX_BATCHES * U32)
    assert len(create_cursor_ranges(MAX_BATCHES, 1)) == MAX_BATCHES


@pytest.mark.parametrize(
    ("total", "workers", "reason"),
    [
        (10**9, MAX_BATCHES + 1, "make 10001 batches, the limit is 10000"),
        (MAX_BATCHES * U32 + 1, MAX_BATCHES, "in batches of 4294967296|make batches of 4294967296"),
        (U64, 1, "make batches of 18446744073709551615, the limit is 4294967295: ask for more batches"),
        (U64 + 1, 5, "total is a whole number from 0 to 18446744073709551615, not 18446744073709551616"),
        (-1, 5, "total is a whole number from 0"),
        (10.0, 5, "total is a whole number"),
        (True, 5, "total is a whole number"),
        (10, 0, "workers is a whole number from 1, not 0"),
        (10, -5, "workers is a whole number from 1"),
        (10, "5", "workers is a whole number from 1, not '5'"),
        (0, 0, "workers is a whole number from 1"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(total: Any, workers: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        create_cursor_configs(total, workers)


@pytest.mark.parity(41)
@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, U32), st.integers(1, 40))
def test_cursor_ranges_cover_their_range_too(total: int, size: int, most: int) -> None:
    ranges = create_cursor_ranges(total, size, max_batches=max(most, -(-total // U32)))
    assert all(type(each) is CursorConfig for each in ranges)
    if ranges and ranges[0].batch_size != total:
        assert ranges[0].batch_size >= size
    assert_covers(ranges, total)
    assert len(ranges) <= max(most, -(-total // U32))


def test_batches_are_enlarged_only_when_there_would_be_too_many() -> None:
    assert [each.batch_size for each in create_cursor_ranges(1000, 100)] == [100] * 10
    assert [each.batch_size for each in create_cursor_ranges(1000, 100, max_batches=10)] == [100] * 10
    assert [each.batch_size for each in create_cursor_ranges(1000, 100, max_batches=5)] == [200] * 5
    assert [each.batch_size for each in create_cursor_ranges(1050, 500)] == [500, 500, 50]


@pytest.mark.parametrize(
    ("arguments", "limit", "reason"),
    [
        ((10, 0), None, "batch_size is a whole number from 1, not 0"),
        ((10, 1.5), None, "batch_size is a whole number"),
        ((-1, 5), None, "total_items is a whole number from 0"),
        ((10, 5), 0, "max_batches is a whole number from 1, not 0"),
        ((MAX_BATCHES + 1, 1), None, "10001 items in batches of 1 make 10001 batches, the limit is 10000"),
        ((2**33, 2**33), None, "make batches of 8589934592, the limit is 4294967295"),
    ],
)
def test_ranges_that_cannot_be_made_are_refused_with_the_reason(
    arguments: tuple[Any, Any], limit: int | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        create_cursor_ranges(*arguments, max_batches=limit)


def test_the_steps_of_workers_are_named_by_their_number() -> None:
    assert [worker_step_name("process_csv", number) for number in (0, 1, 42, 999, 1000, MAX_BATCHES)] == [
        "process_csv_000",
        "process_csv_001",
        "process_csv_042",
        "process_csv_999",
        "process_csv_1000",
        "process_csv_10000",
    ]
    assert len(worker_step_name("w" * MAX_TEMPLATE_NAME, MAX_BATCHES)) == 63  # as long as a step's name may be


def config(start: Any, end: Any, batch_id: str) -> RustCursorConfig:
    return RustCursorConfig(batch_id=batch_id, start_cursor=start, end_cursor=end, batch_size=1)


def outcome(*ranges: tuple[Any, Any], **fields: Any) -> CreateBatchesOutcome:
    configs = [config(start, end, f"{number:03d}") for number, (start, end) in enumerate(ranges, 1)]
    values = {"worker_template_name": "work", "worker_count": len(configs), "cursor_configs": configs, "total_items": 1}
    return CreateBatchesOutcome(**{**values, **fields})


@pytest.mark.parametrize(
    "fine",
    [
        outcome((0, 10), (10, 20)),
        outcome((10, 20), (0, 10)),
        outcome((0, 10), (50, 60)),
        outcome((5, 5), (5, 5), (0, 10)),
        outcome((-20, -10), (-10, 0)),
        outcome(("a", "z"), ("a", "z")),
        outcome(({"page": 1}, {"page": 9}), ({"page": 1}, {"page": 9})),
        outcome((0, "z"), (0, "z")),
        outcome((0, 1), worker_template_name="w" * MAX_TEMPLATE_NAME),
    ],
    ids=repr,
)
def test_what_the_engine_takes_has_no_fault(fine: CreateBatchesOutcome) -> None:
    assert first_fault(fine) is None


@pytest.mark.parametrize(
    ("wrong", "place", "reason"),
    [
        (outcome(), "cursor_configs", "is empty; no batches are an outcome of their own"),
        (outcome((0, 1), worker_count=5), "worker_count", "is 5, and there are 1 cursor_configs"),
        (outcome((0, 1), worker_template_name=""), "worker_template_name", "has 0 characters, not 1 to 57"),
        (outcome((0, 1), worker_template_name="w" * 58), "worker_template_name", "has 58 characters, not 1 to 57"),
        (outcome((0, 10), (9, 20)), "cursor_configs[1]", "(9 to 20) overlaps cursor_configs[0] (0 to 10)"),
        (outcome((9, 20), (0, 10)), "cursor_configs[0]", "(9 to 20) overlaps cursor_configs[1] (0 to 10)"),
        (outcome((0, 10), (0, 10)), "cursor_configs[1]", "(0 to 10) overlaps cursor_configs[0] (0 to 10)"),
        (outcome((0, 99), (5, 6), (99, 100)), "cursor_configs[1]", "(5 to 6) overlaps cursor_configs[0] (0 to 99)"),
        (outcome((0, 10), (20, 15)), "cursor_configs[1]", "ends at 15, before its start at 20"),
        (
            outcome((0, 1), cursor_configs=[config(0, 1, "")]),
            "cursor_configs[0].batch_id",
            "is empty",
        ),
        (
            outcome(worker_count=3, cursor_configs=[config(0, 1, "a"), config(1, 2, "b"), config(2, 3, "a")]),
            "cursor_configs[2].batch_id",
            "is 'a', as is that of cursor_configs[0]",
        ),
    ],
)
def test_what_the_engine_would_refuse_is_told_by_place_and_reason(
    wrong: CreateBatchesOutcome, place: str, reason: str
) -> None:
    assert first_fault(wrong) == (place, reason)


def test_one_batch_beyond_the_limit_is_refused() -> None:
    ranges = [(number, number + 1) for number in range(MAX_BATCHES + 1)]
    assert first_fault(outcome(*ranges)) == ("cursor_configs", "has 10001 batches, the limit is 10000")
    assert first_fault(outcome(*ranges[:-1])) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=6))
def test_an_overlap_is_found_exactly_when_two_ranges_share_a_position(ranges: list[tuple[int, int]]) -> None:
    positions = list(itertools.chain.from_iterable(range(start, start + size) for start, size in ranges))
    found = first_fault(outcome(*((start, start + size) for start, size in ranges)))
    assert (found is None) == (len(positions) == len(set(positions)))
