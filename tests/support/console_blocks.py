"""Documents that show commands and their output: read, run, and compared with what really comes out.

In a ```console block a line that starts with ``$ `` is a command and the lines after it are its output. Numbers, spaces
and the length of rules do not matter; a line ``…`` stands for any lines, an ``…`` in a line for any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ANY = "…"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a document, and the output that the document shows."""

    text: str
    output: tuple[str, ...]
    line: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int
    """The number of its first line in the document."""


def read_blocks(file: Path) -> Iterator[Block]:
    language, lines, began = None, list[str](), 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines, began = line.removeprefix("```"), [], number + 1
        else:
            yield Block(language=language, text="\n".join(lines) + "\n", line=began)
            language = None
    assert language is None, f"{file}: a block does not end"


def read_commands(file: Path) -> list[Command]:
    """All commands of a document, in order."""
    commands: list[Command] = []
    for block in read_blocks(file):
        if block.language != "console":
            continue
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            if line.startswith("$ "):
                commands.append(Command(text=line.removeprefix("$ "), output=(), line=number))
            else:
                last = commands.pop()
                commands.append(Command(text=last.text, output=(*last.output, line), line=last.line))
    return commands


def difference(shown: Sequence[str], came: str) -> str | None:
    """The first shown line that did not come, in order; None when all did."""
    left = [_normal(line) for line in came.splitlines()]
    for line in shown:
        if line.strip() == ANY:
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _normal(line).split(ANY)))
        place = next((place for place, each in enumerate(left) if pattern.fullmatch(each)), None)
        if place is None:
            return line
        left = left[place + 1 :]
    return None


def _normal(line: str) -> str:
    line = re.sub(r"\d+(\.\d+)?", "#", line)
    line = re.sub(r"# (→ # )*→ #", "# → #", line)  # by how many steps a pool got there
    return " ".join(line.split())
