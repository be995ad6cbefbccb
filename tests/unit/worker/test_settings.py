"""Settings come from the environment, then the file; a wrong one is named with its source; all explain themselves."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from tasker_worker.errors import ConfigurationError
from tasker_worker.process import main
from tasker_worker.settings import WorkerSettings, about_settings, load_settings

URL = {"DATABASE_URL": "postgresql://localhost/x"}


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load_settings(URL)
    told = dataclasses.asdict(settings)
    assert told.pop("name") != load_settings(URL).name
    assert told == {
        "database_url": URL["DATABASE_URL"],
        "listen_database_url": None,
        "namespace": "default",
        "pool": "default",
        "template_hash": "",
        "slots": 10,
        "environment": "development",
        "log_level": "info",
        "handlers_path": None,
        "shutdown_grace_seconds": 25,
        "lease_seconds": 30,
        "poll_min_ms": 10,
        "poll_max_ms": 1000,
        "notifications": True,
        "web_enabled": True,
        "web_host": "0.0.0.0",
        "web_port": 8081,
        "startup_seconds": 30,
        "termination_log": None,
    }


def test_a_name_that_is_made_up_tells_host_and_process_and_is_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 81)
    host, process, unique = load_settings(URL).name.split("-")
    assert (host, process) == ("h" * 80, str(os.getpid()))
    assert len(bytes.fromhex(unique)) == 4
    longest = "x" * 128
    assert load_settings({**URL, "TASKER_WORKER_NAME": longest}).name == longest


@pytest.mark.parametrize(
    ("variable", "low", "high"),
    [
        ("TASKER_SLOTS", 1, 10_000),
        ("TASKER_SHUTDOWN_GRACE_SECONDS", 0, 86_400),
        ("TASKER_LEASE_SECONDS", 0.5, 3600),
        ("TASKER_POLL_MIN_MS", 1, 60_000),
        ("TASKER_POLL_MAX_MS", 1, 600_000),
        ("PORT", 0, 65_535),
        ("TASKER_STARTUP_SECONDS", 0, 86_400),
    ],
)
def test_a_number_is_taken_from_its_least_to_its_most_and_no_further(variable: str, low: float, high: float) -> None:
    [name] = [name for name, (about, _) in about_settings().items() if about.variable == variable]
    others = {**URL, "TASKER_POLL_MIN_MS": "1", "TASKER_POLL_MAX_MS": "600000"}
    whole = isinstance(getattr(load_settings(URL), name), int) and name in ("slots", "web_port")
    step = 1 if whole else 0.25
    for value in (low, high):
        assert getattr(load_settings({**others, variable: str(value)}), name) == value
    for value in (low - step, high + step):
        with pytest.raises(ConfigurationError, match=f"^{variable} is to be .*from {low:g} to {high}, not '{value}'$"):
            load_settings({**others, variable: str(value)})


def test_the_shortest_pause_may_be_the_longest_too() -> None:
    settings = load_settings({**URL, "TASKER_POLL_MIN_MS": "50", "TASKER_POLL_MAX_MS": "50"})
    assert settings.poll_min_ms == settings.poll_max_ms == 50


@pytest.mark.parametrize(
    ("text", "flag"),
    [(text, True) for text in (" True ", "1", "yes", "ON")] + [(text, False) for text in ("false", "0", "no", " Off")],
)
def test_a_flag_is_said_in_any_of_the_usual_ways(text: str, flag: bool) -> None:
    assert load_settings({**URL, "TASKER_NOTIFICATIONS": text}).notifications is flag


def test_a_choice_may_be_written_in_capitals_and_an_empty_variable_says_nothing() -> None:
    settings = load_settings({**URL, "TASKER_ENV": " Production ", "TASKER_SLOTS": "", "TASKER_NAMESPACE": ""})
    assert (settings.environment, settings.slots, settings.namespace) == ("production", 10, "default")


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
            "TASKER_POD_TEMPLATE_HASH": "5f2a",
        }
    )
    assert (settings.namespace, settings.pool, settings.name, settings.slots) == ("shop", "big", "pod-1", 7)
    assert (settings.environment, settings.log_level, settings.web_port) == ("production", "debug", 9000)
    assert (settings.handlers_path, settings.shutdown_grace_seconds) == ("/handlers", 295)
    assert (settings.lease_seconds, settings.poll_min_ms, settings.poll_max_ms) == (2.5, 5, 500)
    assert (settings.notifications, settings.listen_database_url) == (False, "postgresql://localhost/y")
    assert (settings.web_enabled, settings.web_host, settings.startup_seconds) == (False, "::", 3)
    assert (settings.termination_log, settings.template_hash) == ("/tmp/last-words", "5f2a")


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
        notifications = true
        [web]
        enabled = false
        """
    )
    settings = load_settings({"TASKER_CONFIG_PATH": str(file), "TASKER_POOL": "env", "TASKER_SLOTS": "4"}, slots=5)
    assert settings.database_url == "postgresql://localhost/file"
    assert (settings.namespace, settings.pool, settings.slots) == ("file", "env", 5)
    assert (settings.notifications, settings.web_enabled) == (True, False)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "DATABASE_URL is required: the URL of the engine's Postgres database"),
        ({"DATABASE_URL": "me:hunter2"}, "DATABASE_URL is not a Postgres connection URL"),
        (
            {**URL, "TASKER_LISTEN_DATABASE_URL": "me:hunter2"},
            "TASKER_LISTEN_DATABASE_URL is not a Postgres connection URL",
        ),
        ({**URL, "TASKER_NAMESPACE": " "}, "TASKER_NAMESPACE is to be a text that is not empty"),
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
        ("[worker]\nslots = 2.0", "{path}: worker.slots is to be a number, not 2.0"),
        ("[worker]\nslots = [2]", "{path}: worker.slots is to be a number, not [2]"),
        ("[worker]\npool = 3", "{path}: worker.pool is to be a text that is not empty"),
        (
            "[worker]\nenvironment = 3",
            "{path}: worker.environment is to be one of test, development, production, not 3",
        ),
        ("[worker]\nnotifications = 3", "{path}: worker.notifications is to be true or false, not 3"),
        ("worker = 3", "{path}: the section [worker] is missing"),
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


