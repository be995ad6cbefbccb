"""The worker's statements, as they stand in their file."""

from __future__ import annotations

from tasker_worker.queries import QUERIES


def test_each_statement_has_a_name_and_comes_without_what_is_said_of_it() -> None:
    assert "register_worker" in QUERIES
    for name, statement in QUERIES.items():
        assert name.isidentifier()
        lines = statement.decode().splitlines()
        assert lines
        assert all(line.strip() and not line.startswith("--") for line in lines)
