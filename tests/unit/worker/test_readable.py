"""What people are shown of any value is JSON, whatever it is, and secrets are not in it."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasker_worker.readable import is_secret, readable


class Login(pydantic.BaseModel):
    user: str
    password: str


@dataclasses.dataclass
class Session:
    user: str
    access_token: str


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Header(StrEnum):
    AUTHORIZATION = "Authorization"


class Unreadable:
    """Raises whenever it is read."""

    password = "hunter2"

    def __str__(self) -> str:
        raise OSError("hunter2")

    __repr__ = __str__


class UnreadableModel(pydantic.BaseModel):
    password: str = "hunter2"

    @pydantic.model_serializer
    def _fails(self) -> Any:
        raise OSError("hunter2")


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "Password",
        "db_password",
        "dbpassword",
        "password_hash",
        "password1",
        "token",
        "api_token",
        "accessToken",
        "accesstoken",
        "OAuthToken",
        "refresh_tokens",
        "token_id",
        "tokens",
        "secret",
        "client_secret",
        "clientsecret",
        "SECRETS",
        "aws_secret_access_key",
        "api_key",
        "apiKey",
        "APIKey",
        "X-Api-Key",
        "apikey",
        "api_keys",
        "ssh_private_key",
        "authorization",
        "Proxy-Authorization",
        "Set-Cookie",
        "credentials",
        "DATABASE_URL",
        "connection_string",
        "user.passwd",
        "jwt",
    ],
)
def test_a_text_under_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert readable({name: "hunter2", "after": 1}) == {name: "***", "after": 1}
    assert readable({name: ["hunter2"]}) == {name: "***"}
    assert readable({name: {"value": "hunter2"}}) == {name: "***"}
    assert readable({name: b"hunter2"}) == {name: "***"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_tokens", 1500),
        ("outputTokens", 20),
        ("total_tokens", 1520.0),
        ("tokens", 3),
        ("tokens", {"prompt": 3, "completion": 5}),
        ("token_ids_and_tokens", [101, 2003, 102]),
        ("input_tokens", Decimal(5)),
        ("max_tokens", 4096),
        ("token_count", 3),
        ("token_limit", 8192),
        ("max_token", 5),
        ("token_budget", 12.5),
        ("token_usage", {"prompt": 3, "of": [1, 2]}),
        ("tokens_per_second", 41.2),
        ("token_expires", 1767225600),
        ("secrets", 3),
        ("token_type", "Bearer"),
        ("token_expires_at", "2026-01-01"),
        ("secret_name", "postgres"),
        ("password_file", "/run/secrets/password"),
        ("password_changed_at", "2026-01-01"),
        ("authorization_status", "granted"),
        ("password", None),
        ("password", True),
        ("has_password", False),
        ("tokenizer", "cl100k"),
        ("secretary", "Ann"),
        ("keyboard", "us"),
        ("key", "order-7"),
        ("access", "granted"),
        ("monkey", "see"),
        ("compass", "north"),
        ("url", "http://db"),
        ("", "nothing"),
        ("7", "seven"),
    ],
)
def test_what_only_sounds_like_a_secret_is_shown(name: str, value: Any) -> None:
    assert json.loads(json.dumps(readable({name: value}))) == {name: readable(value)}
    assert readable({name: value})[name] != "***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", 1234),
        ("token", 123456),
        ("passwords", [1234]),
        ("tokens", [101, "hunter2"]),
        ("tokens", {"a": 1, "b": "hunter2"}),
        ("api_key", 5),
        ("token_usage", {"prompt": 3, "key": "hunter2"}),
        ("count", "password"),
    ],
)
def test_a_number_alone_may_be_a_secret(name: str, value: Any) -> None:
    assert is_secret(name, value) is (name != "count")


def test_secrets_are_hidden_at_any_depth_and_in_any_shape() -> None:
    shown = readable(
        {
            "login": Login(user="ann", password="hunter2"),
            "sessions": [Session(user="ann", access_token="hunter2")],
            "headers": {Header.AUTHORIZATION: "Bearer hunter2", "Accept": "*/*"},
            "kept": pydantic.SecretStr("hunter2"),
        }
    )
    assert shown == {
        "login": {"user": "ann", "password": "***"},
        "sessions": [{"user": "ann", "access_token": "***"}],
        "headers": {"Authorization": "***", "Accept": "*/*"},
        "kept": "**********",
    }


def test_secrets_may_be_left_in() -> None:
    assert readable({"handlers": {"create_token": "1.0.0"}}, hide_secrets=False) == {
        "handlers": {"create_token": "1.0.0"}
    }


def test_what_is_json_stays_what_it_is() -> None:
    text = '{"a": [true, false, null, 1, 1.5, "x", {}], "b": []}'
    assert json.dumps(readable(json.loads(text))) == text
    assert is_secret("password", None) is is_secret("password", True) is is_secret("other", "x") is False


def test_values_are_shown_as_a_result_would_be_stored() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert readable(
        {"at": at, "id": UUID(int=1), "price": Decimal("1.10"), "colour": Colour.RED, "size": Size.SMALL, "set": {1}}
    ) == {
        "at": "2026-01-01T00:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "1.10",
        "colour": "red",
        "size": 1,
        "set": [1],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({(1, 2): "pair", None: 0}, {"(1, 2)": "pair", "None": 0}),
        ("half \ud800", "half \\ud800"),
        ({"\ud800": 1}, {"\\ud800": 1}),
        (b"\xff!", "\\xff!"),
        (ValueError("no stock"), "no stock"),
        (10**4300, hex(10**4300)),
        (1 - 10**4300, 1 - 10**4300),
        (Unreadable(), "(Unreadable, which cannot be read)"),
        ({Unreadable(): 1}, {"(Unreadable, which cannot be read)": 1}),
        ([UnreadableModel(), 1], ["(UnreadableModel, which cannot be read)", 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_json_becomes_a_text(value: Any, shown: Any) -> None:
    assert readable(value) == shown


def test_an_iterator_is_named_and_not_read() -> None:
    unread = (each for each in range(3))
    assert "generator object" in readable(unread)
    assert next(unread) == 0


def test_what_holds_itself_or_is_too_deep_is_cut() -> None:
    holds_itself: dict[str, Any] = {"name": "a"}
    holds_itself["self"] = holds_itself
    assert readable(holds_itself) == {"name": "a", "self": "…"}
    deep: Any = "bottom"
    for _ in range(1000):
        deep = [deep]
    text = json.dumps(readable(deep))
    assert text.count("[") == 32
    assert "bottom" not in text
    shared = [1]
    assert readable([shared, shared]) == [[1], [1]]


class UnreadableMapping(dict[str, Any]):
    """One that raises when it is read."""

    def values(self) -> Any:
        raise OSError("hunter2")

    items = values


def test_values_that_cannot_be_looked_at_cost_nothing_beside_them() -> None:
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    shown = readable(
        {"tokens": holds_itself, "token_count": UnreadableMapping(a=1), "x": UnreadableMapping(a=1), "y": 1}
    )
    assert shown == {
        "tokens": "***",
        "token_count": "***",
        "x": "(UnreadableMapping, which cannot be read)",
        "y": 1,
    }


@given(st.from_type(object) | st.binary() | st.floats() | st.sets(st.integers()) | st.text(st.characters()))
def test_whatever_it_is_comes_out_as_json_that_a_stream_takes(value: Any) -> None:
    json.dumps(readable({"value": value}), ensure_ascii=False, allow_nan=False).encode()


def test_integers_are_shown_as_numbers_as_long_as_python_reads_them() -> None:
    for value in (10**4300 - 1, 1 - 10**4300):
        assert readable(value) == value
    for value in (10**4300, -(10**4300)):
        assert readable(value) == hex(value)
