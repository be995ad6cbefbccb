"""The last words of a process: whole, short, and never in the way of its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasker_worker import termination
from tasker_worker.termination import write_last_words


@pytest.fixture
def of_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the file that the kubelet makes; a test makes it."""
    path = tmp_path / "termination-log"
    monkeypatch.setattr(termination, "_OF_KUBERNETES", str(path))
    return path


def test_in_a_pod_they_stand_in_the_file_that_kubernetes_made(of_kubernetes: Path) -> None:
    of_kubernetes.write_text("of the process before, which had far more to say")
    write_last_words("the cause\nand more")
    assert of_kubernetes.read_text() == "the cause\nand more"


def test_outside_of_a_pod_nothing_is_written(of_kubernetes: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_last_words("the cause")
    assert not of_kubernetes.exists()
    assert not caplog.records


def test_a_file_that_is_named_is_made_and_kubernetes_own_left_alone(of_kubernetes: Path, tmp_path: Path) -> None:
    of_kubernetes.touch()
    write_last_words("the cause", str(tmp_path / "own"))
    assert (tmp_path / "own").read_text() == "the cause"
    assert of_kubernetes.read_text() == ""


@pytest.mark.parametrize("filler", ["x", "é", "…", "😀"])
@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_they_are_cut_at_the_end_of_a_character(of_kubernetes: Path, before: str, filler: str) -> None:
    of_kubernetes.touch()
    write_last_words(before + filler * 5000)
    words = of_kubernetes.read_bytes()
    assert 4096 - len(filler.encode()) < len(words) <= 4096
    assert words.decode() == (before + filler * 5000)[: len(words.decode())]


def test_exactly_what_kubernetes_shows_fits(of_kubernetes: Path) -> None:
    of_kubernetes.touch()
    write_last_words("x" * 4096)
    assert len(of_kubernetes.read_bytes()) == 4096


def test_text_that_is_no_utf_8_is_written_all_the_same(of_kubernetes: Path) -> None:
    of_kubernetes.touch()
    write_last_words("half \ud800")
    assert of_kubernetes.read_text() == "half \\ud800"


def test_a_file_that_cannot_be_written_is_told_and_no_more(
    of_kubernetes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none" / "here", "No such file or directory")):
        write_last_words("the cause", str(path))
        assert f"the last words cannot be written to {path}: {reason}" in caplog.text
    of_kubernetes.mkdir()
    write_last_words("the cause")
    assert f"the last words cannot be written to {of_kubernetes}: Is a directory" in caplog.text


def test_a_file_that_is_made_is_for_its_owner_to_write_and_for_all_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_last_words("the cause", str(tmp_path / "own"))
    finally:
        os.umask(before)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o644
