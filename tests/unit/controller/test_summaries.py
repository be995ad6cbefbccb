"""Runs are read together when they are asked for together, and each who asked gets an answer read after they asked."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import pytest

from support.controller_fakes import make_run
from support.virtual_time import run_in_virtual_time, settle
from tasker.controller.tasks.summaries import GATHER_SECONDS, SummaryReader
from tasker.errors import StoreUnavailable
from tasker.model.task import TaskSummary


class Rows:
    """The runs of a database that has only `a` and `b`; `fault` is raised instead."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fault: Exception | None = None
        self.reader = SummaryReader(self.read)

    async def read(self, uids: Sequence[str]) -> list[TaskSummary]:
        self.asked.append(list(uids))
        await asyncio.sleep(1)
        if self.fault is not None:
            raise self.fault
        return [make_run(origin_uid=uid) for uid in uids if uid in "ab"]


def test_what_is_asked_for_together_is_one_query() -> None:
    async def main() -> None:
        rows = Rows()
        found = await asyncio.gather(*(rows.reader.load(uid) for uid in ("a", "b", "a", "c")))
        assert [run and run.origin_uid for run in found] == ["a", "b", "a", None]
        assert rows.asked == [["a", "b", "c"]]

    run_in_virtual_time(main)


def test_who_asks_a_moment_later_is_in_the_same_query() -> None:
    async def main() -> None:
        rows = Rows()
        first = asyncio.create_task(rows.reader.load("a"))
        await asyncio.sleep(GATHER_SECONDS / 2)
        assert await rows.reader.load("b") is not None
        assert first.done()
        assert rows.asked == [["a", "b"]]

    run_in_virtual_time(main)


def test_who_asks_while_a_query_is_under_way_gets_the_next_one() -> None:
    async def main() -> None:
        rows = Rows()
        first = asyncio.create_task(rows.reader.load("a"))
        await asyncio.sleep(2 * GATHER_SECONDS)
        assert rows.asked == [["a"]]
        assert await rows.reader.load("a") is not None
        assert first.done()
        assert rows.asked == [["a"], ["a"]]

    run_in_virtual_time(main)


def test_a_query_that_fails_fails_for_all_and_the_next_one_works() -> None:
    async def main() -> None:
        rows = Rows()
        rows.fault = StoreUnavailable("gone")
        results = await asyncio.gather(rows.reader.load("a"), rows.reader.load("b"), return_exceptions=True)
        assert [str(result) for result in results] == ["gone", "gone"]
        rows.fault = None
        assert await rows.reader.load("a") is not None

    run_in_virtual_time(main)


def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async def main() -> None:
        rows = Rows()
        impatient, patient = (asyncio.create_task(rows.reader.load("a")) for _ in range(2))
        await settle()
        impatient.cancel()
        assert (await patient) is not None
        with pytest.raises(asyncio.CancelledError):
            await impatient

    run_in_virtual_time(main)


def test_a_failure_that_nobody_is_left_to_take_is_no_complaint_of_the_event_loop() -> None:
    complaints: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        rows = Rows()
        rows.fault = StoreUnavailable("gone")
        alone = asyncio.create_task(rows.reader.load("a"))
        await settle()
        alone.cancel()
        await asyncio.sleep(2)
        del rows, alone
        gc.collect()  # what nobody took complains when it goes

    run_in_virtual_time(main)
    assert complaints == []
