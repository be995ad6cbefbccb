"""Documents that show commands and their output: read, run, and compared with what really comes out.

In a ```console block a line that starts with ``$ `` is a command and the lines after it are its output. Numbers, spaces
and the length of rules do not matter; a line ``…`` stands for any lines, an ``…`` in a line for any text.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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


class Shell:
    """Runs commands one after the other in a folder; what one exports the next one has."""

    def __init__(self, folder: Path, environment: Mapping[str, str], document: str) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self._document = document

    def run(self, command: Command) -> None:
        """Fails when the command fails or does not print what the document shows."""
        told = f"{self._document}:{command.line}: {command.text}"
        with tempfile.NamedTemporaryFile() as exported:
            ran = subprocess.run(
                ["bash", "-c", f"{command.text}\ncode=$?; env -0 > {exported.name}; exit $code"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=180,
                check=False,
            )
            variables = exported.read().decode()
        assert ran.returncode == 0, f"{told}\n{ran.stdout}"
        missing = difference(command.output, ran.stdout)
        assert missing is None, f"{told}\ndoes not print {missing!r}:\n{ran.stdout}"
        self.environment = dict(entry.split("=", 1) for entry in variables.split("\0") if "=" in entry)


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
