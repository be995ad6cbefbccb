"""Adding up what the workers of a batch returned, in memory that does not grow with their number.

A worker's result counts by `items_processed`, `items_succeeded`, `items_failed` and `items_skipped`, each 0 when it is
absent or null, and by its list of `errors`. Of those the first are kept and all are counted; where a worker kept only
some of its own, its `error_count` says how many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .errors import ValidationError
from .jsontext import NotJson, encode

MAX_ERRORS = 100
ERROR_BYTES = 256 * 1024
"""Of JSON for the errors that are kept: a quarter of what a result may have, for they are never all of it."""

_Count = Annotated[int, Field(ge=0)]


def is_whole_number(value: object, least: int, most: int | None = None) -> bool:
    """Whether a value is an integer in a range; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return least <= value and (most is None or value <= most)


class BatchAggregationResult(BaseModel):
    """What all workers of a batch did together; a step may return it as its result."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    total_processed: _Count
    total_succeeded: _Count
    total_failed: _Count
    total_skipped: _Count
    batch_count: _Count
    """Workers that ran; placeholders and workers without a result did not."""
    success_rate: Annotated[float, Field(ge=0.0, le=1.0)]
    """Succeeded of processed; 0.0 when nothing was processed."""
    errors: Annotated[list[Any], Field(max_length=MAX_ERRORS)]
    error_count: _Count
    """All errors, those that `errors` has no room for too."""


class BoundedErrors:
    """The first of many errors, and how many there are; `kept` never has more than may be stored."""

    def __init__(self, limit: int = MAX_ERRORS) -> None:
        if not is_whole_number(limit, 0, MAX_ERRORS):
            raise ValueError(f"the errors to keep are a number from 0 to {MAX_ERRORS}, not {limit!r}")
        self.kept: list[Any] = []
        self.count = 0
        self._room = limit
        self._bytes_left = ERROR_BYTES

    def extend(self, errors: Iterable[Any], missing: int = 0) -> None:
        """Count `errors`, and `missing` that are known of by number alone; keep what there is room for."""
        for error in errors:
            self.count += 1
            if self._room:
                self._keep(error)
        self.count += missing

    def _keep(self, error: Any) -> None:
        try:
            size = len(encode(error).encode())
        except NotJson:  # whoever stores the result says where the fault is
            size = 0
        if size > self._bytes_left:
            self._room = 0
            return
        self._room -= 1
        self._bytes_left -= size
        self.kept.append(error)


class BatchAggregation:
    """Adds up results as they come, page by page, and keeps none of them.

    aggregation = BatchAggregation()
    for page in pages:
        aggregation.add_page(page)
    return aggregation.result()
    """

    def __init__(self, max_errors: int = MAX_ERRORS) -> None:
        """Raises ValueError unless `max_errors` is from 0 to 100."""
        self.worker_count = 0
        """Results seen, the absent ones among them."""
        self._batch_count = 0
        self._totals = dict.fromkeys(("items_processed", "items_succeeded", "items_failed", "items_skipped"), 0)
        self._errors = BoundedErrors(max_errors)

    def add(self, result: Any) -> None:
        """Count one worker's result; None, an empty object and that of a placeholder count as no worker that ran.

        Raises ValidationError, naming the result by its number from 0, for a count that is none; nothing of that
        result is counted then.
        """
        place = f"results[{self.worker_count}]"
        if isinstance(result, Mapping) and result and result.get("no_op") is not True:
            counts = {name: _count(result, name, place) for name in self._totals}
            errors = result.get("errors")
            errors = errors if isinstance(errors, list | tuple) else ()
            self._errors.extend(errors, max(0, _count(result, "error_count", place) - len(errors)))
            for name, count in counts.items():
                self._totals[name] += count
            self._batch_count += 1
        elif result is not None and not isinstance(result, Mapping):
            self._batch_count += 1  # a worker may return any JSON value, and has run all the same
        self.worker_count += 1

    def add_page(self, results: Iterable[Any]) -> None:
        """Count many, one after the other."""
        for result in results:
            self.add(result)

    def result(self) -> BatchAggregationResult:
        """The sum of what was counted so far."""
        processed, succeeded = self._totals["items_processed"], self._totals["items_succeeded"]
        return BatchAggregationResult(
            total_processed=processed,
            total_succeeded=succeeded,
            total_failed=self._totals["items_failed"],
            total_skipped=self._totals["items_skipped"],
            batch_count=self._batch_count,
            success_rate=min(1.0, succeeded / processed) if processed else 0.0,
            errors=list(self._errors.kept),
            error_count=self._errors.count,
        )


def _count(result: Mapping[str, Any], name: str, place: str) -> int:
    value = result.get(name)
    if value is None:
        return 0
    if not is_whole_number(value, 0):
        raise ValidationError(f"{place}.{name} is {value!r}, not a whole number from 0")
    return int(value)


def aggregate_batch_results(results: Iterable[Any], max_errors: int = MAX_ERRORS) -> BatchAggregationResult:
    """The sum of the workers' results: totals, success rate, and at most `max_errors` (0 to 100) of their errors.

    `results` are as a step is given them by `get_dependency_result`; absent (None) and empty ones are skipped.
    Raises ValueError for another `max_errors`, ValidationError for a count that is none.
    """
    aggregation = BatchAggregation(max_errors)
    aggregation.add_page(results)
    return aggregation.result()