def test_a_file_is_read_as_utf_8_and_one_that_is_not_is_told(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    environment = {**URL, "TASKER_CONFIG_PATH": str(file)}
    file.write_bytes("[worker]\nname = 'Bücher'\nslots = 3\nlease_seconds = 2".encode())
    settings = load_settings(environment)
    assert (settings.name, settings.slots, settings.lease_seconds) == ("Bücher", 3, 2.0)
    file.write_bytes("[worker]\nname = 'Bücher'".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"is not TOML: 'utf-8' codec can't decode"):
        load_settings(environment)


def test_an_argument_that_is_none_leaves_a_setting_to_the_environment_and_a_path_is_a_text() -> None:
    settings = load_settings({**URL, "TASKER_SLOTS": "3"}, slots=None, handlers_path=Path("/handlers"))
    assert (settings.slots, settings.handlers_path) == (3, "/handlers")
    with pytest.raises(ConfigurationError, match=r"^slots is to be a whole number from 1 to 10000, not 0$"):
        load_settings(URL, slots=0)


def test_the_password_is_not_in_the_text_of_the_settings() -> None:
    assert "hunter2" not in repr(load_settings({"DATABASE_URL": "postgresql://me:hunter2@db/x"}))


def test_help_explains_every_setting_with_unit_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    shown = {"database_url": "required", "name": "made up", "listen_database_url": "none", "slots": "10"}
    for name, (about, default) in about_settings().items():
        said = shown.get(name, "none" if default is None else str(default))
        assert f"{about.variable} [{about.key}] in {about.unit}; default: {said}".rstrip() in text
        for part in (about.variable, about.key, about.unit, about.text, about.reason):
            assert part in text
        assert about.text.endswith(".")
        assert not about.reason.endswith(".")
