"""Where a fault can be planted in a file of SQL or PL/pgSQL, and planting it.

The file is cut into tokens and no further: each rule looks at a token and its neighbours and gives single edits. A rule
may be wrong about a place; what the database then refuses to load is not planted (see ``runs``). Comments and string
literals are left alone; the bodies between dollar signs are code. Settings that only steer the planner (``jit``,
``enable_…``, ``plan_cache_mode``) or the storage (``fillfactor``, ``autovacuum_…``) are left alone too, for no result
depends on them, and so are ``not null`` of columns and the ranks of rows in a list that is written in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mutants.site import Site

_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^']|'')*'|"[^"]*")
    | (?P<dollar>\$\w*\$)
    | (?P<parameter>%\(\w+\)[sbt]|%[sbt]\b)
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<word>[A-Za-z_#][\w$]*)
    | (?P<sign>->>|->|\#>>|\#>|<>|!=|<=|>=|:=|=>|::|\|\||@>|<@|&&|\.\.|[-+*/%<>=]|[(),;\[\]]|.)
    """,
    re.VERBOSE | re.DOTALL,
)

SWAPPED = {
    "=": "<>",
    "<>": "=",
    "!=": "=",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "+": "-",
    "true": "false",
    "false": "true",
    "and": "or",
    "or": "and",
    "least": "greatest",
    "greatest": "least",
    "min": "max",
    "max": "min",
}
# Words at which a condition, an order or a locking clause ends when they stand at the same depth of parentheses.
_ENDS = frozenset(
    {
        "and",
        "or",
        "group",
        "order",
        "limit",
        "offset",
        "for",
        "returning",
        "then",
        "loop",
        "union",
        "on",
        "join",
        "left",
    }
    | {"cross", "inner", "window", "having", "when", "else", "end", "where", "select", "from", "language", "as", "into"}
    | {"do", "set", ";"}
)
_ACTS = frozenset({"perform", "insert", "update", "delete", "raise"})
_BEFORE_STATEMENT = frozenset({";", "begin", "then", "else", "loop"})
_STEERS_PLANNER = re.compile(r"jit|plan_cache_mode|enable_\w+")
_STEERS_STORAGE = re.compile(r"fillfactor|autovacuum_\w+")


@dataclass(frozen=True, kw_only=True)
class Token:
    """A piece of the text that is neither blank nor comment."""

    kind: str
    text: str
    start: int
    end: int
    depth: int
    """Of parentheses around it."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of a text: `start` to `end` becomes `replacement`."""

    operator: str
    start: int
    end: int
    replacement: str


def tokens(source: str) -> list[Token]:
    """All tokens in order; words in lower case."""
    found: list[Token] = []
    depth = 0
    for match in _TOKEN.finditer(source):
        kind, text = str(match.lastgroup), match.group()
        if kind == "blank":
            continue
        if text in (")", "]"):
            depth -= 1
        found.append(
            Token(
                kind=kind,
                text=text.lower() if kind == "word" else text,
                start=match.start(),
                end=match.end(),
                depth=depth,
            )
        )
        if text in ("(", "["):
            depth += 1
        if text == ";":
            depth = 0
    return found


class _Reader:
    """Tokens with a look around."""

    def __init__(self, source: str) -> None:
        self.tokens = tokens(source)

    def text(self, place: int) -> str:
        return self.tokens[place].text if 0 <= place < len(self.tokens) else ""

    def clause_end(self, place: int) -> int:
        """The place behind the clause that begins at `place`: at one of `_ENDS`, or where its parentheses close."""
        depth = self.tokens[place].depth
        between = False
        for end in range(place + 1, len(self.tokens)):
            token = self.tokens[end]
            if token.depth < depth or token.kind == "dollar" or token.text == ";":
                return end
            if token.depth > depth:
                continue
            if token.text == "and" and between:
                between = False
                continue
            between = between or token.text == "between"
            if token.text in _ENDS and self.text(end - 1) != "distinct":  # is distinct from
                return end
        return len(self.tokens)

    def statement_end(self, place: int) -> int:
        """The place of the semicolon that ends the statement at `place`."""
        return next(
            (
                end
                for end in range(place, len(self.tokens))
                if self.text(end) == ";" and self.tokens[end].depth <= self.tokens[place].depth
            ),
            len(self.tokens) - 1,
        )

    def is_assignment(self, place: int) -> bool:
        """Whether the ``=`` at `place` assigns: ``set column =``, ``, column =`` of the same clause, ``set name =``."""
        depth = self.tokens[place].depth
        if self.text(place - 2) == "set" or self.text(place - 3) == "local":
            return True
        for back in range(place - 1, max(place - 400, -1), -1):
            token = self.tokens[back]
            if token.depth < depth or token.text == ";":
                return False
            if token.depth == depth and token.text in {
                "where",
                "on",
                "from",
                "select",
                "when",
                "if",
                "case",
                "and",
                "or",
            }:
                return False
            if token.depth == depth and token.text == "set":
                return self.text(place - 2) == ","
        return False


