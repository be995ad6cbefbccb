"""Dividing work into batches, and what a division must keep to before the engine makes workers of it.

Pure: numbers in, cursors out. Every division covers its range, without gap and without overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pydantic

from .aggregation import is_whole_number
from .errors import PermanentError
from .types import U32_MAX, U64_MAX, CreateBatchesOutcome, CursorConfig, RustCursorConfig

MAX_BATCHES = 10_000
"""Workers of one batch; the engine takes no more."""
MAX_TEMPLATE_NAME = 57
"""Characters of a worker template's name: a step's name has 63, of which its workers' names need up to six."""


class BatchError(PermanentError):
    """The batches that a step asks for, or the inputs of a batch worker, are missing or wrong."""

    error_type = "batch_error"


def create_cursor_configs(total: int, workers: int) -> list[RustCursorConfig]:
    """Divide `total` items among at most `workers` batches of one size; the last may be smaller.

    The size is rounded up, so that there may be fewer batches than workers (10 items for 6 workers make 5 batches), and
    none when there are no items. Ids are `001`, `002`, and so on; cursors count from 0.

    Raises ValueError for numbers out of range: `total` from 0 to 2⁶⁴ − 1, `workers` from 1, at most 10,000 batches of
    at most 2³² − 1 items.
    """
    _check_number("total", total, 0, U64_MAX)
    _check_number("workers", workers, 1)
    return [
        RustCursorConfig(batch_id=batch_id(number), start_cursor=start, end_cursor=end, batch_size=end - start)
        for number, (start, end) in enumerate(_ranges(total, -(-total // workers)), 1)
    ]


def create_cursor_ranges(total_items: int, batch_size: int, *, max_batches: int | None = None) -> list[CursorConfig]:
    """Divide `total_items` into batches of `batch_size`; of more when there would be more than `max_batches`.

    Raises ValueError for numbers out of range, as `create_cursor_configs` does.
    """
    _check_number("total_items", total_items, 0, U64_MAX)
    _check_number("batch_size", batch_size, 1)
    if max_batches is not None:
        _check_number("max_batches", max_batches, 1)
        batch_size = max(batch_size, -(-total_items // max_batches))
    return [CursorConfig(start_cursor=start, end_cursor=end) for start, end in _ranges(total_items, batch_size)]


def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges from 0 to `total`, each of `size` but the last; checked before the first is made."""
    if total == 0:
        return iter(())
    count = -(-total // size)
    if count > MAX_BATCHES:
        raise ValueError(f"{total} items in batches of {size} make {count} batches, the limit is {MAX_BATCHES}")
    if min(size, total) > U32_MAX:
        raise ValueError(
            f"{total} items make batches of {min(size, total)}, the limit is {U32_MAX}: ask for more batches"
        )
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _check_number(name: str, value: int, least: int, most: int | None = None) -> None:
    if not is_whole_number(value, least, most):
        allowed = f"from {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is a whole number {allowed}, not {value!r}")


def batch_id(number: int) -> str:
    """The id of the batch of that number: `001` for the first; `000` is the placeholder's."""
    return f"{number:03d}"


def worker_step_name(template: str, number: int) -> str:
    """The name of the step that works on the batch of that number: `process_csv_001` for the first."""
    return f"{template}_{batch_id(number)}"


def with_ids(configs: Sequence[RustCursorConfig | CursorConfig]) -> list[RustCursorConfig]:
    """Cursors in the engine's shape; those in the simple form get their place in the list as id."""
    return [_with_id(config, number) for number, config in enumerate(configs, 1)]


def _with_id(config: object, number: int) -> RustCursorConfig:
    match config:
        case RustCursorConfig():
            return config
        case CursorConfig(start_cursor=start, end_cursor=end, batch_size=size):
            return RustCursorConfig(batch_id=batch_id(number), start_cursor=start, end_cursor=end, batch_size=size)
        case _:
            raise BatchError(
                f"cursor_configs[{number - 1}] is no RustCursorConfig or CursorConfig but a {type(config).__name__}"
            )


def first_fault(outcome: CreateBatchesOutcome) -> tuple[str, str] | None:
    """The path inside the outcome and the reason why the engine would refuse it; None when it would not.

    The engine takes 1 to 10,000 batches, as many as `worker_count` says, with ids of their own; ranges of integers go
    forwards and do not overlap. It cannot judge other cursors.
    """
    name, configs = outcome.worker_template_name, outcome.cursor_configs
    if not 1 <= len(name) <= MAX_TEMPLATE_NAME:
        return "worker_template_name", f"has {len(name)} characters, not 1 to {MAX_TEMPLATE_NAME}"
    if outcome.worker_count != len(configs):
        return "worker_count", f"is {outcome.worker_count}, and there are {len(configs)} cursor_configs"
    if not configs:
        return "cursor_configs", "is empty; no batches are an outcome of their own"
    if len(configs) > MAX_BATCHES:
        return "cursor_configs", f"has {len(configs)} batches, the limit is {MAX_BATCHES}"
    return _first_fault_of_ids(configs) or _first_fault_of_ranges(configs)


def _first_fault_of_ids(configs: Sequence[RustCursorConfig]) -> tuple[str, str] | None:
    places: dict[str, int] = {}
    for place, config in enumerate(configs):
        if not config.batch_id:
            return f"cursor_configs[{place}].batch_id", "is empty"
        first = places.setdefault(config.batch_id, place)
        if first != place:
            return f"cursor_configs[{place}].batch_id", f"is {config.batch_id!r}, as is that of cursor_configs[{first}]"
    return None


def _first_fault_of_ranges(configs: Sequence[RustCursorConfig]) -> tuple[str, str] | None:
    ranges: list[tuple[int, int, int]] = []
    for place, config in enumerate(configs):
        start, end = config.start_cursor, config.end_cursor
        if isinstance(start, int) and isinstance(end, int):
            if end < start:
                return f"cursor_configs[{place}]", f"ends at {end}, before its start at {start}"
            if start < end:  # an empty range overlaps nothing
                ranges.append((start, end, place))
    ranges.sort()
    for (start, end, place), (next_start, next_end, next_place) in itertools.pairwise(ranges):
        if next_start < end:
            return (
                f"cursor_configs[{next_place}]",
                f"({next_start} to {next_end}) overlaps cursor_configs[{place}] ({start} to {end})",
            )
    return None


def check(outcome: CreateBatchesOutcome, path: str) -> None:
    """Raise BatchError, with the place behind `path`, for what the engine would refuse."""
    fault = first_fault(outcome)
    if fault is not None:
        place, reason = fault
        raise BatchError(f"{path}.{place} {reason}")


def described(error: pydantic.ValidationError, path: str, *, skipped: tuple[str, ...] = ()) -> str:
    """The first fault that pydantic found, with its path behind `path`: ``inputs.cursor.batch_size: …``.

    `skipped` are names that pydantic puts into a path and a document has not: the members of a union.
    """
    first = error.errors(include_url=False)[0]
    parts = [part for part in first["loc"] if part not in skipped]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return f"{path}{place}: {first['msg'].removeprefix('Value error, ')}"
