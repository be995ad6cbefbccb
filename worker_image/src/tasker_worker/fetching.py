"""Results of earlier steps that did not fit a claim: fetched one by one before the handler is called.

A claim call carries results up to a budget and names the rest. They are fetched over a connection of their own, which
is open only while there is something to fetch, so that neither the conversation nor other claims wait for large ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from .attempts import Attempt, AttemptState, log_fields
from .gateway import Unavailable
from .jitter import spread
from .logging import with_fields

logger = logging.getLogger("tasker_worker.fetching")

_RETRY_SECONDS = (0.05, 2.0)  # first and longest wait before a call is repeated
_PATIENCE_SECONDS = 30.0  # of failing calls for one result, until the step is left to another worker


class ResultEngine(Protocol):
    """The engine's function that this needs; `Gateway` has it. One call at a time."""

    async def read_result(self, worker: str, step_id: int, fence: int, name: str) -> str | None: ...
    async def close(self) -> None: ...


class ResultFetcher:
    """Completes the contexts of attempts. Belongs to the loop's thread."""

    def __init__(self, engine: ResultEngine, *, worker: str) -> None:
        self._engine = engine
        self._worker = worker
        self._turn = asyncio.Lock()
        self._fetching = 0  # attempts under way here

    async def fetch(self, attempt: Attempt) -> bool:
        """Give an attempt's context what its claim left out. False: it is not to be run, for its lease is lost or the
        database could not be asked.

        Raises Refused when the database understands the question and will not answer it.
        """
        self._fetching += 1
        try:
            texts = {}
            for name in attempt.claim.results_left or ():
                text = await self._read(attempt, name)
                if text is None:
                    return False
                texts[name] = text
        finally:
            self._fetching -= 1
            if not self._fetching:
                await self._engine.close()
        attempt.context.add_results(texts)
        return True

    async def _read(self, attempt: Attempt, name: str) -> str | None:
        claim = attempt.claim
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        delay = _RETRY_SECONDS[0]
        while attempt.state is AttemptState.PREPARING:
            try:
                async with self._turn:
                    return await self._engine.read_result(self._worker, claim.step_id, claim.fence, name)
            except Unavailable as error:
                if time.monotonic() >= give_up_at:
                    logger.error(
                        "a result that a step needs could not be fetched; the step is given back",
                        extra=with_fields(**log_fields(attempt), result_of=name, reason=str(error)),
                    )
                    return None
                logger.warning(
                    "a result that a step needs could not be fetched; trying again",
                    extra=with_fields(**log_fields(attempt), result_of=name, reason=str(error), seconds=delay),
                )
            await asyncio.sleep(spread(delay))
            delay = min(delay * 2, _RETRY_SECONDS[1])
        return None
