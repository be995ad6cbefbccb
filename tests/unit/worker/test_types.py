"""The wire types of batches: their exact JSON, what they refuse, and that nothing is lost on the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_never

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, TypeAdapter

from tasker_worker import batch, batch_results, types
from tasker_worker import cursors as division
from tasker_worker.batch import Checkpoint
from tasker_worker.jsontext import encode
from tasker_worker.types import (
    BatchAggregationResult,
    BatchMetadata,
    BatchProcessingOutcome,
    CreateBatchesOutcome,
    CursorConfig,
    FailureStrategy,
    NoBatchesOutcome,
    RustBatchWorkerInputs,
    RustCursorConfig,
    create_batches,
    is_create_batches,
    is_no_batches,
    no_batches,
)

WIRE = Path(__file__).parents[2] / "data" / "wire"
U32 = 2**32 - 1
U64 = 2**64 - 1

outcome_adapter: TypeAdapter[NoBatchesOutcome | CreateBatchesOutcome] = TypeAdapter(BatchProcessingOutcome)

json_values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdé", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text("abcdé", min_size=1, max_size=4), json_values, max_size=3)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
cursors = st.integers() | texts | json_objects
cursor_configs = st.builds(
    RustCursorConfig,
    batch_id=texts,
    start_cursor=cursors,
    end_cursor=cursors,
    batch_size=st.integers(0, U32),
)
strategies = st.sampled_from(FailureStrategy)
simple_cursor_configs = st.builds(
    lambda start, size: CursorConfig(start_cursor=start, end_cursor=start + size), st.integers(), st.integers(0, U32)
)
counts = st.integers(0, 2**70)

ANY_OF_THEM: st.SearchStrategy[BaseModel] = st.one_of(
    cursor_configs,
    simple_cursor_configs,
    st.just(NoBatchesOutcome()),
    st.builds(
        CreateBatchesOutcome,
        worker_template_name=texts,
        worker_count=st.integers(0, U32),
        cursor_configs=st.lists(cursor_configs, max_size=4),
        total_items=st.integers(0, U64),
    ),
    st.builds(
        RustBatchWorkerInputs,
        cursor=cursor_configs,
        batch_metadata=st.builds(BatchMetadata, cursor_field=texts, failure_strategy=strategies),
        is_no_op=st.booleans(),
        __template_step_name=texts,
    ),
    st.builds(
        BatchAggregationResult,
        total_processed=counts,
        total_succeeded=counts,
        total_failed=counts,
        total_skipped=counts,
        batch_count=counts,
        success_rate=st.floats(0, 1),
        errors=st.lists(json_values, max_size=3),
        error_count=counts,
    ),
    st.builds(Checkpoint, cursor=cursors, items_processed=st.integers(0, U64), accumulated=st.none() | json_objects),
)

FILES: dict[str, Any] = {
    "cursor_config": RustCursorConfig,
    "cursor_config_of_texts": RustCursorConfig,
    "cursor_config_of_objects": RustCursorConfig,
    "no_batches": BatchProcessingOutcome,
    "create_batches": BatchProcessingOutcome,
    "batch_metadata": BatchMetadata,
    "batch_worker_inputs": RustBatchWorkerInputs,
    "batch_worker_inputs_with_more_keys": RustBatchWorkerInputs,
    "batch_worker_inputs_of_placeholder": RustBatchWorkerInputs,
    "checkpoint": Checkpoint,
}


def document(name: str) -> Any:
    return json.loads((WIRE / f"{name}.json").read_text())


def a_cursor_config(**fields: Any) -> dict[str, Any]:
    return {"batch_id": "001", "start_cursor": 0, "end_cursor": 10, "batch_size": 10, **fields}


def an_outcome(**fields: Any) -> dict[str, Any]:
    return {
        "type": "create_batches",
        "worker_template_name": "process_csv",
        "worker_count": 1,
        "cursor_configs": [a_cursor_config()],
        "total_items": 10,
        **fields,
    }


def the_inputs(**fields: Any) -> dict[str, Any]:
    return {
        "cursor": a_cursor_config(),
        "batch_metadata": {"cursor_field": "id", "failure_strategy": "fail_fast"},
        "is_no_op": False,
        **fields,
    }


def refused(shape: Any, value: Any) -> tuple[str | int, ...]:
    """Where `value` is refused, as a Python value and as JSON."""
    adapter: TypeAdapter[Any] = TypeAdapter(shape)
    with pytest.raises(pydantic.ValidationError) as error:
        adapter.validate_python(value)
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_json(json.dumps(value))
    return error.value.errors()[0]["loc"]


@pytest.mark.parity(1, 11, 13, 14, 27)
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_document_is_read_and_written_again_key_for_key(name: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(FILES[name])
    written = json.dumps(document(name))
    for value in (adapter.validate_json(written), adapter.validate_python(document(name))):
        assert isinstance(value, BaseModel)
        assert json.dumps(value.model_dump(mode="json")) == written
        assert json.dumps(json.loads(value.model_dump_json())) == written
        assert json.dumps(json.loads(encode(value))) == written


def test_every_document_is_read_by_a_test() -> None:
    assert {file.stem for file in WIRE.glob("*.json")} == FILES.keys() | {"batch_aggregation"}


@pytest.mark.parity(1)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_OF_THEM)
def test_whatever_is_written_is_read_again_without_loss(value: BaseModel) -> None:
    shape = type(value)
    assert shape.model_validate_json(value.model_dump_json()) == value
    assert shape.model_validate(json.loads(encode(value))) == value
    assert encode(shape.model_validate(json.loads(encode(value)))) == encode(value)


@pytest.mark.parity(2, 3, 4)
def test_each_shape_is_defined_once_under_the_name_that_the_documents_give_it() -> None:
    shapes = {
        "RustCursorConfig": {"batch_id", "start_cursor", "end_cursor", "batch_size"},
        "CursorConfig": {"start_cursor", "end_cursor", "batch_size"},
        "NoBatchesOutcome": {"type"},
        "CreateBatchesOutcome": {"type", "worker_template_name", "worker_count", "cursor_configs", "total_items"},
        "RustBatchWorkerInputs": {"cursor", "batch_metadata", "is_no_op"},
        "BatchMetadata": {"cursor_field", "failure_strategy"},
    }
    for name, fields in shapes.items():
        assert set(getattr(types, name).model_fields) == fields
        for module in (batch, batch_results, division):
            assert getattr(module, name, getattr(types, name)) is getattr(types, name)
    assert [*FailureStrategy] == ["continue_on_failure", "fail_fast", "isolate"]
    assert TypeAdapter(types.BatchProcessingOutcome).json_schema()["discriminator"]["propertyName"] == "type"
    assert sorted(types.__all__) == types.__all__
    assert all(hasattr(types, name) for name in types.__all__)


@pytest.mark.parity(5)
@pytest.mark.parametrize("key", ["batch_id", "start_cursor", "end_cursor", "batch_size"])
def test_a_cursor_config_has_exactly_its_four_keys(key: str) -> None:
    without = a_cursor_config()
    del without[key]
    assert refused(RustCursorConfig, without) == (key,)
    assert refused(RustCursorConfig, a_cursor_config(checkpoint=1)) == ("checkpoint",)


@pytest.mark.parity(6)
@pytest.mark.parametrize("value", [1, None, True, ["001"]])
def test_a_batch_id_is_a_text(value: Any) -> None:
    assert refused(RustCursorConfig, a_cursor_config(batch_id=value)) == ("batch_id",)


@pytest.mark.parity(7)
def test_a_batch_size_is_an_unsigned_integer_of_32_bits() -> None:
    for size in (0, 1, U32):
        assert RustCursorConfig(**a_cursor_config(batch_size=size)).batch_size == size
    for wrong in (-1, U32 + 1, 10.0, "10", None, True):
        assert refused(RustCursorConfig, a_cursor_config(batch_size=wrong)) == ("batch_size",)


@pytest.mark.parity(8, 9, 10, 42)
@pytest.mark.parametrize(
    "cursor",
    [
        pytest.param(0, id="integer"),
        pytest.param(-(2**70), id="any integer"),
        pytest.param("2025-11-01T00:00:00Z", id="timestamp"),
        pytest.param("", id="empty text"),
        pytest.param({"page": 1, "offset": 0}, id="composite key"),
        pytest.param({}, id="empty object"),
    ],
)
@pytest.mark.parametrize("key", ["start_cursor", "end_cursor"])
def test_a_cursor_is_an_integer_a_text_or_an_object(key: str, cursor: Any) -> None:
    config = RustCursorConfig.model_validate_json(json.dumps(a_cursor_config(**{key: cursor})))
    assert config.model_dump()[key] == cursor
    assert type(config.model_dump()[key]) is type(cursor)


@pytest.mark.parametrize("cursor", [None, True, 1.0, [1, 2]])
@pytest.mark.parametrize("key", ["start_cursor", "end_cursor"])
def test_nothing_else_is_a_cursor(key: str, cursor: Any) -> None:
    assert refused(RustCursorConfig, a_cursor_config(**{key: cursor})) == (key,)


def test_what_is_inside_of_an_object_is_stored_as_a_result_is() -> None:
    cursor: Any = {"since": datetime(2025, 11, 1, tzinfo=UTC), "pages": (1, 2)}
    config = RustCursorConfig(**a_cursor_config(start_cursor=cursor))
    assert config.start_cursor == {"since": "2025-11-01T00:00:00Z", "pages": [1, 2]}
    accumulated: Any = {"sum": Decimal("4.50")}
    assert Checkpoint(cursor=1, accumulated=accumulated).accumulated == {"sum": "4.50"}


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        ({"at": float("nan")}, r"the value is not JSON: \$\.at is nan"),
        ("a\0b", r"the value is not JSON that Postgres can store: \$ holds the character U\+0000"),
        ({"of": object()}, r"the value is not JSON: \$\.of is an object"),
        ({1: 2}, "the key 1, which is not text"),
    ],
)
def test_a_cursor_that_cannot_be_stored_is_refused_with_its_place(cursor: Any, reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=reason):
        RustCursorConfig(**a_cursor_config(start_cursor=cursor))


@pytest.mark.parity(41)
def test_the_simple_form_is_of_integers_and_has_no_id() -> None:
    simple = CursorConfig(start_cursor=10, end_cursor=25)
    assert simple.model_dump() == {"start_cursor": 10, "end_cursor": 25, "batch_size": 15}
    assert CursorConfig(start_cursor=10, end_cursor=25, batch_size=3).batch_size == 3
    assert CursorConfig(start_cursor=7, end_cursor=7).batch_size == 0
    assert CursorConfig(start_cursor=0, end_cursor=U32).batch_size == U32
    assert refused(CursorConfig, {"start_cursor": "10", "end_cursor": 25}) == ("start_cursor",)
    assert refused(CursorConfig, {"start_cursor": 10, "end_cursor": {"page": 1}}) == ("end_cursor",)
    assert refused(CursorConfig, {"start_cursor": 10, "end_cursor": 25, "batch_id": "001"}) == ("batch_id",)
    assert refused(CursorConfig, {"start_cursor": 10, "end_cursor": 25, "batch_size": U32 + 1}) == ("batch_size",)


def test_the_simple_form_goes_forwards_and_no_further_than_a_size_can_tell() -> None:
    with pytest.raises(pydantic.ValidationError, match="end_cursor 9 lies before start_cursor 10"):
        CursorConfig(start_cursor=10, end_cursor=9)
    with pytest.raises(pydantic.ValidationError, match="has 4294967296 items, the limit is 4294967295"):
        CursorConfig(start_cursor=0, end_cursor=U32 + 1)


@pytest.mark.parity(12, 13, 14, 16)
def test_outcomes_are_told_apart_by_their_type() -> None:
    nothing = outcome_adapter.validate_json('{"type":"no_batches"}')
    some = outcome_adapter.validate_json(json.dumps(an_outcome()))
    assert isinstance(nothing, NoBatchesOutcome)
    assert isinstance(some, CreateBatchesOutcome)
    assert nothing.model_dump_json() == '{"type":"no_batches"}'
    assert list(some.model_dump()) == [
        "type",
        "worker_template_name",
        "worker_count",
        "cursor_configs",
        "total_items",
    ]


@pytest.mark.parity(13)
def test_no_batches_holds_its_type_and_nothing_else() -> None:
    assert refused(BatchProcessingOutcome, {"type": "no_batches", "total_items": 0})[-1] == "total_items"


@pytest.mark.parity(14)
@pytest.mark.parametrize("key", ["worker_template_name", "worker_count", "cursor_configs", "total_items"])
def test_create_batches_needs_each_of_its_keys_and_has_no_other(key: str) -> None:
    without = an_outcome()
    del without[key]
    assert refused(BatchProcessingOutcome, without)[-1] == key
    assert refused(BatchProcessingOutcome, an_outcome(parallelism=3))[-1] == "parallelism"


@pytest.mark.parity(15)
@pytest.mark.parametrize(("key", "most"), [("worker_count", U32), ("total_items", U64)])
def test_counts_of_an_outcome_keep_to_their_range(key: str, most: int) -> None:
    for count in (0, most):
        read = outcome_adapter.validate_json(json.dumps(an_outcome(**{key: count})))
        assert getattr(read, key) == count
    for wrong in (-1, most + 1, 1.5, "1", None, True):
        assert refused(BatchProcessingOutcome, an_outcome(**{key: wrong}))[-1] == key


@pytest.mark.parity(16)
def test_cursor_configs_keep_their_order_and_are_cursor_configs() -> None:
    ids = ["003", "001", "002"]
    outcome = create_batches("work", 3, [RustCursorConfig(**a_cursor_config(batch_id=each)) for each in ids], 30)
    read = CreateBatchesOutcome.model_validate_json(outcome.model_dump_json())
    assert [each.batch_id for each in read.cursor_configs] == ids
    wrong = an_outcome(cursor_configs=[a_cursor_config(), a_cursor_config(batch_size=-1)])
    assert refused(BatchProcessingOutcome, wrong)[-3:] == ("cursor_configs", 1, "batch_size")


@pytest.mark.parity(17)
@pytest.mark.parametrize("tag", ["NoBatches", "CreateBatches", "createBatches", "batches", "", None, 1])
def test_an_unknown_type_is_refused(tag: Any) -> None:
    refused(BatchProcessingOutcome, an_outcome(type=tag))
    refused(BatchProcessingOutcome, {"type": tag})


@pytest.mark.parity(17)
def test_an_outcome_without_a_type_is_refused() -> None:
    refused(BatchProcessingOutcome, {})


@pytest.mark.parity(18)
def test_no_batches_is_made() -> None:
    assert no_batches() == NoBatchesOutcome()
    assert no_batches().model_dump() == {"type": "no_batches"}


@pytest.mark.parity(19, 42, 43)
def test_create_batches_is_made_of_its_arguments_in_order() -> None:
    configs = [
        RustCursorConfig(batch_id="001", start_cursor=0, end_cursor=1000, batch_size=1000),
        RustCursorConfig(batch_id="002", start_cursor=1000, end_cursor=1500, batch_size=500),
    ]
    assert create_batches("process_csv", 2, configs, 1500).model_dump(mode="json") == document("create_batches")


def told(outcome: NoBatchesOutcome | CreateBatchesOutcome) -> str:
    """What a handler can tell of an outcome; that each name is there, mypy checks."""
    if is_no_batches(outcome):
        return f"{outcome.type}: nothing"
    if is_create_batches(outcome):
        return f"{outcome.type}: {outcome.worker_count} for {outcome.total_items}"
    assert_never(outcome)


@pytest.mark.parity(20, 21)
def test_an_outcome_is_recognised_and_narrowed() -> None:
    assert told(outcome_adapter.validate_python(document("no_batches"))) == "no_batches: nothing"
    assert told(outcome_adapter.validate_python(document("create_batches"))) == "create_batches: 2 for 1500"
    assert not is_create_batches(no_batches())
    assert not is_no_batches(create_batches("work", 0, [], 0))


def test_as_many_workers_are_asked_for_as_there_are_cursors() -> None:
    with pytest.raises(ValueError, match="worker_count is 2, and there are 1 cursor_configs"):
        create_batches("work", 2, [RustCursorConfig(**a_cursor_config())], 10)
    with pytest.raises(ValueError, match="total_items"):
        create_batches("work", 1, [RustCursorConfig(**a_cursor_config())], -1)


@pytest.mark.parity(22, 27, 32)
def test_the_inputs_of_a_worker_hold_cursor_metadata_and_whether_it_is_a_placeholder() -> None:
    inputs = RustBatchWorkerInputs.model_validate_json((WIRE / "batch_worker_inputs.json").read_text())
    assert inputs.cursor == RustCursorConfig(batch_id="batch_001", start_cursor=0, end_cursor=1000, batch_size=1000)
    assert inputs.batch_metadata.cursor_field == "id"
    assert inputs.batch_metadata.failure_strategy is FailureStrategy.CONTINUE_ON_FAILURE
    assert inputs.is_no_op is False
    for key in ("cursor", "batch_metadata", "is_no_op"):
        without = the_inputs()
        del without[key]
        assert refused(RustBatchWorkerInputs, without) == (key,)


@pytest.mark.parity(24)
def test_a_placeholder_is_marked_by_a_boolean_and_by_nothing_that_looks_like_one() -> None:
    assert RustBatchWorkerInputs.model_validate(the_inputs(is_no_op=True)).is_no_op is True
    for wrong in (1, 0, "true", None):
        assert refused(RustBatchWorkerInputs, the_inputs(is_no_op=wrong)) == ("is_no_op",)


@pytest.mark.parity(25, 26)
def test_the_metadata_of_a_batch_holds_two_keys_and_no_interval_of_checkpoints() -> None:
    known = {"cursor_field": "id", "failure_strategy": "isolate"}
    assert BatchMetadata.model_validate(known).model_dump(mode="json") == known
    assert refused(BatchMetadata, {**known, "checkpoint_interval": 100}) == ("checkpoint_interval",)
    assert refused(BatchMetadata, {"failure_strategy": "isolate"}) == ("cursor_field",)
    assert refused(BatchMetadata, {"cursor_field": "id"}) == ("failure_strategy",)


@pytest.mark.parity(28, 29, 30)
@pytest.mark.parametrize("text", ["continue_on_failure", "fail_fast", "isolate"])
def test_the_three_failure_strategies_are_read_and_written(text: str) -> None:
    from_python = BatchMetadata.model_validate({"cursor_field": "id", "failure_strategy": text})
    from_json = BatchMetadata.model_validate_json(f'{{"cursor_field":"id","failure_strategy":"{text}"}}')
    assert from_python == from_json
    assert from_json.failure_strategy is FailureStrategy(text)
    assert json.loads(from_json.model_dump_json())["failure_strategy"] == text


@pytest.mark.parity(31)
@pytest.mark.parametrize(
    "wrong", ["ContinueOnFailure", "FailFast", "Isolate", "ISOLATE", "fail-fast", " fail_fast", "", None, 0, True]
)
def test_any_other_failure_strategy_is_refused(wrong: Any) -> None:
    assert refused(BatchMetadata, {"cursor_field": "id", "failure_strategy": wrong}) == ("failure_strategy",)


def test_a_failure_strategy_is_no_bytes() -> None:
    with pytest.raises(pydantic.ValidationError, match="a failure strategy is a text, not bytes"):
        BatchMetadata.model_validate({"cursor_field": "id", "failure_strategy": b"isolate"})


def test_what_was_made_does_not_change() -> None:
    for value in (no_batches(), CursorConfig(start_cursor=0, end_cursor=1), Checkpoint(cursor=1)):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(value, next(iter(type(value).model_fields)), 1)
