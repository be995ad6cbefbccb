"""Bounds and periods that documentation, alerts and people's expectations rest on: changed on purpose or not at all."""

from __future__ import annotations

import pytest

from tasker.controller import app
from tasker.controller.kube import cache, client, conditions
from tasker.controller.pools import manifests, scaler
from tasker.controller.pools.state import rounded_age
from tasker.controller.runtime import keyed_queue, loops, repeat, supervision, termination, work_queue
from tasker.controller.tasks import status, summaries
from tasker.controller.templates import reconcile as templates


def test_how_long_a_request_may_take_and_how_much_it_brings() -> None:
    assert client.REQUEST_TIMEOUT_SECONDS == 30
    assert client.RETRY_AFTER_LIMIT_SECONDS == 300
    assert client.LIST_CHUNK == 500
    assert client.LIST_ATTEMPTS == 3


def test_how_long_a_part_may_take_before_the_process_ends() -> None:
    assert work_queue.RECONCILE_SECONDS == 300
    assert work_queue.STALL_SECONDS == 30
    assert repeat.ROUND_SECONDS == 120
    assert app.RESYNC_ROUND_SECONDS == 900
    assert supervision.CHECK_SECONDS == 1
    assert supervision.MOST_COUNTED_SECONDS == 2
    assert app.SILENT_DATABASE_SECONDS == 15
    assert termination.END_SECONDS == 20
    assert termination.MESSAGE_BYTES == 4096


def test_how_often_things_are_read() -> None:
    assert repeat.HINT_PAUSE_SECONDS == 0.1
    assert summaries.GATHER_SECONDS == 0.005
    assert templates.COUNTS_SECONDS == 10
    assert loops.UNOFFERED_SECONDS == 5


def test_how_much_is_kept_and_shown() -> None:
    assert cache.DELETIONS_REMEMBERED == 10_000
    assert keyed_queue.STALE_ENTRIES == 64
    assert conditions.MESSAGE_LIMIT == 1024
    assert (status.FAILURES_LIMIT, status.FAILURE_MESSAGE_LIMIT) == (20, 1024)
    assert (status.WAITING_FOR_LIMIT, status.CONDITION_MESSAGE_LIMIT) == (256, 256)


def test_what_kubernetes_goes_by_when_workers_start_and_go() -> None:
    assert manifests.START_SECONDS == 300
    assert scaler.DRAINED_COST == "-1000"


@pytest.mark.parametrize(
    "step", [0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400]
)
def test_ages_are_shown_in_steps(step: int) -> None:
    assert rounded_age(step) == rounded_age(step + 0.9) == step
    assert step == 0 or rounded_age(step - 0.1) < step


def test_an_age_before_its_time_is_none() -> None:
    """The database's clock may be ahead of the one that asked."""
    assert rounded_age(-0.5) == 0
