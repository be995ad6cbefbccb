"""A copy of the tree in which faults are planted, with an interpreter of its own that imports the copy.

The copy's ``.venv`` is a virtual environment that sees the checkout's libraries, but the copy's source in place of the
checkout's. It is the interpreter that makes the difference and not a variable, so that processes which tests start with
a cleaned environment run the copy too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mutants.sources import ROOT
from support.checkout import copy_checkout

_CLOCK = count(1_000_000_000)


class Scratch:
    """A copy of the checkout at `folder`: what git tracks, and new files that it does not ignore."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder = folder
        self.python = folder / ".venv" / "bin" / "python"
        copy_checkout(folder, root)
        (folder / ".tasker").mkdir()
        if (root / ".tasker" / "tools").is_dir():
            (folder / ".tasker" / "tools").symlink_to(root / ".tasker" / "tools")
        self._make_environment(root)

    def _make_environment(self, root: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder / ".venv"], check=True)
        ours = sysconfig.get_path("purelib", vars={"base": str(self.folder / ".venv")})
        libraries = Path(sysconfig.get_path("purelib"))
        (Path(ours) / "scratch.pth").write_text("\n".join([*self._editable(libraries, root), str(libraries)]) + "\n")
        for program in Path(sys.prefix, "bin").iterdir():
            copy = self.python.parent / program.name
            if not copy.exists() and program.is_file():
                self._link_program(program, copy)
        (self.folder / ".venv" / ".ready").touch()

    def _editable(self, libraries: Path, root: Path) -> list[str]:
        """The folders of source that the checkout's own environment imports, as they are in the copy."""
        lines = [line for file in sorted(libraries.glob("*.pth")) for line in file.read_text().splitlines()]
        folders = [Path(line) for line in lines if line.startswith(str(root))]
        return [str(self.folder / folder.relative_to(root)) for folder in folders]

    def _link_program(self, program: Path, copy: Path) -> None:
        text = program.read_bytes()
        own = f"#!{Path(sys.prefix, 'bin')}/python".encode()
        if text.startswith(own):
            copy.write_bytes(f"#!{self.python}".encode() + b"\n" + text.partition(b"\n")[2])
            copy.chmod(0o755)
        else:
            copy.symlink_to(program)

    @contextmanager
    def planted(self, texts: Mapping[str, str]) -> Iterator[None]:
        """The copy with other texts in some files, which are as before afterwards."""
        before = {path: (self.folder / path).read_bytes() for path in texts}
        try:
            for path, text in texts.items():
                self._write(path, text.encode())
            yield
        finally:
            for path, content in before.items():
                self._write(path, content)

    def _write(self, path: str, content: bytes) -> None:
        """Compiled files are matched by size and second: each text gets a time of its own."""
        file = self.folder / path
        file.write_bytes(content)
        moment = next(_CLOCK)
        os.utime(file, (moment, moment))
