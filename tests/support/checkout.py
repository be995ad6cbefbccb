"""The checkout's files, and copies of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked_files(root: Path = ROOT) -> list[str]:
    """What a clone of the checkout as it stands would have, new files that git does not ignore among it; sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    names = {name for name in listed.stdout.decode().split("\0") if name}
    return sorted(name for name in names if (root / name).is_file())


def copy_checkout(folder: Path, root: Path = ROOT) -> None:
    """Copies the tracked files to a folder, with their times."""
    for name in tracked_files(root):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target, follow_symlinks=False)
