"""The folder `operator/` at the root must not hide the standard library's `operator` from anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_standard_library_imports_at_the_root() -> None:
    # Run at the root, which `-c` puts first on the path; -S -E: nothing of this environment helps.
    code = "import operator, collections; assert operator.add(1, 2) == 3; print(operator.__file__)"
    ran = subprocess.run(
        [sys.executable, "-E", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert not Path(ran.stdout.strip()).is_relative_to(ROOT / "operator")


def test_nothing_makes_the_folder_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator.py").exists()
    named_so = [
        path.relative_to(ROOT)
        for source in ("operator/src", "operator/devcluster", "worker_image/src", "tests")
        for path in (ROOT / source).rglob("operator*")
        if path.name in {"operator", "operator.py"}
    ]
    assert named_so == []
