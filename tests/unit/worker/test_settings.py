"""Settings come from the environment, then the file; a wrong one is named with its source; all explain themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tasker_worker.errors import ConfigurationError
from tasker_worker.process import main
from tasker_worker.settings import WorkerSettings, about_settings, load_settings

URL = {"DATABASE_URL": "postgresql://localhost/x"}


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load_settings(URL)
    assert (settings.namespace, settings.pool, settings.slots) == ("default", "default", 10)
    assert (settings.environment, settings.log_level, settings.web_port) == ("development", "info", 8081)
    assert (settings.lease_seconds, settings.poll_min_ms, settings.poll_max_ms) == (30, 10, 1000)
    assert settings.notifications
    assert settings.web_enabled
    assert load_settings(URL).name != load_settings(URL).name
    assert len(settings.name) <= 128


def test_every_variable_of_the_contract_is_read() -> None:
    settings = load_settings(
        {
            **URL,
            "TASKER_NAMESPACE": "shop",
            "TASKER_POOL": "big",
            "TASKER_WORKER_NAME": "pod-1",
            "TASKER_SLOTS": "7",
            "TASKER_ENV": "production",
            "TASKER_LOG": "debug",
            "PORT": "9000",
            "TASKER_HANDLERS_PATH": "/handlers",
            "TASKER_SHUTDOWN_GRACE_SECONDS": "295",
            "TASKER_LEASE_SECONDS": "2.5",
            "TASKER_POLL_MIN_MS": "5",
            "TASKER_POLL_MAX_MS": "500",
            "TASKER_NOTIFICATIONS": "false",
            "TASKER_LISTEN_DATABASE_URL": "postgresql://localhost/y",
            "TASKER_WEB_ENABLED": "no",
            "TASKER_WEB_HOST": "::",
            "TASKER_STARTUP_SECONDS": "3",
            "TASKER_TERMINATION_LOG": "/tmp/last-words",
        }
    )
    assert (settings.namespace, settings.pool, settings.name, settings.slots) == ("shop", "big", "pod-1", 7)
    assert (settings.environment, settings.log_level, settings.web_port) == ("production", "debug", 9000)
    assert (settings.handlers_path, settings.shutdown_grace_seconds) == ("/handlers", 295)
    assert (settings.lease_seconds, settings.poll_min_ms, settings.poll_max_ms) == (2.5, 5, 500)
    assert (settings.notifications, settings.listen_database_url) == (False, "postgresql://localhost/y")
    assert (settings.web_enabled, settings.web_host, settings.startup_seconds) == (False, "::", 3)
    assert settings.termination_log == "/tmp/last-words"


def test_the_environment_wins_over_the_file_and_arguments_over_both(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        """
        [database]
        url = "postgresql://localhost/file"
        [worker]
        namespace = "file"
        pool = "file"
        slots = 3
        [web]
        enabled = false
        """
    )
    settings = load_settings({"TASKER_CONFIG_PATH": str(file), "TASKER_POOL": "env", "TASKER_SLOTS": "4"}, slots=5)
    assert settings.database_url == "postgresql://localhost/file"
    assert (settings.namespace, settings.pool, settings.slots) == ("file", "env", 5)
    assert not settings.web_enabled


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "DATABASE_URL is required: the URL of the engine's Postgres database"),
        ({"DATABASE_URL": "me:hunter2"}, "DATABASE_URL is not a Postgres connection URL"),
        (
            {**URL, "TASKER_LISTEN_DATABASE_URL": "me:hunter2"},
            "TASKER_LISTEN_DATABASE_URL is not a Postgres connection URL",
        ),
        ({**URL, "TASKER_SLOTS": "many"}, "TASKER_SLOTS is to be a number, not 'many'"),
        ({**URL, "TASKER_SLOTS": "0"}, "TASKER_SLOTS is to be a whole number from 1 to 10000, not '0'"),
        ({**URL, "TASKER_SLOTS": "1.5"}, "TASKER_SLOTS is to be a number, not '1.5'"),
        ({**URL, "PORT": "70000"}, "PORT is to be a whole number from 0 to 65535, not '70000'"),
        ({**URL, "TASKER_LEASE_SECONDS": "nan"}, "TASKER_LEASE_SECONDS is to be from 0.5 to 3600, not 'nan'"),
        ({**URL, "TASKER_ENV": "prod"}, "TASKER_ENV is to be one of test, development, production, not 'prod'"),
        ({**URL, "TASKER_LOG": "loud"}, "TASKER_LOG is to be one of trace, debug, info, warn, error, not 'loud'"),
        ({**URL, "TASKER_NOTIFICATIONS": "maybe"}, "TASKER_NOTIFICATIONS is to be true or false, not 'maybe'"),
        ({**URL, "TASKER_WORKER_NAME": "x" * 129}, "TASKER_WORKER_NAME is to be at most 128 characters, not 129"),
        ({**URL, "TASKER_POLL_MIN_MS": "2000"}, "TASKER_POLL_MIN_MS (2000) is more than TASKER_POLL_MAX_MS (1000)"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(environment)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[worker]\nslots = true", "{path}: worker.slots is to be a number, not True"),
        (
            "[worker]\n[database]\nlisten_url = 'me:hunter2'",
            "{path}: database.listen_url is not a Postgres connection URL",
        ),
        ("[worker]\nslotz = 3", "{path}: worker.slotz is no setting of a worker"),
        ("slots = 3\n[worker]", "{path}: slots is no setting of a worker"),
        ("[web]\nport = 1", "{path}: the section [worker] is missing"),
        ("[worker", "TASKER_CONFIG_PATH: {path} is not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_wrong_file_is_named_with_key_and_reason(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings({**URL, "TASKER_CONFIG_PATH": str(file)})
    assert str(refusal.value).startswith(message.format(path=file))


@pytest.mark.parametrize("name", ["database_url", "listen_database_url"])
def test_settings_that_a_program_makes_itself_are_held_to_the_same(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^(TASKER_LISTEN_)?DATABASE_URL is not a Postgres connection URL$"):
        WorkerSettings(**{"database_url": "postgresql://localhost/x", name: "me:hunter2"})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"TASKER_POLL_MIN_MS \(2000\) is more than"):
        dataclasses.replace(load_settings(URL), poll_min_ms=2000)


def test_an_argument_that_is_no_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="slotz is no setting of a worker"):
        load_settings(URL, slotz=3)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"TASKER_CONFIG_PATH: .* cannot be read: No such file or directory"):
        load_settings({**URL, "TASKER_CONFIG_PATH": str(tmp_path / "none.toml")})


def test_the_password_is_not_in_the_text_of_the_settings() -> None:
    assert "hunter2" not in repr(load_settings({"DATABASE_URL": "postgresql://me:hunter2@db/x"}))


def test_help_explains_every_setting_with_unit_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for about, _ in about_settings().values():
        for part in (about.variable, about.key, about.unit, about.text, about.reason):
            assert part in text
        assert about.text.endswith(".")
        assert not about.reason.endswith(".")
