"""The settings of a worker process: one table, read from the environment and from a TOML file beneath it.

Each field carries what `--help` prints: the variable, the key in the file, the unit, what it does, and why its default
is what it is. A wrong value raises ConfigurationError naming the variable or the file and key.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo

from .errors import ConfigurationError
from .logging import LEVELS
from .termination import VARIABLE as TERMINATION_LOG

ENVIRONMENTS = ("test", "development", "production")


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a setting is, for readers and for `--help`."""

    variable: str
    key: str  # section.name in the file
    unit: str
    text: str
    reason: str
    parse: Callable[[object], Any]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is to be a text that is not empty")
    return value


def _postgres_url(value: object) -> str:
    url = _text(value)
    try:
        conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        # Without the driver's text: it repeats the URL, password and all.
        raise ValueError("is not a Postgres connection URL") from None
    return url


def _flag(value: object) -> bool:
    match value:
        case bool():
            return value
        case str() if value.strip().lower() in ("true", "1", "yes", "on"):
            return True
        case str() if value.strip().lower() in ("false", "0", "no", "off"):
            return False
        case _:
            raise ValueError(f"is to be true or false, not {value!r}")


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = _number_of(value, int)
        if not low <= number <= high:
            raise ValueError(f"is to be a whole number from {low} to {high}, not {value!r}")
        return int(number)

    return parse


def _seconds(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        number = _number_of(value, float)
        if not low <= number <= high:
            raise ValueError(f"is to be from {low:g} to {high:g}, not {value!r}")
        return float(number)

    return parse


def _number_of(value: object, kind: type[int] | type[float]) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (kind is int and isinstance(value, float))
    ):
        raise ValueError(f"is to be a number, not {value!r}")
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"is to be a number, not {value!r}") from None


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = value.strip().lower() if isinstance(value, str) else value
        if text not in choices:
            raise ValueError(f"is to be one of {', '.join(choices)}, not {value!r}")
        return str(text)

    return parse


def _worker_name(value: object) -> str:
    name = _text(value)
    if len(name) > 128:
        raise ValueError(f"is to be at most 128 characters, not {len(name)}")
    return name


def _setting(default: Any, **about: Any) -> Any:
    described = {"about": About(**about)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=described)
    return dataclasses.field(default=default, metadata=described)


