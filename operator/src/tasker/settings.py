"""Settings in frozen groups by concern. Each field: a sentence, its unit, the reason for the default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tasker.errors import ConfigurationError

Default = TypeVar("Default", float, float | None)

ENVIRONMENTS = ("test", "development", "production")
"""What an installation may be; its workers know the same."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """How long one connection to Postgres waits for what. What the connection string itself says of these stands.

    Together the defaults let a primary that vanishes be noticed within 15 seconds, whether TCP tells or not.
    """

    connect_timeout_seconds: int = 5
    """For the whole of connecting to one address. A server that is there answers in a fraction of it."""

    keepalives_idle_seconds: int = 5
    """A silent connection is probed after so long: with the probes below, gone is noticed after 14 seconds."""

    keepalives_interval_seconds: int = 3
    """Between two probes that are not answered."""

    keepalives_count: int = 3
    """Probes without an answer after which the connection is given up: one or two may be lost on a busy network."""

    unacknowledged_seconds: int = 9
    """What was sent and not acknowledged for so long ends the connection: before the probes would, for then somebody is
    waiting."""

    statement_timeout_seconds: float = 10.0
    """The server gives a statement up after so long. Every call is made to take a fraction of a second."""

    lock_timeout_seconds: float | None = 2.0
    """The server gives a statement up that waits for one lock so long; it is then tried again. Locks are held for
    milliseconds; behind a person's open transaction a connection should not wait while others need it. None: as long
    as the statement may take."""

    answer_margin_seconds: float = 2.0
    """After the server should have given a statement up, so much is left for its word of it; then it counts as gone."""

    @property
    def answer_seconds(self) -> float:
        """How long to wait for the answer to one statement before the server counts as gone."""
        return self.statement_timeout_seconds + self.answer_margin_seconds


DEFAULT_LIMITS = ConnectionLimits()

MIGRATION_LIMITS = ConnectionLimits(statement_timeout_seconds=600.0, lock_timeout_seconds=None)
"""A migration may rewrite a large table, and waits for the one that another process has begun. Its own changes wait 5 s
for a table at a time, so that nobody waits behind them longer."""


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """How the server reaches Postgres."""

    url: str = field(repr=False)
    """Connection string; it may hold a password, so it is never shown."""

    pool_min: int = 1
    """Connections kept open. One answers an idle operator."""

    pool_max: int = 4
    """Most connections of this process. All work is short statements, so four carry thousands a second."""

    connect_timeout_seconds: float = 10.0
    """How long to wait for a connection of the pool before saying that the database cannot be reached."""

    connection_lifetime_seconds: float = 1800.0
    """A connection is made anew after so long, so that new members of a pooler or a name get their share."""

    limits: ConnectionLimits = DEFAULT_LIMITS
    """How long a connection waits."""

    migration_limits: ConnectionLimits = MIGRATION_LIMITS
    """How long the connection of a migration waits."""

    application_name: str = "tasker"
    """Shown in pg_stat_activity."""

    listen_url: str | None = field(default=None, repr=False)
    """Connection string for LISTEN, when `url` goes through a pooler that cannot carry it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DatabaseSettings:
        """From DATABASE_URL, TASKER_LISTEN_DATABASE_URL and the variables of the limits.

        Raises `ConfigurationError` without the first, and naming a variable that cannot be used.
        """
        url = environment.get("DATABASE_URL", "")
        if not url:
            raise ConfigurationError("DATABASE_URL is not set: give the connection string of the Postgres database")
        limits, migration_limits = cls.limits, cls.migration_limits
        return cls(
            url=url,
            listen_url=environment.get("TASKER_LISTEN_DATABASE_URL") or None,
            limits=replace(
                limits,
                statement_timeout_seconds=_seconds(
                    environment, "TASKER_DATABASE_STATEMENT_TIMEOUT_SECONDS", limits.statement_timeout_seconds
                ),
                lock_timeout_seconds=_seconds(
                    environment, "TASKER_DATABASE_LOCK_TIMEOUT_SECONDS", limits.lock_timeout_seconds
                ),
            ),
            migration_limits=replace(
                migration_limits,
                statement_timeout_seconds=_seconds(
                    environment,
                    "TASKER_MIGRATION_STATEMENT_TIMEOUT_SECONDS",
                    migration_limits.statement_timeout_seconds,
                ),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """How the operator runs; every field has an environment variable, named in `from_environment`."""

    worker_image: str
    """The image of pools that name none: the release's own unless set, since worker and engine speak one contract."""

    worker_image_pull_policy: str | None = None
    """Always, IfNotPresent or Never for that image; Kubernetes' own rule unless set."""

    worker_image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets, in the pools' namespaces, for pulling that image."""

    worker_database_url: str = field(repr=False)
    """The connection string that goes into the workers' Secret; the operator's own unless workers need another way."""

    watch_namespaces: tuple[str, ...] = ()
    """The namespaces that are served; none means all of them, which is what one operator a cluster wants."""

    installation: str = "kube-system/tasker"
    """Which installation of its cluster this is: the namespace that it belongs to and a name, with a slash between. The
    chart's release; by default the one of a cluster that has a single one, beside its own services."""

    environment: str = "production"
    """Of `ENVIRONMENTS`: which of a template's environments holds here. Workers are told, too. What is not said to be
    something else is meant."""

    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics; 0 takes a free one."""

    health_host: str = "0.0.0.0"  # noqa: S104 - probes come from the node, so a pod has to listen on its address
    """Address that port is bound to."""

    log_level: str = "info"
    """debug, info, warning or error."""

    log_format: str = "json"
    """json for machines (the default in a cluster) or text for people."""

    resync_seconds: float = 300.0
    """How often everything is listed and reconciled again: what a missed event can cost at most, in seconds."""

    change_seconds: float = 0.5
    """How often changed rows are read when no notification comes, in seconds: the delay of a status at its worst."""

    scale_seconds: float = 1.0
    """How often pools are looked at, in seconds: half of the two seconds within which a first worker is wanted."""

    sweep_seconds: float = 1.0
    """How often the operator sweeps, in seconds. With no worker left nobody else would wake a due retry."""

    progress_writes_per_second: float = 100.0
    """Status writes of running Tasks over all of them; ends are written at once. Protects the API server."""

    watch_silence_seconds: float = 75.0
    """A watch that brings nothing for so long, not even a bookmark (one a minute), is started again; in seconds."""

    managed_pool_grace_seconds: float = 5.0
    """How long a namespace may hold templates and no pool before it gets one: files are applied one after the other."""

    managed_pool_spec: Mapping[str, object] = field(
        default_factory=lambda: {"handlersFrom": {"configMapRef": {"name": "tasker-handlers"}}}
    )
    """The spec of such a pool. By default it mounts the handlers that a ConfigMap of this name brings."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, *, version: str) -> OperatorSettings:
        """Raises `ConfigurationError` naming the variable when one cannot be used."""
        return cls(
            worker_image=environment.get("TASKER_WORKER_IMAGE") or f"tasker-worker:{version}",
            worker_database_url=environment.get("TASKER_WORKER_DATABASE_URL") or environment.get("DATABASE_URL", ""),
            worker_image_pull_policy=_pull_policy(environment),
            worker_image_pull_secrets=_names(environment, "TASKER_WORKER_IMAGE_PULL_SECRETS"),
            watch_namespaces=_names(environment, "TASKER_WATCH_NAMESPACES"),
            installation=_installation(environment, cls.installation),
            environment=_choice(environment, "TASKER_ENV", cls.environment, ENVIRONMENTS),
            health_port=_integer(environment, "TASKER_HEALTH_PORT", cls.health_port, at_most=65535),
            health_host=environment.get("TASKER_HEALTH_HOST") or cls.health_host,
            log_level=_choice(environment, "TASKER_LOG", cls.log_level, ("debug", "info", "warning", "error")),
            log_format=_choice(environment, "TASKER_LOG_FORMAT", cls.log_format, ("json", "text")),
            resync_seconds=_seconds(environment, "TASKER_RESYNC_SECONDS", cls.resync_seconds),
            change_seconds=_seconds(environment, "TASKER_CHANGE_SECONDS", cls.change_seconds),
            scale_seconds=_seconds(environment, "TASKER_SCALE_SECONDS", cls.scale_seconds),
            sweep_seconds=_seconds(environment, "TASKER_SWEEP_SECONDS", cls.sweep_seconds),
            progress_writes_per_second=_seconds(
                environment, "TASKER_PROGRESS_WRITES_PER_SECOND", cls.progress_writes_per_second
            ),
            watch_silence_seconds=_seconds(environment, "TASKER_WATCH_SILENCE_SECONDS", cls.watch_silence_seconds),
            managed_pool_grace_seconds=_seconds(
                environment, "TASKER_MANAGED_POOL_GRACE_SECONDS", cls.managed_pool_grace_seconds
            ),
            **_managed_pool(environment),
        )


def termination_log(environment: Mapping[str, str] = os.environ) -> Path:
    """TASKER_TERMINATION_LOG, or where the kubelet makes the file: why the process ends is written there.

    On its own, because it has to be known before a setting that cannot be used ends the process.
    """
    return Path(environment.get("TASKER_TERMINATION_LOG") or "/dev/termination-log")


def _names(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in environment.get(name, "").split(",") if part.strip())


def _pull_policy(environment: Mapping[str, str]) -> str | None:
    name, policies = "TASKER_WORKER_IMAGE_PULL_POLICY", ("Always", "IfNotPresent", "Never")
    policy = environment.get(name) or None
    if policy is not None and policy not in policies:
        raise ConfigurationError(f"{name}={policy!r} is none of {', '.join(policies)}")
    return policy


def _installation(environment: Mapping[str, str], default: str) -> str:
    text = environment.get("TASKER_INSTALLATION") or default
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise ConfigurationError(f"TASKER_INSTALLATION={text!r} is not a namespace and a name with a slash between")
    return text


def _integer(environment: Mapping[str, str], name: str, default: int, *, at_most: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) > at_most:
        raise ConfigurationError(f"{name}={text!r} is not a whole number from 0 to {at_most}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: Default) -> float | Default:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{name}={text!r} is not a number above 0")
    return value


def _choice(environment: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    text = (environment.get(name) or default).lower()
    if text not in choices:
        raise ConfigurationError(f"{name}={text!r} is none of {', '.join(choices)}")
    return text


def _managed_pool(environment: Mapping[str, str]) -> dict[str, Mapping[str, object]]:
    text = environment.get("TASKER_MANAGED_POOL")
    if not text:
        return {}
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"TASKER_MANAGED_POOL is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise ConfigurationError("TASKER_MANAGED_POOL must be a JSON object: the spec of a WorkerPool")
    return {"managed_pool_spec": spec}
