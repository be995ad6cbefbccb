"""What a worker asks of its connections, and what it makes of the database's errors."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from tasker_worker.claims import RELEASE, SKIP, Outcome, OutcomeKind, Settlement
from tasker_worker.gateway import (
    Locked,
    Refused,
    SchemaMissing,
    Unavailable,
    _needs_a_new_session,
    _settle_arguments,
    _translated,
    connection_settings,
)
from tasker_worker.hints import HintReceiver, HintSender
from tasker_worker.metrics import WorkerMetrics
from tasker_worker.queries import QUERIES

URL = "host=db.example dbname=tasker"


@pytest.mark.parametrize(("lease_seconds", "idle", "timeout"), [(30.0, 10, 15_000), (60.0, 20, 30_000), (0.5, 1, 250)])
def test_a_connection_has_a_name_and_notices_a_dead_network(lease_seconds: float, idle: int, timeout: int) -> None:
    assert connection_settings(URL, "leases", lease_seconds) == {
        "host": "db.example",
        "dbname": "tasker",
        "application_name": "tasker-worker leases",
        "connect_timeout": 5,
        "keepalives_idle": idle,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": timeout,
    }


def test_what_the_url_says_goes_before() -> None:
    settings = connection_settings(f"{URL} connect_timeout=9 application_name=mine", "leases", 30)
    assert (settings["connect_timeout"], settings["application_name"]) == ("9", "mine")


class _Engine(psycopg.DatabaseError):
    sqlstate = "TK001"


@pytest.mark.parametrize(
    ("error", "translated", "new_session"),
    [
        (errors.UndefinedFunction("f"), SchemaMissing, True),
        (errors.InvalidSchemaName("f"), SchemaMissing, True),
        (errors.UndefinedTable("f"), SchemaMissing, True),
        (errors.LockNotAvailable("f"), Locked, False),
        (errors.DeadlockDetected("f"), Locked, False),
        (errors.UntranslatableCharacter("f"), Refused, False),
        (errors.NotNullViolation("f"), Refused, False),
        (errors.ProgramLimitExceeded("f"), Refused, False),
        (errors.RaiseException("f"), Refused, False),
        (_Engine("f"), Refused, False),
        (errors.AdminShutdown("f"), Unavailable, True),
        (errors.ReadOnlySqlTransaction("f"), Unavailable, True),
        (errors.InsufficientPrivilege("f"), Unavailable, True),
        (psycopg.OperationalError("f"), Unavailable, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_database_is_told_by_what_may_help(
    error: psycopg.Error, translated: type[Exception], new_session: bool
) -> None:
    made = _translated(error)
    assert type(made) is translated
    assert _needs_a_new_session(made) is new_session
    if translated is SchemaMissing:
        assert str(made) == (
            "The database has no engine schema that this worker understands; it comes with the server's migration. (f)"
        )
    else:
        assert str(made) == "f"


def test_an_error_without_a_text_is_told_by_its_name() -> None:
    assert str(_translated(psycopg.OperationalError(" \n"))) == "OperationalError"


def test_every_statement_has_its_name_and_neither_comment_nor_empty_line() -> None:
    assert list(QUERIES) == [
        "contract",
        "register_worker",
        "expire_predecessor",
        "unhandled_callables",
        "claim_steps",
        "settle_steps",
        "create_batches",
        "read_results",
        "read_batch_results",
        "save_checkpoint",
        "deregister_worker",
        "renew_worker",
        "sweep",
        "listen_ready",
        "notify",
    ]
    assert QUERIES["sweep"] == b"select repair, repaired from tasker.sweep(%s::int)"
    assert not any(b"--" in query or b"\n\n" in query for query in QUERIES.values())


def test_a_call_of_successes_alone_sends_nothing_for_what_only_others_need() -> None:
    settlements = [Settlement(1, 11, Outcome(OutcomeKind.COMPLETE, "1")), Settlement(2, 12, RELEASE)]
    assert _settle_arguments("shop", "w-1", settlements, 5) == (
        "shop",
        "w-1",
        "{1,2}",
        "{11,12}",
        "{complete,release}",
        ["1", None],
        *[None] * 7,
        5,
    )


def test_every_field_of_an_outcome_has_its_place_in_a_call() -> None:
    settlements = [
        Settlement(1, 11, Outcome(OutcomeKind.DECIDE, "{}", '{"a":1}', "left,right")),
        Settlement(2, 12, Outcome(OutcomeKind.FAIL, None, None, None, "HandlerError", "no", "at x", False, 1500)),
        Settlement(3, 13, Outcome(OutcomeKind.FAIL, error_type="E", message="m", retryable=True)),
        Settlement(4, 14, SKIP),
    ]
    assert _settle_arguments("shop", "w-1", settlements, 0)[4:] == (
        "{decide,fail,fail,skip}",
        ["{}", None, None, None],
        ['{"a":1}', None, None, None],
        ["left,right", None, None, None],
        [None, "HandlerError", "E", None],
        [None, "no", "m", None],
        [None, "at x", None, None],
        "{NULL,f,t,NULL}",
        "{NULL,1500,NULL,NULL}",
        0,
    )


def test_a_decision_for_no_branch_says_so_in_its_call() -> None:
    """An empty text: null would be no decision."""
    settlements = [Settlement(1, 11, Outcome(OutcomeKind.DECIDE, "{}", None, ""))]
    assert _settle_arguments("shop", "w-1", settlements, 0)[7] == [""]


async def test_the_connections_for_hints_have_their_names_and_bounds_too() -> None:
    sender = HintSender(URL, lease_seconds=60, metrics=WorkerMetrics())
    assert sender._gateway._settings == connection_settings(URL, "hints", 60)
    receiver = HintReceiver(URL, lease_seconds=60, metrics=WorkerMetrics(), on_ready=lambda: None)
    assert receiver._settings == connection_settings(URL, "listen", 60)
