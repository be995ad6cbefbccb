"""The worker's side of the database: one class a connection, each call one of the engine's functions.

The exchange uses `Gateway` from the event loop, the lease keeper and the sweeper `SyncGateway` from their threads.
Foreign errors are translated here: `Unavailable` when repeating the call may help (it may have taken effect, unless it
is `Locked`), `Refused` when the database has understood and says no.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.types.string import TextLoader

from .claims import Answer, Claim, Settlement
from .errors import ConfigurationError, DatabaseError
from .queries import QUERIES

logger = logging.getLogger("tasker_worker.database")

_CONNECT_SECONDS = 5
CONTRACT = 2
"""What this worker relies on, by the number that `tasker.contract` tells of the functions in a database."""

_ENGINE_ERRORS = "TK"  # SQLSTATEs that the engine's functions raise


class Unavailable(DatabaseError):
    """The database cannot be asked now; asking again may work."""


class Locked(Unavailable):
    """Another session holds a row that the call needs; it had no effect, and may work later."""


class Refused(DatabaseError):
    """The database refuses the call as it is."""


class SchemaMissing(Unavailable):
    """The database has no engine schema that this worker understands; it comes with the server's migration."""


class Offer(NamedTuple):
    """What a worker tells the database about itself."""

    namespace: str
    worker: str
    pool: str
    slots: int
    version: str
    callables: Sequence[str]
    lease_seconds: float
    template_hash: str = ""


class Renewal(NamedTuple):
    """The answer of `tasker.renew_worker`."""

    known: bool
    draining: bool
    lost_fences: list[int]  # of the claims that were named
    unknown_step_ids: list[int]  # of claims that were not named and should have been; parallel to the next
    unknown_fences: list[int]
    renewed_at: datetime  # by the database's clock


