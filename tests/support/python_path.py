"""``PYTHONPATH`` for a process that a test starts."""

from __future__ import annotations

import os
from pathlib import Path


def python_path(*folders: Path) -> str:
    """These folders before those of this process, which ``support.under_load`` has put one into."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
