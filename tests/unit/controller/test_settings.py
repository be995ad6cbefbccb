"""The operator's settings: what the environment gives, and a clear word about what it cannot."""

from __future__ import annotations

import pytest

from tasker.errors import ConfigurationError
from tasker.settings import ENVIRONMENTS, DatabaseSettings, OperatorSettings
from tasker_worker.settings import ENVIRONMENTS as ENVIRONMENTS_OF_WORKERS


def read(**environment: str) -> OperatorSettings:
    return OperatorSettings.from_environment(
        {"DATABASE_URL": "postgresql://u:hunter2@h/d", **environment}, version="1.2.3"
    )


def test_the_defaults() -> None:
    settings = read()
    assert settings.worker_image == "tasker-worker:1.2.3"
    assert settings.worker_database_url == "postgresql://u:hunter2@h/d"
    assert settings.watch_namespaces == ()
    assert settings.environment == "production"
    assert (settings.health_port, settings.log_level, settings.log_format) == (8080, "info", "json")


def test_workers_know_every_environment_that_an_installation_may_be() -> None:
    assert set(ENVIRONMENTS) == set(ENVIRONMENTS_OF_WORKERS)


def test_the_environment_wins() -> None:
    settings = read(
        TASKER_WORKER_IMAGE="mine:7",
        TASKER_WORKER_DATABASE_URL="postgresql:///workers",
        TASKER_WORKER_IMAGE_PULL_POLICY="Never",
        TASKER_WORKER_IMAGE_PULL_SECRETS="a, b",
        TASKER_WATCH_NAMESPACES="one, two,",
        TASKER_ENV="test",
        TASKER_HEALTH_PORT="0",
        TASKER_LOG="DEBUG",
        TASKER_RESYNC_SECONDS="60",
        TASKER_MANAGED_POOL='{"handlers": ["x"]}',
    )
    assert settings.worker_image == "mine:7"
    assert settings.worker_database_url == "postgresql:///workers"
    assert settings.worker_image_pull_policy == "Never"
    assert settings.worker_image_pull_secrets == ("a", "b")
    assert settings.watch_namespaces == ("one", "two")
    assert settings.environment == "test"
    assert (settings.health_port, settings.log_level, settings.resync_seconds) == (0, "debug", 60.0)
    assert settings.managed_pool_spec == {"handlers": ["x"]}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TASKER_HEALTH_PORT", "http", "TASKER_HEALTH_PORT='http' is not a whole number from 0 to 65535"),
        ("TASKER_HEALTH_PORT", "70000", "TASKER_HEALTH_PORT='70000' is not a whole number from 0 to 65535"),
        ("TASKER_RESYNC_SECONDS", "0", "TASKER_RESYNC_SECONDS='0' is not a number above 0"),
        ("TASKER_SCALE_SECONDS", "nan", "TASKER_SCALE_SECONDS='nan' is not a number above 0"),
        ("TASKER_ENV", "prod", "TASKER_ENV='prod' is none of test, development, production"),
        ("TASKER_LOG", "loud", "TASKER_LOG='loud' is none of debug, info, warning, error"),
        ("TASKER_WORKER_IMAGE_PULL_POLICY", "never", "is none of Always, IfNotPresent, Never"),
        ("TASKER_MANAGED_POOL", "[1]", "TASKER_MANAGED_POOL must be a JSON object"),
        ("TASKER_MANAGED_POOL", "{", "TASKER_MANAGED_POOL is not JSON"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{name: value})
    assert message in str(caught.value)


def test_the_limits_of_connections_can_be_set() -> None:
    settings = DatabaseSettings.from_environment(
        {
            "DATABASE_URL": "postgresql:///x",
            "TASKER_DATABASE_STATEMENT_TIMEOUT_SECONDS": "20",
            "TASKER_DATABASE_LOCK_TIMEOUT_SECONDS": "0.5",
            "TASKER_MIGRATION_STATEMENT_TIMEOUT_SECONDS": "3600",
        }
    )
    assert (settings.limits.statement_timeout_seconds, settings.limits.lock_timeout_seconds) == (20.0, 0.5)
    assert settings.migration_limits.statement_timeout_seconds == 3600.0
    assert settings.migration_limits.lock_timeout_seconds is None
    with pytest.raises(ConfigurationError, match="TASKER_DATABASE_LOCK_TIMEOUT_SECONDS='soon' is not a number above 0"):
        DatabaseSettings.from_environment({"DATABASE_URL": "x", "TASKER_DATABASE_LOCK_TIMEOUT_SECONDS": "soon"})


def test_settings_never_show_the_password() -> None:
    assert "hunter2" not in repr(read())