def _own_name() -> str:
    return f"{socket.gethostname()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """All settings of one worker."""

    database_url: str = dataclasses.field(
        repr=False,
        metadata={
            "about": About(
                variable="DATABASE_URL",
                key="database.url",
                unit="Postgres URL",
                parse=_postgres_url,
                text="The engine's database. Required.",
                reason="no default: a guess would run somebody else's steps",
            )
        },
    )
    listen_database_url: str | None = _setting(
        None,
        variable="TASKER_LISTEN_DATABASE_URL",
        key="database.listen_url",
        unit="Postgres URL",
        parse=_postgres_url,
        text="Where to listen for hints, when DATABASE_URL leads through a pooler that does not keep sessions.",
        reason="DATABASE_URL itself, for most have no pooler",
    )
    namespace: str = _setting(
        "default",
        variable="TASKER_NAMESPACE",
        key="worker.namespace",
        unit="name",
        parse=_text,
        text="Whose steps to run: the Kubernetes namespace, which is the queue's name too.",
        reason="the namespace that kubectl uses when none is said",
    )
    pool: str = _setting(
        "default",
        variable="TASKER_POOL",
        key="worker.pool",
        unit="name",
        parse=_text,
        text="The WorkerPool that this worker belongs to.",
        reason="the pool that a namespace without one is given",
    )
    template_hash: str = _setting(
        "",
        variable="TASKER_POD_TEMPLATE_HASH",
        key="worker.template_hash",
        unit="text",
        parse=_text,
        text="Which pod template of its pool this worker was made from.",
        reason="empty: a worker that no pool made; the operator sets it in the pods of a pool",
    )
    name: str = _setting(
        _own_name,
        variable="TASKER_WORKER_NAME",
        key="worker.name",
        unit="name, up to 128 characters",
        parse=_worker_name,
        text="This worker's name, unique among all living workers.",
        reason="host, process id and a random part, which no other worker has; in a pod its name",
    )
    slots: int = _setting(
        10,
        variable="TASKER_SLOTS",
        key="worker.slots",
        unit="steps",
        parse=_whole(1, 10_000),
        text="How many steps to run at once.",
        reason="handlers mostly wait for others; the same default as a WorkerPool's",
    )
    environment: str = _setting(
        "development",
        variable="TASKER_ENV",
        key="worker.environment",
        unit="test, development or production",
        parse=_one_of(*ENVIRONMENTS),
        text="Which environment this is; stands in every log line and in the metrics.",
        reason="what is not said to be production is not",
    )
    log_level: str = _setting(
        "info",
        variable="TASKER_LOG",
        key="worker.log",
        unit=", ".join(LEVELS),
        parse=_one_of(*LEVELS),
        text="The least level that is logged, as JSON lines on standard error.",
        reason="failures and changes of state, but not a line for every step",
    )
    handlers_path: str | None = _setting(
        None,
        variable="TASKER_HANDLERS_PATH",
        key="worker.handlers_path",
        unit="folder",
        parse=_text,
        text="A folder of Python files, put on the import path; every *.py at its top is imported for handlers.",
        reason="none: handlers come as modules named on the command line",
    )
    shutdown_grace_seconds: float = _setting(
        25.0,
        variable="TASKER_SHUTDOWN_GRACE_SECONDS",
        key="worker.shutdown_grace_seconds",
        unit="seconds",
        parse=_seconds(0, 86_400),
        text="How long running handlers may take to end after SIGTERM before their steps are given back.",
        reason="Kubernetes kills after 30 s unless told otherwise; 5 s are left to settle",
    )
    lease_seconds: float = _setting(
        30.0,
        variable="TASKER_LEASE_SECONDS",
        key="worker.lease_seconds",
        unit="seconds",
        parse=_seconds(0.5, 3600),
        text="How long a worker that is not heard of keeps its steps; renewed every third of it.",
        reason="two renewals may fail before steps run twice, and a crash costs half a minute",
    )
    poll_min_ms: float = _setting(
        10,
        variable="TASKER_POLL_MIN_MS",
        key="worker.poll_min_ms",
        unit="milliseconds",
        parse=_seconds(1, 60_000),
        text="How soon to ask again for work while there is some and slots are free.",
        reason="what a query a hundred times a second costs is not noticed",
    )
    poll_max_ms: float = _setting(
        1000,
        variable="TASKER_POLL_MAX_MS",
        key="worker.poll_max_ms",
        unit="milliseconds",
        parse=_seconds(1, 600_000),
        text="The longest pause between two questions while nothing comes; each is double the one before.",
        reason="an idle worker costs one query a second, and hints wake it sooner",
    )
    notifications: bool = _setting(
        True,
        variable="TASKER_NOTIFICATIONS",
        key="worker.notifications",
        unit="true or false",
        parse=_flag,
        text="Whether to send and receive hints by LISTEN and NOTIFY. Without, everything works at polling speed.",
        reason="a step starts within milliseconds instead of within the polling interval",
    )
    web_enabled: bool = _setting(
        True,
        variable="TASKER_WEB_ENABLED",
        key="web.enabled",
        unit="true or false",
        parse=_flag,
        text="Whether to answer /health, /health/live, /health/ready, /health/detailed and /metrics over HTTP.",
        reason="Kubernetes and Prometheus ask there",
    )
    web_host: str = _setting(
        "0.0.0.0",  # noqa: S104 - see the reason below
        variable="TASKER_WEB_HOST",
        key="web.host",
        unit="address",
        parse=_text,
        text="The address to answer at; `::` for IPv6.",
        reason="the kubelet asks at the pod's address, which is not known beforehand",
    )
    web_port: int = _setting(
        8081,
        variable="PORT",
        key="web.port",
        unit="TCP port",
        parse=_whole(0, 65_535),
        text="The port to answer at; 0 takes a free one, which the log tells.",
        reason="the port that the operator's manifests probe",
    )
    startup_seconds: float = _setting(
        30.0,
        variable="TASKER_STARTUP_SECONDS",
        key="database.startup_seconds",
        unit="seconds",
        parse=_seconds(0, 86_400),
        text="How long to wait at the start for a database that cannot be reached, before exiting with code 2.",
        reason="longer than a database takes to restart, shorter than a person waits for a reason",
    )

    termination_log: str | None = _setting(
        None,
        variable=TERMINATION_LOG,
        key="worker.termination_log",
        unit="file",
        parse=_text,
        text="Where to write why the process ended, as its container's termination message; at most 4,096 bytes.",
        reason="/dev/termination-log where there is one, for the kubelet makes and reads it; else nothing is written",
    )

    def __post_init__(self) -> None:
        for name in ("database_url", "listen_database_url"):
            url = getattr(self, name)
            if url is not None:
                _parsed(about_settings()[name][0], url, about_settings()[name][0].variable)
        if self.poll_min_ms > self.poll_max_ms:
            raise ConfigurationError(
                f"TASKER_POLL_MIN_MS ({self.poll_min_ms:g}) is more than TASKER_POLL_MAX_MS ({self.poll_max_ms:g})"
            )


def about_settings() -> dict[str, tuple[About, Any]]:
    """What each setting is, with its default, by field name."""
    return {
        field.name: (
            field.metadata["about"],
            field.default if field.default is not dataclasses.MISSING else None,
        )
        for field in dataclasses.fields(WorkerSettings)
    }


def load_settings(environment: Mapping[str, str], /, **overrides: Any) -> WorkerSettings:
    """Settings from `overrides` (by field name), then the environment, then the file TASKER_CONFIG_PATH names."""
    for name in overrides.keys() - about_settings().keys():
        raise ConfigurationError(f"{name} is no setting of a worker")
    path = environment.get("TASKER_CONFIG_PATH")
    file = _read_file(Path(path)) if path else {}
    values: dict[str, Any] = {}
    for name, (about, _) in about_settings().items():
        if overrides.get(name) is not None:
            values[name] = _parsed(about, overrides[name], name)
        elif environment.get(about.variable):
            values[name] = _parsed(about, environment[about.variable], about.variable)
        elif about.key in file:
            values[name] = _parsed(about, file[about.key], f"{path}: {about.key}")
    if "database_url" not in values:
        raise ConfigurationError("DATABASE_URL is required: the URL of the engine's Postgres database")
    return WorkerSettings(**values)


def _parsed(about: About, value: object, source: str) -> Any:
    try:
        return about.parse(value if not isinstance(value, Path) else str(value))
    except ValueError as error:
        raise ConfigurationError(f"{source} {error}") from None


def _read_file(path: Path) -> dict[str, object]:
    """A TOML file's settings by `section.key`; refuses keys that mean nothing."""
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigurationError(f"TASKER_CONFIG_PATH: {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"TASKER_CONFIG_PATH: {path} is not TOML: {error}") from error
    if not isinstance(tables.get("worker"), dict):
        raise ConfigurationError(f"{path}: the section [worker] is missing")
    known = {about.key for about, _ in about_settings().values()}
    found: dict[str, object] = {}
    for section, table in tables.items():
        for key, value in table.items() if isinstance(table, dict) else [("", table)]:
            name = f"{section}.{key}".rstrip(".")
            if name not in known:
                raise ConfigurationError(f"{path}: {name} is no setting of a worker")
            found[name] = value
    return found
