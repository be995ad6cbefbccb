"""What a worker holds: its claims, and the call that may be bringing more. Shared by the loop and the lease thread.

The lease thread tells the engine at every renewal what the worker holds; what it does not tell is given back and runs
elsewhere. A claim whose answer is still on its way, perhaps because a handler blocks the loop that is to read it, must
be neither lost that way nor started after it was. One lock decides: either the loop comes first, and the claim is held;
or the lease thread comes first, and the claim is void, so that it is not started should it ever arrive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from .attempts import Attempt, AttemptState
from .claims import Claim
from .gateway import Renewal


class Holding(NamedTuple):
    """What a renewal tells the engine."""

    claims: list[tuple[int, int]]  # (step id, fence)
    #: No claim call that may still be answered began before this moment of the database's clock; None: not known.
    claiming_since: datetime | None


class _ClaimCall:
    __slots__ = ("began", "since", "void")

    def __init__(self, began: float, since: datetime | None) -> None:
        self.began = began  # monotonic seconds
        self.since = since  # the database's time of the last renewal before it
        self.void = False  # what it brings is not started any more


class HeldClaims:
    """The claims not settled yet. Every method may be called from any thread; times are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: dict[int, Attempt] = {}  # by fence
        self._call: _ClaimCall | None = None
        self._void: set[int] = set()  # fences that were given back while a call under way might bring them
        self._renewed_at: datetime | None = None
        #: When the leases run out unless renewed. Written by the lease thread alone.
        self.valid_until = float("inf")

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, fence: int) -> bool:
        return fence in self._attempts

    def __getitem__(self, fence: int) -> Attempt:
        return self._attempts[fence]

    def attempts(self) -> list[Attempt]:
        """Those held now."""
        with self._lock:
            return list(self._attempts.values())

    def drop(self, attempt: Attempt) -> None:
        """It is settled, or not this worker's."""
        with self._lock:
            self._attempts.pop(attempt.claim.fence, None)

    # calls that bring claims, one at a time

    def call_begins(self, now: float) -> None:
        with self._lock:
            self._call = _ClaimCall(now, self._renewed_at)

    def call_ends(self, claims: Iterable[Claim], now: float) -> tuple[list[Attempt], list[Attempt]]:
        """Hold what the call has brought: the attempts to run, and those that came too late and go back unrun."""
        attempts = [Attempt(claim, now) for claim in claims]
        with self._lock:
            all_void = self._call is None or self._call.void or now >= self.valid_until
            to_run, late = [], []
            for attempt in attempts:
                if all_void or attempt.claim.fence in self._void:
                    attempt.give_back()
                    late.append(attempt)
                else:
                    to_run.append(attempt)
            self._attempts.update((attempt.claim.fence, attempt) for attempt in attempts)
            self._end_call()
        # Not distinguished by their states: from here on the lease thread may move them, and each must be in one list.
        return to_run, late

    def call_fails(self) -> None:
        """It has brought nothing; what it may have taken is given back in time."""
        with self._lock:
            self._end_call()

    def _end_call(self) -> None:
        self._call = None
        self._void.clear()

    # renewals

    def to_renew(self, now: float, patience: float) -> Holding:
        """What to tell the engine. A call that has been under way for `patience` seconds is given up."""
        with self._lock:
            call = self._call
            if call is not None and now - call.began > patience:
                call.void = True
            since = self._renewed_at if call is None or call.void else call.since
            claims = [
                (attempt.claim.step_id, fence)
                for fence, attempt in self._attempts.items()
                if attempt.state is not AttemptState.LOST
            ]
            return Holding(claims, since)

    def renewed(self, renewal: Renewal, valid_until: float) -> tuple[list[Attempt], list[tuple[int, int]]]:
        """Take in the answer: the attempts that are lost, and the (step id, fence) of claims to give back."""
        with self._lock:
            self.valid_until = valid_until
            self._renewed_at = renewal.renewed_at
            if not renewal.known and self._call is not None:
                self._call.void = True
            lost = [self._attempts[fence] for fence in renewal.lost_fences if fence in self._attempts]
            unknown = [
                (step_id, fence)
                for step_id, fence in zip(renewal.unknown_step_ids, renewal.unknown_fences, strict=True)
                if fence not in self._attempts
            ]
            if self._call is not None:
                self._void.update(fence for _, fence in unknown)
        return [attempt for attempt in lost if attempt.lose()], unknown

    def expire(self) -> list[Attempt]:
        """The leases ran out by this worker's clock: the attempts that had not ended, which are asked to stop."""
        with self._lock:
            if self._call is not None:
                self._call.void = True
            attempts = list(self._attempts.values())
        return [attempt for attempt in attempts if attempt.expire()]
