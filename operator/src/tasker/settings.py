"""Settings in frozen groups by concern. Each field: a sentence, its unit, the reason for the default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasker.errors import ConfigurationError


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
    """How long to wait for a connection before saying that the database cannot be reached."""

    application_name: str = "tasker"
    """Shown in pg_stat_activity."""

    listen_url: str | None = field(default=None, repr=False)
    """Connection string for LISTEN, when `url` goes through a pooler that cannot carry it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DatabaseSettings:
        """From DATABASE_URL and TASKER_LISTEN_DATABASE_URL. Raises `ConfigurationError` without the first."""
        url = environment.get("DATABASE_URL", "")
        if not url:
            raise ConfigurationError("DATABASE_URL is not set: give the connection string of the Postgres database")
        return cls(url=url, listen_url=environment.get("TASKER_LISTEN_DATABASE_URL") or None)


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """How the operator runs; every field has an environment variable, named in `from_environment`."""

    worker_image: str
    """The image of pools that name none: the release's own unless told, since worker and engine speak one contract."""

    worker_image_pull_policy: str | None = None
    """Always, IfNotPresent or Never for that image; Kubernetes' own rule unless told."""

    worker_image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets, in the pools' namespaces, for pulling that image."""

    worker_database_url: str = field(repr=False)
    """The connection string that goes into the workers' Secret; the operator's own unless workers need another way."""

    watch_namespaces: tuple[str, ...] = ()
    """The namespaces that are served; none means all of them, which is what one operator a cluster wants."""

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


def _integer(environment: Mapping[str, str], name: str, default: int, *, at_most: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) > at_most:
        raise ConfigurationError(f"{name}={text!r} is not a whole number from 0 to {at_most}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
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
