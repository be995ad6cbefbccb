"""The results of a batch's workers, page by page: for handlers on the event loop and for those in threads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

MAX_PAGE = 1000
"""Results that the engine gives at once."""

Row = tuple[int, str, str]
"""A worker's place in its run, its step's name, and its result as JSON text."""


class BatchResultSource(Protocol):
    """Where the pages come from: rows of places above `after`, in their order, at most `limit`; none at the end."""

    def read_batch_results(self, node: str, after: int, limit: int) -> list[Row]: ...
    async def read_batch_results_async(self, node: str, after: int, limit: int) -> list[Row]: ...


class BatchPages:
    """Pages of results by step name, in the order of the batches: ``for page in …`` or ``async for page in …``.

    Workers that have failed or were skipped have no result and are left out. A page is parsed when it is asked for and
    kept by nobody. Reading raises RetryableError when the attempt has lost its lease meanwhile, and ConfigurationError
    for a name that is no `batch_worker`'s before the step, and for a plain ``for`` on the event loop, which it would
    block.
    """

    def __init__(self, source: BatchResultSource, node: str, page_size: int) -> None:
        """Raises ValueError unless `page_size` is from 1 to 1,000."""
        if not 1 <= page_size <= MAX_PAGE:
            raise ValueError(f"a page has 1 to {MAX_PAGE} results, not {page_size}")
        self._source = source
        self._node = node
        self._page_size = page_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        after = 0
        while rows := self._source.read_batch_results(self._node, after, self._page_size):
            yield _page(rows)
            if len(rows) < self._page_size:
                return
            after = rows[-1][0]

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        after = 0
        while rows := await self._source.read_batch_results_async(self._node, after, self._page_size):
            yield _page(rows)
            if len(rows) < self._page_size:
                return
            after = rows[-1][0]


def _page(rows: list[Row]) -> dict[str, Any]:
    return {name: json.loads(result) for _, name, result in rows}
