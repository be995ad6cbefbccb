"""Loads the named queries of ``sql/queries/*.sql``: ``-- name``, a sentence, the query."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_QUERY = re.compile(r"^-- name: (\w+)$(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


@cache
def load_queries(family: str) -> dict[str, LiteralString]:
    """The queries of one file, by name. The text is ours and fixed, hence literal to the type checker."""
    text = (files(__package__) / "sql" / "queries" / f"{family}.sql").read_text(encoding="utf-8")
    return {name: cast("LiteralString", body.strip()) for name, body in _QUERY.findall(text)}
