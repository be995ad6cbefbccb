"""An engine in memory for the worker's unit tests: it hands out claims and remembers what was settled."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from support.waiting import PATIENCE
from tasker_worker import HandlerRegistry
from tasker_worker.attempts import Attempt
from tasker_worker.claims import Answer, Claim, Outcome, OutcomeKind, Settlement
from tasker_worker.exchange import Exchange
from tasker_worker.execution import Executor
from tasker_worker.fetching import ResultFetcher
from tasker_worker.gateway import Locked, Offer, Renewal
from tasker_worker.metrics import WorkerMetrics
from tasker_worker.services import WorkerServices

_fences = itertools.count(1)


def make_claim(callable_name: str = "work", **columns: Any) -> Claim:
    """A claim as the engine hands it out; `columns` override."""
    fence = next(_fences)
    values: dict[str, Any] = {
        "kind": "claim",
        "step_id": fence * 1000,
        "fence": fence,
        "task_uuid": "11111111-1111-1111-1111-111111111111",
        "step_uuid": "22222222-2222-2222-2222-222222222222",
        "namespace": "default",
        "template_name": "template",
        "template_version": "1.0.0",
        "step_name": callable_name,
        "step_type": "standard",
        "callable": callable_name,
        "method": "call",
        "resolver": None,
        "attempt": 1,
        "max_attempts": 3,
        "timeout_ms": 300_000,
        "deadline": None,
        "correlation_id": "correlation",
        "ready_at": None,
        "configuration": "{}",
        "inputs": "{}",
        "context": "{}",
        "dependency_results": "{}",
    }
    return Claim(**{**values, **columns})


def told(outcome: Outcome | None) -> dict[str, Any]:
    """What an outcome tells the engine, its JSON read: the fields that its kind has."""
    assert outcome is not None
    fields = {**outcome._asdict(), "kind": str(outcome.kind)}
    for name in ("result", "metadata"):
        if fields[name] is not None:
            fields[name] = json.loads(fields[name])
    batches = fields.pop("batches")
    assert (batches is not None) is (outcome.kind is OutcomeKind.DIVIDE)
    has = {"kind"} | {name for name in ("metadata", "branches") if getattr(outcome, name) is not None}
    if outcome.succeeded:
        has.add("result")
    if outcome.kind is OutcomeKind.FAIL:
        has |= {"error_type", "message", "traceback", "retryable", "retry_after_ms"}
    assert all(getattr(outcome, name) is None for name in fields.keys() - has)
    return {name: value for name, value in fields.items() if name in has}


class MemoryEngine:
    """Plays the engine for an exchange. A call raises what was put into its faults, in order."""

    def __init__(self) -> None:
        self.queue: deque[Claim] = deque()
        self.settled: dict[int, Outcome] = {}
        self.lost: set[int] = set()  # fences that are not current
        self.claim_faults: deque[Exception] = deque()
        self.settle_faults: deque[Exception] = deque()
        self.late_settle_faults: deque[Exception] = deque()  # raised after the call took effect
        self.refused: dict[int, Exception] = {}  # by fence, for outcomes with a result
        self.results: dict[str, str] = {}  # JSON texts by step name, for claims that name them as left out
        self.read_faults: deque[Exception] = deque()
        self.reads: list[tuple[int, str]] = []  # fence, step name
        self.divided: list[int] = []  # fences of calls of create_batches
        self.checkpoint_faults: deque[Exception] = deque()
        self.checkpoints: list[tuple[int, str]] = []  # fence, JSON text
        self.batch_results: dict[str, list[tuple[int, str, str]]] = {}  # rows by node
        self.closed = 0
        self.locked: set[int] = set()  # fences of claims whose run somebody holds
        self.locked_after: set[int] = set()  # those whose run is held from the next late fault on
        self.lock_timeouts = 0  # calls that met such a run
        self.calls: list[tuple[str, int, int]] = []  # name, outcomes, claim limit
        self.concurrent = 0
        self.most_concurrent = 0
        self.gate = asyncio.Event()  # calls wait for it
        self.gate.set()
        self.called = asyncio.Event()  # set at every call

    def share(self, other: MemoryEngine) -> None:
        """Have the same data as another one, as two connections of one database do."""
        self.queue, self.settled, self.lost = other.queue, other.settled, other.lost
        self.refused, self.locked = other.refused, other.locked
        self.divided, self.checkpoints, self.batch_results = other.divided, other.checkpoints, other.batch_results

    async def claim(self, worker: str, limit: int) -> list[Claim]:
        await self._enter("claim", 0, limit, self.claim_faults)
        return self._take(limit)

    async def settle(self, worker: str, settlements: Sequence[Settlement], claim_limit: int) -> Answer:
        await self._enter("settle", len(settlements), claim_limit, self.settle_faults)
        if any(each.fence in self.locked for each in settlements):
            self.lock_timeouts += 1
            raise Locked("canceling statement due to lock timeout")
        for each in settlements:
            if each.fence in self.refused and each.outcome.succeeded:
                raise self.refused[each.fence]
        stale = set()
        for each in settlements:
            if each.fence in self.settled:
                continue  # recorded before
            if each.fence in self.lost:
                stale.add(each.fence)
            else:
                self.settled[each.fence] = each.outcome
        if self.late_settle_faults:
            self.locked |= self.locked_after
            raise self.late_settle_faults.popleft()
        return Answer(frozenset(stale), self._take(claim_limit), 0, 0)

    async def create_batches(self, worker: str, settlement: Settlement, claim_limit: int) -> Answer:
        self.divided.append(settlement.fence)
        return await self.settle(worker, [settlement], claim_limit)

    async def save_checkpoint(self, worker: str, step_id: int, fence: int, checkpoint: str) -> bool:
        await self._enter("checkpoint", 0, 0, self.checkpoint_faults)
        if fence in self.lost or fence in self.settled:
            return False
        self.checkpoints.append((fence, checkpoint))
        return True

    async def read_batch_results(
        self, worker: str, step_id: int, fence: int, node: str, after: int, limit: int
    ) -> list[tuple[int, str, str]]:
        await self._enter("page", 0, limit, self.read_faults)
        rows = self.batch_results.get(node, ())
        return [] if fence in self.lost else [row for row in rows if row[0] > after][:limit]

    async def read_result(self, worker: str, step_id: int, fence: int, name: str) -> str | None:
        self.reads.append((fence, name))
        await self._enter("read", 0, 0, self.read_faults)
        return None if fence in self.lost else self.results[name]

    async def close(self) -> None:
        self.closed += 1

    async def _enter(self, name: str, outcomes: int, limit: int, faults: deque[Exception]) -> None:
        self.calls.append((name, outcomes, limit))
        self.called.set()
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if faults:
                raise faults.popleft()
        finally:
            self.concurrent -= 1

    def _take(self, limit: int) -> list[Claim]:
        return [self.queue.popleft() for _ in range(min(limit, len(self.queue)))]

    def result_of(self, claim: Claim) -> Any:
        """The result that was recorded for a claim."""
        outcome = self.settled[claim.fence]
        assert outcome.succeeded, outcome
        return json.loads(outcome.result or "")

    def error_of(self, claim: Claim) -> Outcome:
        """The failure that was recorded for a claim."""
        outcome = self.settled[claim.fence]
        assert outcome.kind is OutcomeKind.FAIL, outcome
        return outcome


NOTHING_LOST = Renewal(
    known=True, draining=False, lost_fences=[], unknown_step_ids=[], unknown_fences=[], renewed_at=datetime.now(UTC)
)


class MemoryLeaseEngine:
    """Plays the engine for the lease thread and the sweep thread."""

    def __init__(self) -> None:
        self.faults: deque[Exception] = deque()
        self.renewals: list[list[tuple[int, int]]] = []
        self.claiming_since: list[datetime | None] = []  # as each renewal told it
        self.renewal = NOTHING_LOST
        self.during_renewal: Callable[[], None] = lambda: None  # called while a renewal is under way
        self.registered: list[Offer] = []
        self.settlements: list[Settlement] = []
        self.repairs: dict[str, int] = {}
        self.sweeps = 0
        self.closed = False

    def register(self, offer: Offer) -> None:
        self._fail()
        self.registered.append(offer)

    def renew(self, worker: str, claims: Sequence[tuple[int, int]], claiming_since: datetime | None) -> Renewal:
        self._fail()
        self.renewals.append(list(claims))
        self.claiming_since.append(claiming_since)
        self.during_renewal()
        return self.renewal

    def settle(self, worker: str, settlement: Settlement) -> None:
        self._fail()
        self.settlements.append(settlement)

    def sweep(self, limit: int) -> dict[str, int]:
        self._fail()
        self.sweeps += 1
        return self.repairs

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.popleft()


class Hints:
    """Remembers what others would be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def ready(self) -> None:
        self.told.append("ready")

    def finished(self) -> None:
        self.told.append("finished")