def connection_settings(url: str, role: str, lease_seconds: float) -> dict[str, Any]:
    """libpq settings for a connection: what the URL says, and bounds on how long a dead network goes unnoticed."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        # Without the driver's text: it repeats the URL, password and all.
        raise ConfigurationError("DATABASE_URL is not a Postgres connection URL") from None
    bounded: dict[str, Any] = {
        "application_name": f"tasker-worker {role}",
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": max(1, int(lease_seconds / 3)),
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": int(lease_seconds * 1000 / 2),
    }
    return bounded | {key: value for key, value in given.items() if value is not None}


def _use_text(connection: psycopg.AsyncConnection[Any]) -> None:
    # JSON stays text until a handler reads it, identifiers are text to everybody.
    connection.adapters.register_loader("json", TextLoader)
    connection.adapters.register_loader("uuid", TextLoader)


def _array(numbers: Sequence[int | None]) -> str:
    return "{" + ",".join(["NULL" if number is None else str(number) for number in numbers]) + "}"


def _truths(values: Sequence[bool | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else "t" if value else "f" for value in values]) + "}"


_Item = TypeVar("_Item")
_Written = TypeVar("_Written")


def _if_any(items: Sequence[_Item | None], write: Callable[[Sequence[_Item | None]], _Written]) -> _Written | None:
    """An array of the call, or None when nothing is in it: then it costs neither side anything."""
    return None if items.count(None) == len(items) else write(items)


def _settle_arguments(
    namespace: str, worker: str, settlements: Sequence[Settlement], claim_limit: int
) -> tuple[Any, ...]:
    """What `settle_steps` takes, in its order."""
    columns = zip(*[each.outcome for each in settlements], strict=True)
    kinds, results, metadata, branches, error_types, messages, tracebacks, retryable, retry_after_ms, _ = columns
    return (
        namespace,
        worker,
        _array([each.step_id for each in settlements]),
        _array([each.fence for each in settlements]),
        "{" + ",".join(kinds) + "}",
        _if_any(results, list),
        _if_any(metadata, list),
        _if_any(branches, list),
        _if_any(error_types, list),
        _if_any(messages, list),
        _if_any(tracebacks, list),
        _if_any(retryable, _truths),
        _if_any(retry_after_ms, _array),
        claim_limit,
    )


def _answer(rows: list[tuple[Any, ...]]) -> Answer:
    """What `settle_steps` and `create_batches` have answered."""
    *told, summary = rows
    stale = set()
    claims = []
    for row in map(Claim._make, told):
        match row.kind:
            case "stale":
                stale.add(row.fence)
            case "claim":
                claims.append(row)
    *_, ready_left, tasks_finished = summary  # which is always there, and the last
    return Answer(frozenset(stale), claims, ready_left, tasks_finished)


def _translated(error: psycopg.Error) -> DatabaseError:
    text = str(error).strip() or type(error).__name__
    match error:
        case psycopg.errors.UndefinedFunction() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedTable():
            return SchemaMissing(f"{SchemaMissing.__doc__} ({text})")
        case psycopg.errors.LockNotAvailable() | psycopg.errors.DeadlockDetected():
            return Locked(text)
        case (
            psycopg.errors.DataError()
            | psycopg.errors.IntegrityError()
            | psycopg.errors.ProgramLimitExceeded()
            | psycopg.errors.RaiseException()
        ):
            return Refused(text)
        case _ if (error.sqlstate or "").startswith(_ENGINE_ERRORS):
            return Refused(text)
        case _:
            # Trouble of the connection or the server, or a missing right: nothing that other arguments would mend.
            return Unavailable(text)


def _needs_a_new_session(error: DatabaseError) -> bool:
    return isinstance(error, Unavailable) and not isinstance(error, Locked)


_PREPARED_ELSEWHERE = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)


class Gateway:
    """The engine's functions for the workers of a namespace, over one connection of the event loop, which is opened
    again when it broke.

    One call at a time; the caller sees to that.
    """

    def __init__(self, url: str, *, namespace: str, lease_seconds: float, role: str = "exchange") -> None:
        self._settings = connection_settings(url, role, lease_seconds)
        self._namespace = namespace
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._prepare = True

    async def connect(self) -> None:
        if self._connection is None:
            try:
                self._connection = await psycopg.AsyncConnection.connect(**self._settings, autocommit=True)
            except psycopg.Error as error:
                raise _translated(error) from error
            _use_text(self._connection)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def require_contract(self) -> None:
        """Raises SchemaMissing when the database's functions are not those that this worker can work with."""
        [(oldest, current)] = await self._rows("contract", ())
        if not oldest <= CONTRACT <= current:
            raise SchemaMissing(
                f"its functions serve the contracts {oldest} to {current}; this worker needs {CONTRACT}"
            )

    async def register(self, offer: Offer) -> None:
        await self._rows("register_worker", (*offer[:5], list(offer.callables), *offer[6:]))

    async def expire_predecessor(self, worker: str) -> int:
        """For a process that begins: how many steps an earlier one of this name had left. They go elsewhere at once."""
        [(steps,)] = await self._rows("expire_predecessor", (self._namespace, worker))
        return int(steps)

    async def unhandled_callables(self, worker: str) -> list[str]:
        """What the current templates of the worker's namespace need and the worker does not offer."""
        return [str(callable_) for (callable_,) in await self._rows("unhandled_callables", (self._namespace, worker))]

    async def deregister(self, worker: str) -> int:
        """Number of steps that were given back."""
        [(steps,)] = await self._rows("deregister_worker", (self._namespace, worker))
        return int(steps)

    async def claim(self, worker: str, limit: int) -> list[Claim]:
        return [Claim._make(row) for row in await self._rows("claim_steps", (self._namespace, worker, limit))]

    async def settle(self, worker: str, settlements: Sequence[Settlement], claim_limit: int) -> Answer:
        """Record outcomes, and claim up to `claim_limit` steps in the same transaction. Repeating it is harmless."""
        return _answer(
            await self._rows("settle_steps", _settle_arguments(self._namespace, worker, settlements, claim_limit))
        )

    async def create_batches(self, worker: str, settlement: Settlement, claim_limit: int) -> Answer:
        """Settle a batchable step that has divided, and claim as `settle` does. Repeating it is harmless."""
        step_id, fence, outcome = settlement
        batches = outcome.batches
        assert batches is not None
        return _answer(
            await self._rows(
                "create_batches",
                (
                    *(self._namespace, worker, step_id, fence, outcome.result, outcome.metadata),
                    *(batches.ids, _array(batches.starts), _array(batches.ends), batches.inputs),
                    *(batches.is_no_op, claim_limit),
                ),
            )
        )

    async def read_result(self, worker: str, step_id: int, fence: int, name: str) -> str | None:
        """The JSON text of an earlier step's result that a claim was too small for; None when the lease is gone."""
        rows = await self._rows("read_results", (self._namespace, worker, step_id, fence, [name]))
        return next((result for step_name, result in rows if step_name == name), None)

    async def read_batch_results(
        self, worker: str, step_id: int, fence: int, node: str, after: int, limit: int
    ) -> list[tuple[int, str, str]]:
        """Up to `limit` results of a batch's workers: place, step name and JSON text, of places above `after`."""
        return [
            (place, step_name, result)
            for place, step_name, result in await self._rows(
                "read_batch_results", (self._namespace, worker, step_id, fence, node, after, limit)
            )
        ]

    async def save_checkpoint(self, worker: str, step_id: int, fence: int, checkpoint: str) -> bool:
        """Keep a checkpoint, a JSON text; False when the lease is gone."""
        [(kept,)] = await self._rows("save_checkpoint", (self._namespace, worker, step_id, fence, checkpoint))
        return bool(kept)

    async def notify(self, channel: str) -> None:
        await self._rows("notify", (channel,))

    async def _rows(self, name: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        await self.connect()
        assert self._connection is not None
        try:
            cursor = await self._connection.execute(QUERIES[name], parameters, prepare=self._prepare)
            return await cursor.fetchall()
        except psycopg.Error as error:
            if isinstance(error, _PREPARED_ELSEWHERE):
                self._prepare = False
                logger.warning("a pooler between worker and database loses prepared statements; going on without them")
            translated = _translated(error)
            if self._connection.closed or _needs_a_new_session(translated):
                await self.close()
            raise translated from error


class SyncGateway:
    """The engine's functions for the workers of a namespace, over a connection of a thread's own."""

    def __init__(self, url: str, *, namespace: str, lease_seconds: float, role: str) -> None:
        self._settings = connection_settings(url, role, lease_seconds)
        self._namespace = namespace
        self._connection: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def register(self, offer: Offer) -> None:
        self._rows("register_worker", (*offer[:5], list(offer.callables), *offer[6:]))

    def renew(self, worker: str, claims: Sequence[tuple[int, int]], claiming_since: datetime | None) -> Renewal:
        """Keep the leases of `claims`, the (step id, fence) of each, alive.

        Of what the worker holds beside these, all that it claimed before `claiming_since` comes back as unknown.
        """
        step_ids, fences = _array([step for step, _ in claims]), _array([fence for _, fence in claims])
        [row] = self._rows("renew_worker", (self._namespace, worker, step_ids, fences, claiming_since))
        return Renewal._make(row)

    def settle(self, worker: str, settlement: Settlement) -> None:
        self._rows("settle_steps", _settle_arguments(self._namespace, worker, [settlement], 0))

    def sweep(self, limit: int) -> dict[str, int]:
        """Repairs made, by kind."""
        return dict(self._rows("sweep", (limit,)))

    def _rows(self, name: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            if self._connection is None:
                self._connection = psycopg.Connection.connect(**self._settings, autocommit=True, prepare_threshold=None)
            return self._connection.execute(QUERIES[name], parameters).fetchall()
        except psycopg.Error as error:
            translated = _translated(error)
            if _needs_a_new_session(translated):
                self.close()
            raise translated from error