Rule = Callable[[_Reader, int], Iterator[Edit]]


def _replace(reader: _Reader, operator: str, first: int, behind: int, replacement: str) -> Edit:
    """Tokens from `first` up to, not including, `behind`."""
    start, end = reader.tokens[first].start, reader.tokens[behind - 1].end
    return Edit(operator=operator, start=start, end=end, replacement=replacement)


def _swap(reader: _Reader, place: int) -> Iterator[Edit]:
    token = reader.tokens[place]
    if token.text not in SWAPPED or token.kind == "text":
        return
    before = reader.text(place - 1)
    match token.text:
        case "=" if reader.is_assignment(place):
            return
        case "or" if before == "create":
            return
        case "+" if before in ("", "(", ",", "=", "["):
            return
        case "min" | "max" | "least" | "greatest" if reader.text(place + 1) != "(":
            return
        case "and" if _is_of_between(reader, place):
            return
    yield _replace(reader, f"swap {token.text}", place, place + 1, SWAPPED[token.text])


def _is_of_between(reader: _Reader, place: int) -> bool:
    depth = reader.tokens[place].depth
    for back in range(place - 1, -1, -1):
        token = reader.tokens[back]
        if token.depth < depth or token.text in (";", "and", "or", "where", "if", "on"):
            return False
        if token.depth == depth and token.text == "between":
            return True
    return False


def _number(reader: _Reader, place: int) -> Iterator[Edit]:
    token = reader.tokens[place]
    if token.kind != "number" or "." in token.text:
        return
    if reader.text(place - 1) in ("perform", "select") and reader.text(place + 1) == "from":
        return  # any value will do: only that there is a row counts
    if reader.text(place - 1) == "=" and _STEERS_STORAGE.fullmatch(reader.text(place - 2)):
        return
    if _is_rank(reader, place):
        return
    for by in (1, -1):
        yield _replace(reader, f"number {by:+d}", place, place + 1, str(int(token.text) + by))


def _is_rank(reader: _Reader, place: int) -> bool:
    """Whether a number is the rank of a row of ``(values (1, …), (2, …)) as name(place, …)``.

    One more or less makes at most a tie of two rows that are in order already, and rows in order are left so.
    """
    if reader.text(place - 1) != "(" or reader.text(place - 2) not in ("values", ","):
        return False
    depth = reader.tokens[place].depth - 2  # of the parentheses around the list
    close = next((end for end in range(place, len(reader.tokens)) if reader.tokens[end].depth == depth), place)
    return reader.text(close + 1) == "as" and reader.text(close + 4) == "place"


def _lock(reader: _Reader, place: int) -> Iterator[Edit]:
    if reader.text(place) == "skip" and reader.text(place + 1) == "locked":
        yield _replace(reader, "drop skip locked", place, place + 2, "")
    if reader.text(place) == "nowait":
        yield _replace(reader, "drop nowait", place, place + 1, "")
    if reader.text(place) == "for" and reader.text(place + 1) in {"update", "share", "no", "key"}:
        end = place + 1
        while reader.text(end) in {"no", "key", "update", "share", "of", "skip", "locked", "nowait"}:
            end += 2 if reader.text(end) == "of" else 1
        yield _replace(reader, "drop row lock", place, end, "")


def _conjunct(reader: _Reader, place: int) -> Iterator[Edit]:
    word = reader.text(place)
    if word == "and" and not _is_of_between(reader, place):
        yield _replace(reader, "drop condition", place, reader.clause_end(place + 1), "")
    opens = word == "where" or (word in ("if", "elsif") and reader.text(place - 1) != "end")
    if opens and reader.text(place + 1) not in ("", "exists", "not"):
        end = reader.clause_end(place + 1)
        if word == "where" or reader.text(end) in ("and", "then"):
            if reader.text(end) == "and":
                yield _replace(reader, "drop condition", place + 1, end + 1, "")
            else:
                yield _replace(reader, "drop condition", place + 1, end, "true")