class Rig:
    """An exchange and an executor over a MemoryEngine, running until the block ends."""

    def __init__(
        self, registry: HandlerRegistry, *, slots: int = 10, poll_min: float = 0.001, poll_max: float = 0.01
    ) -> None:
        self.engine = MemoryEngine()
        # Another connection of the same engine's: one call on each may be under way.
        self.engine_for_locked = MemoryEngine()
        self.engine_for_locked.share(self.engine)
        self.engine_for_results = MemoryEngine()
        self.engine_for_results.share(self.engine)
        self.engine_for_handlers = MemoryEngine()
        self.engine_for_handlers.share(self.engine)
        self.metrics = WorkerMetrics()
        self.hints = Hints()
        self.exchange = Exchange(
            self.engine,
            self.engine_for_locked,
            worker="worker",
            slots=slots,
            poll_min=poll_min,
            poll_max=poll_max,
            metrics=self.metrics,
            hinter=self.hints,
        )
        self._settled = asyncio.Condition()
        self.services = WorkerServices(self.engine_for_handlers, worker="worker")
        self.executor = Executor(
            registry,
            slots=slots,
            metrics=self.metrics,
            fetcher=ResultFetcher(self.engine_for_results, worker="worker"),
            services=self.services,
            on_finished=self.exchange.finished,
            on_threads_back=self.exchange.hint,
        )
        self.exchange.attach(self.executor)
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Rig:
        self.task = asyncio.get_running_loop().create_task(self.exchange.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.engine.gate.set()
        for attempt in self.exchange.held.attempts():
            self.executor.release(attempt)
        self.exchange.stop(give_up_at=0)
        await asyncio.wait([self.task], timeout=10 * PATIENCE)
        await self.executor.close()
        self.services.close()
        if self.task.done():
            self.task.result()

    async def work_off(self, *claims: Claim, later_than: Sequence[Claim] = ()) -> None:
        """Queue claims, behind others, and wait until all of them are settled."""
        self.engine.queue.extend([*later_than, *claims])
        self.exchange.hint()
        await self.until(lambda: all(claim.fence in self.engine.settled for claim in claims))

    async def until(self, condition: Any) -> None:
        """Wait, a turn of the loop at a time, for something that this process is about to do."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the condition is any state, which tells nobody of its changes
                await asyncio.sleep(0.001)


class Collected:
    """Where an executor without an exchange reports to."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._more = asyncio.Event()

    def __call__(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self._more.set()

    async def wait(self, count: int) -> list[Attempt]:
        """The first `count` attempts, in the order in which they finished."""
        async with asyncio.timeout(10):
            while len(self.attempts) < count:
                self._more.clear()
                await self._more.wait()
        return self.attempts
