"""What ``make mutants`` knows of the functions that a test calls, in a database that tests share too."""

from __future__ import annotations

import psycopg
import pytest

from mutants.called import CalledFunctions


def call(url: str, *functions: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            connection.execute("set track_functions = 'all'")
        except psycopg.errors.InsufficientPrivilege:
            pytest.skip("the given server's role may not have calls counted; a superuser, or `grant set on parameter`")
        for each in functions:
            connection.execute(f"select tasker.{each}".encode())


def test_a_call_counts_for_the_test_that_made_it(database_url: str) -> None:
    called = CalledFunctions()
    called.watch(database_url)
    assert called.look() == set()
    call(database_url, "now()", "cancel_task(1, 'a', 'b')")
    assert called.look() == {"now", "actor_id", "cancel_task"}
    assert called.look() == set()
    call(database_url, "now()")
    assert called.forget(database_url) == {"now"}
    call(database_url, "now()")
    assert called.look() == set()


def test_a_database_that_is_gone_is_passed_over(database_url: str) -> None:
    called = CalledFunctions()
    called.watch(database_url.replace("test_", "gone_"))
    called.watch(database_url)
    call(database_url, "now()")
    assert called.look() == {"now"}
