"""How the store speaks to Postgres: its errors become ours, a lost race is run again, and all SQL has a name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import LiteralString

import pytest

from support.engine import Lab, connect, step
from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.errors import IllegalTransition, StoreError, StoreUnavailable
from tasker.factory import open_engine
from tasker.settings import DatabaseSettings

# Fails with the given code until it was called as often as asked, counting in a sequence, which no rollback takes back.
FLAKY: LiteralString = """
create sequence flaky_calls;
create function flaky(code text, failures integer) returns bigint language plpgsql as $$
begin
    if nextval('flaky_calls') <= failures then
        raise exception 'not this time' using errcode = code;
    end if;
    return currval('flaky_calls');
end $$
"""


async def test_a_database_that_cannot_be_reached_is_said_to_be_unavailable(tmp_path: Path) -> None:
    settings = DatabaseSettings(url=f"postgresql://me:secret@/nothing?host={tmp_path}", connect_timeout_seconds=0.5)
    with pytest.raises(StoreUnavailable) as caught:
        async with open_engine(settings):
            pass
    assert str(caught.value).startswith("the database cannot be reached: ")
    assert "secret" not in repr(settings) + str(caught.value)
    with pytest.raises(StoreUnavailable):
        await Database(settings).open()


@pytest.mark.parametrize("code", ["40P01", "40001", "55P03"])
async def test_a_statement_that_lost_to_another_is_run_again(database_url: str, code: LiteralString) -> None:
    """A deadlock, a serialisation failure, a lock that was not had in time."""
    async with await connect(database_url) as connection:
        await connection.execute(FLAKY)
    database = Database(DatabaseSettings(url=database_url))
    await database.open()
    try:
        assert await database.fetch_value("select flaky(%(code)s, 3)", {"code": code}) == 4
        with pytest.raises(StoreError, match="not this time"):
            await database.fetch_value("select flaky(%(code)s, 100)", {"code": code})
        assert await database.fetch_value("select last_value from flaky_calls") == 9
    finally:
        await database.close()


async def test_a_move_that_the_database_refuses_is_an_error_of_its_own(lab: Lab) -> None:
    await lab.run(step("a"))
    database = Database(DatabaseSettings(url=lab.url))
    await database.open()
    try:
        with pytest.raises(IllegalTransition) as caught:
            await database.fetch("update tasker.steps set state = 'pending' returning 1")
        assert str(caught.value) == "a step cannot go from enqueued to pending"
    finally:
        await database.close()


def test_every_query_has_a_name_and_a_sentence_about_it() -> None:
    folder = files("tasker.engine") / "sql" / "queries"
    families = [file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql")]
    assert families
    for family in families:
        for name, query in load_queries(family).items():
            first, second, *_ = query.splitlines()
            assert first.startswith("-- "), f"{family}.{name}"
            assert second.strip(), f"{family}.{name}"
