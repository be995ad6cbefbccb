"""Faults are planted in a copy that imports itself, and are gone afterwards; the checkout is never touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mutants.scratch import Scratch
from mutants.sources import ROOT

FILE = "operator/src/tasker/errors.py"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    return Scratch(tmp_path_factory.mktemp("scratch") / "tree")


def imported(scratch: Scratch) -> str:
    """What `tasker.errors` is to a process of the copy with nothing of ours in its environment."""
    code = (
        "import tasker.errors as e, tasker_worker; print(e.__file__, getattr(e, 'PLANTED', 0), tasker_worker.__file__)"
    )
    done = subprocess.run([scratch.python, "-c", code], cwd="/", env={}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_copy_imports_its_own_source_and_each_text_of_a_file_is_compiled_anew(scratch: Scratch) -> None:
    clean = f"{scratch.folder / FILE} 0 {scratch.folder / 'worker_image/src/tasker_worker/__init__.py'}"
    assert imported(scratch) == clean
    text = (ROOT / FILE).read_text()
    for value in (1, 2):
        with scratch.planted({FILE: f"{text}\nPLANTED = {value}\n"}):
            assert imported(scratch) == clean.replace(" 0 ", f" {value} ")
    assert imported(scratch) == clean


def test_the_file_is_as_before_when_the_run_of_the_tests_is_stopped(scratch: Scratch) -> None:
    before = (scratch.folder / FILE).read_bytes()
    with pytest.raises(KeyboardInterrupt), scratch.planted({FILE: "raise SystemExit\n"}):
        raise KeyboardInterrupt
    assert (scratch.folder / FILE).read_bytes() == before == (ROOT / FILE).read_bytes()


def test_the_copys_programs_run_on_its_own_interpreter(scratch: Scratch) -> None:
    first = (scratch.python.parent / "pytest").read_text().splitlines()[0]
    assert first == f"#!{scratch.python}"


def test_libraries_are_the_checkouts(scratch: Scratch) -> None:
    code = "import pytest; print(pytest.__file__)"
    done = subprocess.run([scratch.python, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path(pytest.__file__)
