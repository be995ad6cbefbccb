"""Loads `sql/worker.sql`: named statements, each introduced by ``-- name: …`` and a sentence."""

from __future__ import annotations

from importlib import resources


def load() -> dict[str, bytes]:
    """Statements by name. Bytes, which psycopg takes as a query that no program text was pasted into."""
    text = resources.files(__package__).joinpath("sql", "worker.sql").read_bytes().decode()
    queries = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        lines = [line for line in body.splitlines() if line.strip() and not line.startswith("--")]
        queries[name.strip()] = "\n".join(lines).encode()
    return queries


QUERIES = load()
