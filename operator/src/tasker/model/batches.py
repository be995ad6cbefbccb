"""Batches: how a batchable step's work is divided among workers, and the checks of the two nodes that take part."""

from __future__ import annotations

from enum import StrEnum

NAME_LENGTH = 57
"""Of a batch_worker node: its workers are called ``{node}_001`` to ``{node}_10000``, within the 63 of every name."""
MAXIMUM = 10_000
"""Batches that one step makes at most; the database refuses more."""


class FailureStrategy(StrEnum):
    """What it means that a batch's worker has failed for good."""

    CONTINUE_ON_FAILURE = "continue_on_failure"
    """The others go on, and so does the run, with the results that there are."""
    ISOLATE = "isolate"
    """The same; the failed worker is put aside for a person to look at."""
    FAIL_FAST = "fail_fast"
    """The others are cancelled, and the run fails."""
