"""Loads the named queries of ``sql/queries/*.sql``: ``-- name``, a sentence, the query."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_HEAD = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def load_queries(family: str) -> dict[str, LiteralString]:
    """The queries of one file, by name. The text is ours and fixed, hence literal to the type checker."""
    text = (files(__package__) / "sql" / "queries" / f"{family}.sql").read_text(encoding="utf-8")
    parts = _HEAD.split(text)[1:]
    return {name: cast("LiteralString", body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