def _order(reader: _Reader, place: int) -> Iterator[Edit]:
    if reader.text(place) == "order" and reader.text(place + 1) == "by":
        yield _replace(reader, "drop order", place, reader.clause_end(place + 1), "")
    if reader.text(place) == "desc":
        yield _replace(reader, "drop desc", place, place + 1, "")
    if reader.text(place) == "distinct" and reader.text(place - 1) in ("select", "("):
        yield _replace(reader, "drop distinct", place, place + 1, "")


def _negation(reader: _Reader, place: int) -> Iterator[Edit]:
    match [reader.text(place), reader.text(place + 1), reader.text(place + 2)]:
        case ["is", "not", "null"]:
            yield _replace(reader, "is null", place, place + 3, "is null")
        case ["is", "null", _]:
            yield _replace(reader, "is not null", place, place + 2, "is not null")
        case ["if", "not", "exists"]:
            return
        case ["not", following, _] if following != "null" and reader.text(place - 1) not in ("if", "is", ""):
            yield _replace(reader, "drop not", place, place + 1, "")
        case ["if", "not", following] if following != "exists":
            yield _replace(reader, "drop not", place + 1, place + 2, "")
        case ["exists", "(", _] if reader.text(place - 1) != "not":
            yield _replace(reader, "not exists", place, place + 1, "not exists")


def _setting(reader: _Reader, place: int) -> Iterator[Edit]:
    if reader.text(place) != "set" or _STEERS_PLANNER.fullmatch(reader.text(place + 1)):
        return
    if reader.text(place + 1) == "local":
        yield _replace(reader, "drop set local", place, reader.statement_end(place), "null")
    elif reader.text(place + 2) == "=" and reader.text(place + 4) in ("set", "as", "language", "security", "stable"):
        yield _replace(reader, "drop set", place, place + 4, "")


def _statement(reader: _Reader, place: int) -> Iterator[Edit]:
    if reader.text(place) in _ACTS and reader.text(place - 1) in _BEFORE_STATEMENT:
        yield _replace(reader, f"drop {reader.text(place)}", place, reader.statement_end(place), "null")


def _default(reader: _Reader, place: int) -> Iterator[Edit]:
    """coalesce and left join make up for what is missing; without them it is missing."""
    if reader.text(place) == "left" and reader.text(place + 1) == "join":
        yield _replace(reader, "inner join", place, place + 1, "inner")
    if reader.text(place) == "coalesce" and reader.text(place + 1) == "(":
        comma = next(
            (each for each in range(place + 2, len(reader.tokens)) if _separates(reader, place + 2, each)), None
        )
        if comma is not None:
            close = next(each for each in range(comma, len(reader.tokens)) if _closes(reader, place + 1, each))
            yield _replace(reader, "drop coalesce", comma, close, "")


def _separates(reader: _Reader, first: int, place: int) -> bool:
    return reader.text(place) == "," and reader.tokens[place].depth == reader.tokens[first].depth


def _closes(reader: _Reader, opening: int, place: int) -> bool:
    return reader.text(place) == ")" and reader.tokens[place].depth == reader.tokens[opening].depth


RULES: tuple[Rule, ...] = (_swap, _number, _lock, _conjunct, _order, _negation, _setting, _statement, _default)
_FUNCTION = re.compile(r"create (?:or replace )?function tasker\.(\w+)")
_QUERY = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _edits(source: str) -> list[Edit]:
    reader = _Reader(source)
    return [edit for place in range(len(reader.tokens)) for rule in RULES for edit in rule(reader, place)]


def sql_sites(path: str, source: str) -> list[Site]:
    """All places in a file."""
    return [
        Site(
            path=path,
            line=source.count("\n", 0, edit.start) + 1,
            end_line=source.count("\n", 0, edit.end) + 1,
            operator=edit.operator,
            place=place,
        )
        for place, edit in enumerate(_edits(source))
    ]


def plant_sql(source: str, site: Site) -> str:
    """The file's text with the fault."""
    edit = _edits(source)[site.place]
    return source[: edit.start] + edit.replacement + source[edit.end :]


def enclosing_name(source: str, line: int) -> str | None:
    """The function or the named query that a line of a file belongs to; None outside of any."""
    lines = source.splitlines(keepends=True)
    offset = sum(len(each) for each in lines[:line])
    heads = [*_FUNCTION.finditer(source, 0, offset), *_QUERY.finditer(source, 0, offset)]
    if not heads:
        return None
    head = max(heads, key=lambda head: head.start())
    has_ended = source.count("$$", head.start(), offset - len(lines[line - 1])) >= 2
    return None if has_ended else head.group(1)
