"""What the workers of a batch did is added up, whatever they returned and however many they were."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasker_worker import StepResult
from tasker_worker.aggregation import ERROR_BYTES, BatchAggregation
from tasker_worker.batch import aggregate_worker_results, batch_worker_success
from tasker_worker.errors import ValidationError
from tasker_worker.jsontext import encode
from tasker_worker.testing import make_context, run_handler
from tasker_worker.types import BatchAggregationResult, aggregate_batch_results

WIRE = Path(__file__).parents[2] / "data" / "wire"

counts = st.integers(0, 2**40)
results = st.fixed_dictionaries(
    {"items_processed": counts},
    optional={
        "items_succeeded": counts | st.none(),
        "items_failed": counts | st.none(),
        "items_skipped": counts | st.none(),
        "errors": st.lists(st.just({"item": 1}), max_size=60) | st.none(),
        "rows": st.just("whatever else a worker returns"),
    },
)
seen = st.lists(results | st.none() | st.just({}), max_size=12)


@pytest.mark.parity(33, 34, 37, 38, 39, 44)
def test_the_documents_results_add_up_to_the_documents_sum() -> None:
    case = json.loads((WIRE / "batch_aggregation.json").read_text())
    total = aggregate_batch_results(case["results"])
    assert json.dumps(total.model_dump(mode="json")) == json.dumps(case["aggregated"])
    assert BatchAggregationResult.model_validate_json(json.dumps(case["aggregated"])) == total


@pytest.mark.parity(33, 34, 37, 39)
@settings(deadline=None)
@given(seen)
def test_every_sum_is_that_of_the_results_that_are_there(given_results: list[dict[str, Any] | None]) -> None:
    total = aggregate_batch_results(given_results)
    ran = [each for each in given_results if each]
    assert total.batch_count == len(ran)
    for name in ("processed", "succeeded", "failed", "skipped"):
        assert getattr(total, f"total_{name}") == sum(each.get(f"items_{name}") or 0 for each in ran)
    assert total.error_count == sum(len(each.get("errors") or ()) for each in ran)
    assert len(total.errors) == min(100, total.error_count)


@pytest.mark.parity(35)
@settings(deadline=None)
@given(seen)
def test_a_success_rate_lies_between_none_and_all(given_results: list[dict[str, Any] | None]) -> None:
    total = aggregate_batch_results(given_results)
    assert type(total.success_rate) is float
    assert 0.0 <= total.success_rate <= 1.0
    if total.total_processed and total.total_succeeded <= total.total_processed:
        assert total.success_rate == total.total_succeeded / total.total_processed


@pytest.mark.parity(35)
@pytest.mark.parametrize("nothing", [[], [None], [{}], [{"items_processed": 0, "items_succeeded": 3}], [{"rows": 5}]])
def test_where_nothing_was_processed_nothing_succeeded(nothing: list[Any]) -> None:
    rate = aggregate_batch_results(nothing).success_rate
    assert (rate, type(rate)) == (0.0, float)


@pytest.mark.parity(36, 37)
def test_of_many_errors_the_first_hundred_are_kept_and_all_are_counted() -> None:
    workers = [{"items_processed": 40, "errors": [{"worker": w, "item": i} for i in range(40)]} for w in range(3)]
    total = aggregate_batch_results(workers)
    assert total.errors == list(itertools.chain.from_iterable(worker["errors"] for worker in workers))[:100]  # type: ignore[arg-type]
    assert total.error_count == 120
    few = aggregate_batch_results(workers, 2)
    assert (few.errors, few.error_count) == ([{"worker": 0, "item": 0}, {"worker": 0, "item": 1}], 120)
    none = aggregate_batch_results(workers, max_errors=0)
    assert (none.errors, none.error_count) == ([], 120)


@pytest.mark.parity(36)
@pytest.mark.parametrize("limit", [101, -1, 1.0, True, None])
def test_more_than_a_hundred_errors_cannot_be_asked_for(limit: Any) -> None:
    with pytest.raises(ValueError, match="a number from 0 to 100"):
        aggregate_batch_results([], limit)
    fields = aggregate_batch_results([]).model_dump() | {"errors": [{}] * 101}
    with pytest.raises(pydantic.ValidationError, match="errors"):
        BatchAggregationResult(**fields)


def test_a_worker_that_kept_some_of_its_errors_counts_with_all() -> None:
    one = batch_worker_success(250, items_failed=250, errors=({"item": i} for i in range(250))).result
    assert len(one["errors"]) == 100
    total = aggregate_batch_results([one, {"errors": [1, 2], "error_count": 1}, {"error_count": 4}])
    assert (len(total.errors), total.error_count) == (100, 256)


@pytest.mark.parity(40)
def test_a_step_may_return_the_sum_of_what_it_depends_on() -> None:
    def add_up(dependency_results: dict[str, Any]) -> BatchAggregationResult:
        return aggregate_batch_results(list(dependency_results.values()))

    workers = {"load_001": {"items_processed": 4, "items_succeeded": 3}, "load_002": None}
    result = run_handler(add_up, make_context(dependency_results=workers))
    assert result.success
    assert result.result == {
        "total_processed": 4,
        "total_succeeded": 3,
        "total_failed": 0,
        "total_skipped": 0,
        "batch_count": 1,
        "success_rate": 0.75,
        "errors": [],
        "error_count": 0,
    }


@pytest.mark.parity(34, 39)
def test_placeholders_and_the_absent_did_not_run_and_whatever_else_a_worker_returned_did() -> None:
    placeholder = {"no_op": True, "batch_id": "000", "items_processed": 0}
    assert aggregate_batch_results([placeholder, None, {}]).batch_count == 0
    assert aggregate_batch_results([{"no_op": False, "items_processed": 1}]).batch_count == 1
    others = aggregate_batch_results([[1, 2], "done", 0, False, 1.5])
    assert (others.batch_count, others.total_processed) == (5, 0)
    assert aggregate_batch_results([{"items_failed": 1, "errors": "no list"}]).error_count == 0


@pytest.mark.parametrize("name", ["items_processed", "items_succeeded", "items_failed", "items_skipped", "error_count"])
@pytest.mark.parametrize("wrong", ["3", -1, 1.5, True, [3]])
def test_a_count_that_is_none_is_refused_with_its_place(name: str, wrong: Any) -> None:
    aggregation = BatchAggregation()
    aggregation.add_page([None, {"items_processed": 7, "errors": [1]}])
    before = aggregation.result()
    with pytest.raises(ValidationError) as error:
        aggregation.add({"items_processed": 7, "errors": [1], name: wrong})
    assert str(error.value) == f"results[2].{name} is {wrong!r}, not a whole number from 0"
    assert aggregation.result() == before


@settings(deadline=None)
@given(seen, st.integers(1, 5))
def test_pages_add_up_to_what_all_do_at_once(given_results: list[Any], size: int) -> None:
    aggregation = BatchAggregation()
    for start in range(0, len(given_results), size):
        aggregation.add_page(given_results[start : start + size])
    assert aggregation.result() == aggregate_batch_results(given_results)
    assert aggregation.worker_count == len(given_results)


def test_a_sum_may_be_taken_at_any_time_and_stays_what_it_was() -> None:
    aggregation = BatchAggregation()
    aggregation.add({"items_processed": 1, "errors": ["a"]})
    first = aggregation.result()
    aggregation.add({"items_processed": 2, "errors": ["b"]})
    assert (first.total_processed, first.errors) == (1, ["a"])
    assert (aggregation.result().total_processed, aggregation.result().errors) == (3, ["a", "b"])


def test_the_results_of_ten_thousand_workers_are_never_in_memory_together() -> None:
    def page() -> Iterator[dict[str, Any]]:
        for number in range(200):
            yield {"items_processed": 1, "rows": "x" * 10_000, "errors": [{"of": number, "text": "e" * 1_000}]}

    aggregation = BatchAggregation()
    aggregation.add_page(page())
    tracemalloc.start()
    try:
        for _ in range(50):
            aggregation.add_page(page())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 200_000  # 100 MB went by
    assert (aggregation.worker_count, aggregation.result().error_count) == (10_200, 10_200)


@pytest.mark.parity(40)
def test_errors_that_are_long_are_kept_as_far_as_a_result_has_room_for_them() -> None:
    error = {"text": "é" * 5_000}
    total = aggregate_batch_results([{"items_processed": 60, "errors": [error] * 60}, {"errors": [{"item": 1}]}])
    assert total.error_count == 61
    assert total.errors == [error] * (ERROR_BYTES // len(encode(error).encode()))
    assert 20 < len(total.errors) < 60
    assert len(encode(total).encode()) < ERROR_BYTES + 1_000


def test_room_for_errors_is_used_to_the_last_byte() -> None:
    half = "e" * (ERROR_BYTES // 2 - 2)  # and two quotation marks
    assert aggregate_batch_results([{"errors": [half, half]}]).errors == [half, half]
    assert aggregate_batch_results([{"errors": [half, half + "e", 1]}]).errors == [half]


def test_an_error_that_cannot_be_stored_is_told_by_its_place() -> None:
    def work() -> StepResult:
        return batch_worker_success(3, items_failed=2, errors=["fine", object()])

    result = run_handler(work)
    assert (result.success, result.retryable) == (False, False)
    assert result.error_message == "result of step 'step' is not JSON: $.errors[1] is an object"


@pytest.mark.parity(33, 35)
@pytest.mark.parametrize(
    "wrong",
    [
        {"total_processed": 1.5},
        {"total_succeeded": "3"},
        {"total_failed": -1},
        {"total_skipped": None},
        {"batch_count": True},
        {"success_rate": 1.01},
        {"success_rate": "0.5"},
        {"errors": None},
        {"error_count": -1},
        {"worker_count": 3},
    ],
)
def test_what_is_no_sum_is_refused(wrong: dict[str, Any]) -> None:
    total = aggregate_batch_results([{"items_processed": 1}])
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        BatchAggregationResult(**{**total.model_dump(), **wrong})
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(total, next(iter(wrong)), 1)


@pytest.mark.parity(126, 128)
def test_the_plain_sum_says_how_many_workers_there_were_absent_ones_too() -> None:
    workers = [{"items_processed": 5, "items_succeeded": 5}, None, {"items_processed": 3, "items_failed": 3}, {}]
    plain = aggregate_worker_results(workers)
    assert plain["worker_count"] == 4
    assert plain["batch_count"] == 2
    assert {**aggregate_batch_results(workers).model_dump(), "worker_count": 4} == plain
    assert aggregate_worker_results([{"errors": [1, 2]}], 1)["errors"] == [1]
