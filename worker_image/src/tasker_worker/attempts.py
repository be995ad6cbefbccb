"""An attempt: a claim that this worker holds, and the one state that it is in.

The event loop runs an attempt, a handler thread begins it, and the lease thread finds out that its lease is lost. All
of them move it by the methods below, which take the attempt's lock and make only the moves of `_MOVES`; whoever comes
too late gets False and leaves it alone. So a handler is never called for a claim that is known to be lost, and an
outcome is never thrown away while the engine's answer to it is under way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from enum import Enum
from typing import Protocol

from .batch_pages import Row
from .claims import RELEASE, Claim, Outcome, OutcomeKind
from .context import StepContext
from .errors import ConfigurationError
from .threads import Job


class AttemptState(Enum):
    WAITING = "waiting"  # its handler has not been called
    PREPARING = "preparing"  # its handler cannot be called yet: results are fetched, its condition is judged
    RUNNING = "running"  # its handler was called and has not ended
    EXPIRED = "expired"  # the leases ran out by the local clock before it ended: its handler is asked to stop
    FINISHED = "finished"  # it has an outcome, of which the engine knows nothing
    SENDING = "sending"  # its outcome is under way to the engine
    UNSURE = "unsure"  # its outcome was sent, with an effect that is not known, and is sent again
    SETTLED = "settled"  # the engine has answered
    LOST = "lost"  # the engine says that the lease is no longer this worker's


_State = AttemptState
_MOVES: dict[str, tuple[set[AttemptState], AttemptState]] = {
    "begin": ({_State.WAITING}, _State.RUNNING),
    "prepare": ({_State.WAITING}, _State.PREPARING),
    "prepared": ({_State.PREPARING}, _State.WAITING),
    "give_back": ({_State.WAITING, _State.PREPARING}, _State.FINISHED),
    "finish": ({_State.WAITING, _State.PREPARING, _State.RUNNING, _State.EXPIRED}, _State.FINISHED),
    "time_out": ({_State.RUNNING}, _State.UNSURE),
    "expire": ({_State.WAITING, _State.PREPARING, _State.RUNNING}, _State.EXPIRED),
    "lose": ({_State.WAITING, _State.PREPARING, _State.RUNNING, _State.EXPIRED, _State.FINISHED}, _State.LOST),
    "send": ({_State.FINISHED}, _State.SENDING),
    "not_sent": ({_State.SENDING}, _State.FINISHED),
    "doubt": ({_State.SENDING}, _State.UNSURE),
    "settle": ({_State.SENDING, _State.UNSURE}, _State.SETTLED),
}
"""Each move: the states that it may follow, and what it makes of them."""


class Services(Protocol):
    """What a worker does for handlers while they run; `WorkerServices` is it."""

    def save(self, attempt: Attempt, checkpoint: str) -> None: ...
    async def read(self, attempt: Attempt, node: str, after: int, limit: int) -> list[Row]: ...
    def read_from_thread(self, attempt: Attempt, node: str, after: int, limit: int) -> list[Row]: ...


class Attempt:
    """A claim that this worker holds, from the claim to its settling. Its moves may be made from any thread."""

    __slots__ = (
        "_lock",
        "began_at",
        "claim",
        "claimed_at",
        "context",
        "detail",
        "job",
        "outcome",
        "services",
        "state",
        "task",
        "timer",
    )

    def __init__(self, claim: Claim, claimed_at: float) -> None:
        self._lock = threading.Lock()
        self.claim = claim
        self.context = StepContext(claim, self)
        self.claimed_at = claimed_at  # or prepared; monotonic seconds, as is the next
        self.began_at: float | None = None  # None until its handler is called
        self.state = AttemptState.WAITING
        self.outcome: Outcome | None = None  # None while its handler runs, whatever became of the lease
        self.detail: object = None  # of the last heartbeat
        self.services: Services | None = None  # of the executor that runs it
        # Of the loop's thread alone: what there is to end when the attempt does.
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None

    @property
    def since(self) -> float:
        """When its handler was called, or else when it was claimed; monotonic seconds."""
        return self.claimed_at if self.began_at is None else self.began_at

    def prepare(self) -> bool:
        """Something has to come before its handler. False: the handler must not be called any more."""
        with self._lock:
            return self._move("prepare")

    def prepared(self) -> bool:
        """All that had to come before its handler is done; it waits for that from now. False: it must not be called."""
        with self._lock:
            self.claimed_at = time.monotonic()
            return self._move("prepared")

    def begin(self) -> bool:
        """Its handler is about to be called, and from here its time counts. False: it must not be called any more."""
        with self._lock:
            if not self._move("begin"):
                return False
            self.began_at = time.monotonic()
            self.context.begin()
            return True

    def give_back(self) -> bool:
        """It goes back unrun. False when its handler was called, or when another end came first."""
        with self._lock:
            return self._move("give_back", RELEASE)

    def finish(self, outcome: Outcome) -> bool:
        """It has come to this end. False when another end came first; a lost attempt keeps it for the log."""
        with self._lock:
            if self.state is AttemptState.LOST and self.outcome is None:
                self.outcome = outcome
            if self.state is AttemptState.EXPIRED and outcome.kind is OutcomeKind.FAIL:
                # It was asked to stop, which is no failure of the step. If the lease is current, it is released.
                outcome = RELEASE
            return self._move("finish", outcome)

    def time_out(self, outcome: Outcome) -> bool:
        """Its handler blocks the loop past its time, and `outcome` is sent by somebody else than the loop."""
        with self._lock:
            if not self._move("time_out", outcome):
                return False
            self.context.cancelled = True
            return True

    def replace(self, outcome: Outcome) -> None:
        """The database will not store its outcome; this one is sent in its place."""
        with self._lock:
            self.outcome = outcome

    def expire(self) -> bool:
        """The leases ran out by the local clock. False when it had ended or lost its lease before."""
        return self._stop("expire")

    def lose(self) -> bool:
        """The engine says that the lease is not this worker's. False when that changes nothing any more.

        While its outcome is under way, the engine's answer to that tells more than this.
        """
        return self._stop("lose")

    def send(self) -> bool:
        """Its outcome is about to be sent, for the first time or again. False: its lease is lost."""
        with self._lock:
            return self.state is AttemptState.UNSURE or self._move("send")

    def not_sent(self) -> None:
        """The call had no effect."""
        with self._lock:
            self._move("not_sent")

    def doubt(self) -> None:
        """Nobody heard what became of the call."""
        with self._lock:
            self._move("doubt")

    def settle(self) -> bool:
        """The engine has answered. True when an earlier call may have had an effect already."""
        with self._lock:
            doubted = self.state is AttemptState.UNSURE
            self._move("settle")
            return doubted

    def _stop(self, move: str) -> bool:
        with self._lock:
            if not self._move(move):
                return False
            self.context.cancelled = True
            return True

    def _move(self, move: str, outcome: Outcome | None = None) -> bool:
        """The caller holds the lock."""
        sources, target = _MOVES[move]
        if self.state not in sources:
            return False
        self.state = target
        if outcome is not None:
            self.outcome = outcome
        return True

    # what its handler asks for, from any thread

    def heartbeat(self, detail: object) -> None:
        self.detail = detail

    def save_checkpoint(self, checkpoint: str) -> None:
        self._services().save(self, checkpoint)

    def read_batch_results(self, node: str, after: int, limit: int) -> list[Row]:
        return self._services().read_from_thread(self, node, after, limit)

    async def read_batch_results_async(self, node: str, after: int, limit: int) -> list[Row]:
        return await self._services().read(self, node, after, limit)

    def _services(self) -> Services:
        if self.services is None:
            raise ConfigurationError(f"no worker runs this attempt of step {self.claim.step_name!r}")
        return self.services


def log_fields(attempt: Attempt) -> dict[str, object]:
    """What a log line tells about an attempt."""
    claim = attempt.claim
    return {
        "task_uuid": claim.task_uuid,
        "step_uuid": claim.step_uuid,
        "step": claim.step_name,
        "attempt": claim.attempt,
        "fence": claim.fence,
        "correlation_id": claim.correlation_id,
    }
